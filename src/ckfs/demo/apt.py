"""Unpacks a package of another Debian release beside the system, without touching the system's apt.

The mirror is the one that the machine uses already (its own apt sources, in either format), the signatures are
checked against the system's Debian keyring, and lists, archives and configuration are private. Nothing is installed:
the packages are unpacked into one directory, and run from there by the dynamic linker that came along.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass

DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITE_ALIASES = frozenset({"stable", "oldstable", "testing", "unstable", "sid"})
FETCH_SECONDS = 120.0

_ONE_LINE = re.compile(
    r"deb\s+(?:\[[^\]]*\]\s+)?(?P<uri>[^\s\[\]]+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)\s*"
)
_FALSE = frozenset({"no", "false", "without", "off", "disable"})  # what apt itself takes as such


class AptFailed(Exception):
    """The package cannot be had; ``str()`` is one line that says why."""


@dataclass(frozen=True, slots=True)
class AptSource:
    """One enabled entry for binary packages."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]


def parse_one_line(text: str) -> list[AptSource]:
    """The entries of a ``.list`` file: ``deb [options] URI SUITE COMPONENT…`` per line (sources.list(5))."""
    entries = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match and not match["uri"].startswith("cdrom:"):
            entries.append(AptSource((match["uri"],), (match["suite"],), tuple(match["components"].split())))
    return entries


def parse_deb822(text: str) -> list[AptSource]:
    """The entries of a ``.sources`` file: stanzas of fields, continued on indented lines (sources.list(5))."""
    entries = []
    for fields in _stanzas(text):
        words = {name: tuple(value.split()) for name, value in fields.items()}
        disabled = fields.get("enabled", "yes").strip().lower() in _FALSE
        if "deb" in words.get("types", ()) and not disabled:
            entries.append(
                AptSource(words.get("uris", ()), words.get("suites", ()), words.get("components", ()))
            )
    return entries


def _stanzas(text: str) -> list[dict[str, str]]:
    stanzas: list[dict[str, str]] = [{}]
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            stanzas.append({})
            name = ""
        elif line[0] in " \t":
            if name:
                stanzas[-1][name] += "\n" + line
        elif ":" in line:
            field, _, value = line.partition(":")
            name = field.strip().lower()
            stanzas[-1][name] = value
    return [stanza for stanza in stanzas if stanza]


def archives_of(sources: list[AptSource], codename: str) -> list[str]:
    """The URIs of the main archive of release *codename*, those that call themselves ``debian`` first.

    The suites ``<codename>-security`` and ``-updates`` are other entries or archives and do not hold every release.
    """
    wanted = SUITE_ALIASES | {codename}
    uris = [
        uri
        for source in sources
        if wanted & set(source.suites) and "main" in source.components
        for uri in source.uris
        if not uri.startswith(("cdrom:", "file:", "copy:"))
    ]
    return sorted(dict.fromkeys(uris), key=lambda uri: "debian" not in uri.rstrip("/").rpartition("/")[2])


def sources_of_machine(directory: str = "/etc/apt") -> list[AptSource]:
    """Every entry of the machine's own sources; a file that cannot be read counts as empty."""
    entries: list[AptSource] = []
    one_line = [f"{directory}/sources.list", *sorted(glob.glob(f"{directory}/sources.list.d/*.list"))]
    for path in one_line:
        entries += parse_one_line(_text_of(path))
    for path in sorted(glob.glob(f"{directory}/sources.list.d/*.sources")):
        entries += parse_deb822(_text_of(path))
    return entries


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def unpack(package: str, suite: str, archive: str, destination: str) -> None:
    """Fetch *package* of *suite* with all that it depends on from *archive*, and unpack it as *destination*.

    *destination* appears as a whole or not at all. Bounded by FETCH_SECONDS; raises AptFailed.
    """
    for program in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            raise AptFailed(f"{program} is not installed")
    if not os.path.exists(DEBIAN_KEYRING):
        raise AptFailed("the system has no Debian archive keyring to check signatures with")
    deadline = time.monotonic() + FETCH_SECONDS
    work = tempfile.mkdtemp(prefix="fetch-", dir=os.path.dirname(destination))
    try:
        os.chmod(work, 0o755)  # apt fetches as its own user
        configuration = _private_configuration(work, suite, archive)
        apt_get = ["apt-get", "-q", "-c", configuration]
        _run([*apt_get, "update"], deadline)
        _run([*apt_get, "--yes", "--download-only", "--no-install-recommends", "install", package], deadline)
        root = f"{work}/root"
        os.mkdir(root)
        for deb in sorted(glob.glob(f"{work}/archives/*.deb")):
            _run(["dpkg-deb", "-x", deb, root], deadline)
        os.chmod(root, 0o755)
        if not os.path.isdir(destination):
            os.rename(root, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _private_configuration(work: str, suite: str, archive: str) -> str:
    """A configuration read after the system's (so its proxies stay) that moves every file and hook of apt away.

    The empty dpkg status makes apt fetch every library, down to libc: they all must come from the same release.
    """
    for directory in ("lists/partial", "archives/partial"):
        os.makedirs(f"{work}/{directory}")
    _write(f"{work}/status", "")
    _write(f"{work}/sources.list", f"deb [signed-by={DEBIAN_KEYRING}] {archive} {suite} main\n")
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
    settings = {
        "Dir::Etc::SourceList": f"{work}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": f"{work}/lists",
        "Dir::State::extended_states": f"{work}/extended_states",
        "Dir::State::status": f"{work}/status",
        "Dir::Cache": work,
        "Dir::Cache::archives": f"{work}/archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Log": f"{work}/log",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Default-Release": suite,
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Update::Error-Mode": "any",
        "APT::Keep-Downloaded-Packages": "true",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "15",
        "Acquire::https::Timeout": "15",
    }
    lines = [f"#clear APT::Update::{hook};" for hook in hooks]
    lines += ["#clear APT::Architectures;", "#clear Acquire::Languages;"]
    lines += [f'{name} "{value}";' for name, value in settings.items()]
    _write(f"{work}/apt.conf", "\n".join(lines) + "\n")
    return f"{work}/apt.conf"


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _run(command: list[str], deadline: float) -> None:
    """Run *command* in a process group of its own, so that no fetching child outlives the deadline or a Ctrl-C."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise AptFailed(f"{command[0]} did not end within {FETCH_SECONDS:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "dpkg-deb:"))]
        raise AptFailed(f"{command[0]}: {(errors or lines or ['failed'])[0]}")
