"""policy.toml: what it may say, and that every mistake in it is refused in one line that names the key."""

from __future__ import annotations

import errno
import re

import pytest

from ckfs.errors import StoreUnusable
from ckfs.policy.enforcing import Away, QuotaMode, QuotaPolicy, Reserve
from ckfs.policy.settings import DEFAULT_TEXT, Collecting, Policy, parse


def refusal(text: str) -> str:
    with pytest.raises(StoreUnusable) as refused:
        parse(text)
    line = str(refused.value)
    assert line.startswith("policy.toml")
    assert "\n" not in line
    assert refused.value.exit_status == 3
    return line


def test_the_file_that_init_writes_is_understood() -> None:
    policy = parse(DEFAULT_TEXT)
    assert policy.torque_home == "/var/spool/torque"
    assert policy.resolver_command == ()
    assert policy.resolver_command_timeout_s == 5.0


def test_an_empty_file_has_the_defaults_and_asks_nobody() -> None:
    empty, written = parse(""), parse(DEFAULT_TEXT)
    assert empty.torque_home == ""
    assert (empty.batch, empty.temporary) == (written.batch, written.temporary)
    assert empty.resolver_command_timeout_s == written.resolver_command_timeout_s


@pytest.mark.parametrize(
    "table", ["sets", "images", "protection", "trash", "gc", "quota", "liveness", "resolvers"]
)
def test_an_empty_table_has_the_defaults(table: str) -> None:
    assert parse(f"[{table}]") == parse("")


WRONG_KEYS = [
    ("batch = []", "batch"),
    ("[set]", "set"),
    ("[sets]\nbatches = []", "sets.batches"),
    ("[sets]\nBatch = []", "sets.Batch"),
    ("[images]\ntemp = []", "images.temp"),
    ("[images]\nbatch = []", "images.batch"),
    ("[resolvers]\ntorque = ''", "resolvers.torque"),
    ("[resolvers]\ncommand_timeout_s = 1", "resolvers.command_timeout_s"),
    ("[sets.more]", "sets.more"),
    ("[quotas]\nmode = 'ledger'", "quotas"),
    ("[quota]\nhard = 1", "quota.hard"),
]


@pytest.mark.parametrize(("text", "key"), WRONG_KEYS)
def test_every_unknown_key_is_named(text: str, key: str) -> None:
    assert f"unknown key {key};" in refusal(text)
    assert "known here" in refusal(text)


@pytest.mark.parametrize(
    ("table", "text"), [("sets", "sets = 1"), ("images", "images = []"), ("sets", "[[sets]]")]
)
def test_a_table_must_be_one(table: str, text: str) -> None:
    assert f"{table} must be a table" in refusal(text)


LISTS = ["sets.batch", "images.temporary", "resolvers.command"]


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("value", ["'*.CK'", "1", "true", "[1]", "['a', 2]", "['']", "[['a']]", "{}"])
def test_a_list_of_texts_must_be_one(key: str, value: str) -> None:
    table, name = key.split(".")
    assert f"{key} must be a list of non-empty strings" in refusal(f"[{table}]\n{name} = {value}")


@pytest.mark.parametrize("value", ["1", "true", "[]", "['/var']"])
def test_a_path_must_be_a_text(value: str) -> None:
    assert "resolvers.torque_home must be a string" in refusal(f"[resolvers]\ntorque_home = {value}")


@pytest.mark.parametrize(
    "value", ["0", "-1", "0.0", "-0.5", "3600.1", "3601", "inf", "nan", "true", "'5'", "[]"]
)
def test_seconds_out_of_range(value: str) -> None:
    assert "resolvers.command_timeout must be a number of seconds" in refusal(
        f"[resolvers]\ncommand_timeout = {value}"
    )


@pytest.mark.parametrize(("value", "seconds"), [("1", 1.0), ("0.001", 0.001), ("3600", 3600.0), ("2.5", 2.5)])
def test_seconds(value: str, seconds: float) -> None:
    assert parse(f"[resolvers]\ncommand_timeout = {value}").resolver_command_timeout_s == seconds


@pytest.mark.parametrize(
    "text", ["[sets", "batch", "[sets]\nbatch = [", "a = 'x", "[sets]\n[sets]", "a = 1\na = 2", "\x00"]
)
def test_what_is_not_toml(text: str) -> None:
    assert "not valid TOML" in refusal(text)


def test_a_hostile_key_stays_one_printable_line() -> None:
    line = refusal('"a\\n\\u001b[2J" = 1')
    assert line.isprintable()


BATCH = [
    (b"12.server.CK", True),
    (b"12.server.CK.old", True),
    (b".CK", True),
    (b"\xff\xfe.CK", True),
    (b"a\nb.CK", True),
    (b"12.server.ck", False),
    (b"12.server.CK\n", False),
    (b"12.server.CK.older", False),
    (b"12.server.CK.new", False),
    (b"CK", False),
    (b"12xCK", False),
    (b"", False),
]


@pytest.mark.parametrize(("name", "is_batch"), BATCH)
def test_batch_sets(name: bytes, *, is_batch: bool) -> None:
    assert parse("").is_batch(name) is is_batch


FINAL = [
    (b"ckpt.12.server.1700000000", True),
    (b"pages-1.img", True),
    (b"image.tmp", False),
    (b".ckpt.12.server.1700000000.tmp", False),
    (b".hidden", False),
    (b"x.dmtcp.temp", False),
    (b"x.part", False),
    (b"x.party", True),
    (b"tmp", True),
    (b"x.TMP", True),
    (b"\xff.tmp", False),
]


@pytest.mark.parametrize(("name", "is_final"), FINAL)
def test_final_names(name: bytes, *, is_final: bool) -> None:
    assert parse("").is_final(name) is is_final


PATTERNS = [
    ("job-*", b"job-1", True),
    ("job-*", b"ajob-1", False),
    ("job-?", b"job-12", False),
    ("[0-9]*.ckpt", b"1.ckpt", True),
    ("[0-9]*.ckpt", b"x1.ckpt", False),
    ("a.b", b"axb", False),
    ("a(b|c)+", b"ab", False),
    ("a(b|c)+", b"a(b|c)+", True),
    ("\u00fc*", "\u00fcber".encode(), True),
    ("*", b"\xff\n", True),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), PATTERNS)
def test_patterns_are_the_shells_over_the_whole_name(pattern: str, name: bytes, *, matches: bool) -> None:
    assert parse(f"[sets]\nbatch = ['{pattern}']").is_batch(name) is matches


def test_equal_texts_are_equal_policies() -> None:
    """A mount tells by that whether there is anything new to follow."""
    changed = parse(DEFAULT_TEXT.replace('"*.CK", ', ""))
    assert parse(DEFAULT_TEXT) == parse("# a comment\n" + DEFAULT_TEXT)
    assert isinstance(changed, Policy)
    assert changed != parse(DEFAULT_TEXT)


def test_what_goes_by_itself_and_when() -> None:
    policy = parse(
        "[protection]\nsuperseded_days = 1.5\n[trash]\nkeep_free_percent = 20\n"
        "[gc]\nautomatic = true\ntemporary_hours = 0.5\nunclaimed_days = 0\njob_gone_days = 2"
    )
    assert (policy.superseded_s, policy.keep_free) == (129_600.0, 0.2)
    assert policy.gc == Collecting(automatic=True, temporary_s=1800.0, unclaimed_s=0.0, job_gone_s=172_800.0)
    assert parse("").gc == parse(DEFAULT_TEXT).gc
    assert not parse("").gc.automatic


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("protection.superseded_days", "-1", "a number of days from 0 to 3650"),
        ("protection.superseded_days", "nan", "a number of days"),
        ("trash.keep_free_percent", "90.1", "a number from 0 to 90"),
        ("trash.keep_free_percent", "-1", "a number from 0 to 90"),
        ("trash.keep_free_percent", "true", "a number from 0 to 90"),
        ("gc.automatic", "1", "true or false"),
        ("gc.automatic", "'yes'", "true or false"),
        ("gc.temporary_hours", "-0.1", "a number of hours from 0 to 87600"),
        ("gc.temporary_hours", "inf", "a number of hours"),
        ("gc.unclaimed_days", "'7'", "a number of days"),
        ("gc.job_gone_days", "true", "a number of days"),
    ],
)
def test_what_goes_by_itself_is_not_left_to_mistakes(key: str, value: str, rule: str) -> None:
    table, name = key.split(".")
    assert f"{key} must be {rule}" in refusal(f"[{table}]\n{name} = {value}")


def test_quotas_are_kept_by_a_ledger_of_the_host_unless_something_else_is_said() -> None:
    assert parse("").quota == parse(DEFAULT_TEXT).quota == QuotaPolicy()
    assert QuotaPolicy().mode is QuotaMode.LEDGER
    assert (QuotaPolicy().ledger, QuotaPolicy().engine, QuotaPolicy().away) == ("embedded", "auto", Away.EIO)


def test_who_enforces_quotas() -> None:
    said = parse(
        "[quota]\nmode = 'engine'\nledger = 'host=db1 dbname=ckfs'\naway = 'EDQUOT'\nengine = 'xfs'\nreserve = '20G'"
    ).quota
    assert said == QuotaPolicy(
        QuotaMode.ENGINE, "host=db1 dbname=ckfs", Away.EDQUOT, "xfs", Reserve(bytes=20 << 30)
    )
    assert said.away.errno == errno.EDQUOT
    assert parse("").quota.away.errno == errno.EIO


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("mode", "'Ledger'", "one of ledger, engine, none"),
        ("mode", "true", "one of ledger, engine, none"),
        ("away", "'ENOSPC'", "one of EDQUOT, EIO"),
        ("engine", "'zfs'", "one of auto, btrfs, xfs, ext4, lustre, cephfs, glusterfs, statvfs"),
        ("ledger", "''", 'be "embedded", or how PostgreSQL is reached'),
        ("ledger", "'db1'", 'be "embedded", or how PostgreSQL is reached'),
        ("ledger", "'mysql://db1/ckfs'", 'be "embedded", or how PostgreSQL is reached'),
        ("ledger", "['embedded']", 'be "embedded", or how PostgreSQL is reached'),
        ("reserve", "5", "a part of the store"),
        ("reserve", "'90.1%'", "a part of the store"),
        ("reserve", "'-1%'", "a part of the store"),
        ("reserve", "'5 %%'", "a part of the store"),
        ("reserve", "'20X'", "a part of the store"),
        ("reserve", "''", "a part of the store"),
    ],
)
def test_who_enforces_quotas_is_not_left_to_mistakes(key: str, value: str, rule: str) -> None:
    line = refusal(f"[quota]\n{key} = {value}")
    assert f"quota.{key} must be" in line
    assert rule in f"must {line.partition('must ')[2]}"


CONNECTIONS = [
    "host=db1 dbname=ckfs",
    "service=ckfs",
    "postgresql://ckfs@db1/ckfs",
    "postgres:///ckfs?host=/run/postgresql",
    "postgresql://db1:5432/ckfs?passfile=/root/.pgpass",
    "host=db1 passfile=/root/.pgpass",
]


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_how_a_database_is_reached(connection: str) -> None:
    assert parse(f"[quota]\nledger = '{connection}'").quota.ledger == connection


WITH_PASSWORDS = [
    "host=db1 password=secret",
    "host=db1 PASSWORD = secret",
    "password=secret",
    "host=db1 sslpassword=secret",
    "postgresql://ckfs:secret@db1/ckfs",
    "postgres://:secret@db1",
    "postgresql://db1/ckfs?password=secret",
    "postgresql://db1/ckfs?user=a&pass%77ord=secret",
]


@pytest.mark.parametrize("connection", WITH_PASSWORDS)
def test_no_password_lies_in_the_store_and_none_is_repeated(connection: str) -> None:
    line = refusal(f"[quota]\nledger = '{connection}'")
    assert "must not have a password" in line
    assert "secret" not in line


RESERVES = [
    ("0%", 0),
    ("5%", 50_000),
    ("2.5 %", 25_000),
    ("90%", 900_000),
    ("0", 0),
    ("4096", 4096),
    ("1K", 1024),
    ("1.5K", 1536),
    ("1M", 1_000_000),
    ("1P", 1_000_000),
]


@pytest.mark.parametrize(("text", "of_a_million"), RESERVES)
def test_the_reserve_is_a_part_or_an_amount_and_never_more_than_there_is(
    text: str, of_a_million: int
) -> None:
    assert parse(f"[quota]\nreserve = '{text}'").quota.reserve.bytes_of(1_000_000) == of_a_million


STORES = """
[[stores]]
name = "fast"
path = "/fast/ckfs"
id = "0d8a5bb8-9a0e-4f4c-8a58-0d3e3e6f7c55"
hosts = ["node*", "gpu[12]"]

[[stores]]
name = "slow"
path = "/slow/ckfs"
id = "1d8a5bb8-9a0e-4f4c-8a58-0d3e3e6f7c55"
"""


def test_further_stores_are_in_order_and_say_who_reaches_them() -> None:
    fast, slow = parse(STORES).stores
    assert (fast.name, fast.path, slow.name) == ("fast", "/fast/ckfs", "slow")
    reaching = ["node1", "node", "gpu2", "gpu3", "mynode", "Node1"]
    assert [fast.is_reached_by(node) for node in reaching] == [True, True, True, False, False, False]
    assert slow.is_reached_by("any")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('name = "slow"', 'name = "fast"', "two stores have the name fast"),
        ('id = "1d8a', 'id = "0d8a', "two stores have the id 0d8a"),
        ('name = "slow"', 'name = "home"', 'and not "home"'),
        ('name = "slow"', 'name = "a/b"', "stores.name must be up to 32 letters"),
        ('name = "slow"', "", "each of the stores needs name, a non-empty string"),
        ('path = "/slow/ckfs"', 'path = "slow"', "stores.path must be a path from the root directory"),
        ('id = "1d8a', 'id = "../1d8a', "stores.id must be the id that 'ckfs init --for' printed"),
        (
            'hosts = ["node*", "gpu[12]"]',
            'hosts = "node*"',
            "stores.hosts must be a list of non-empty strings",
        ),
        ('path = "/slow/ckfs"', 'pfad = "/slow/ckfs"', "unknown key stores.pfad; known here: name, path"),
        ('[[stores]]\nname = "fast"', '[stores]\nname = "fast"', "not valid TOML"),
    ],
)
def test_what_is_wrong_of_further_stores_is_refused(before: str, after: str, reason: str) -> None:
    assert before in STORES
    with pytest.raises(StoreUnusable, match=re.escape(reason)):
        parse(STORES.replace(before, after))


def test_stores_are_tables() -> None:
    with pytest.raises(StoreUnusable, match="stores must be tables"):
        parse('stores = "fast"')
