"""The layers of docs/design.md, section 6, read off the imports; and what no layer may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ckfs"
MODULES = sorted(SOURCE.rglob("*.py"))

VOCABULARY = {"names", "model", "errors"}
LAYERS: dict[str, set[str]] = {
    # what a part of ckfs imports of the other parts; itself and the vocabulary come in addition
    "names": set(),
    "model": set(),
    "errors": set(),
    "policy": set(),
    "store": {"policy"},
    "owners": {"policy"},
    "ledger": {"policy"},
    "engines": {"policy", "ledger"},
    "selftest": {"policy", "store", "engines"},
    "bench": {"policy", "store", "engines", "selftest"},
    "fs": {"policy", "store", "owners", "ledger", "engines"},
    "transport": {"policy", "store", "owners", "ledger", "fs"},
    "control": {"policy", "store", "owners", "ledger", "engines", "fs"},
    "daemon": {"policy", "store", "owners", "ledger", "engines", "fs", "transport", "control"},
    "cli": {
        "policy",
        "store",
        "owners",
        "ledger",
        "engines",
        "selftest",
        "bench",
        "fs",
        "transport",
        "control",
        "daemon",
        "demo",
    },
}
FOREIGN: dict[str, set[str]] = {
    # what of outside a part must not import
    "names": {"trio", "pyfuse3", "time", "socket", "subprocess"},
    "model": {"os", "time", "trio", "pyfuse3"},
    "errors": {"os", "time", "trio", "pyfuse3"},
    "policy": {
        "os",
        "time",
        "trio",
        "pyfuse3",
        "datetime",
        "threading",
        "asyncio",
        "subprocess",
        "socket",
        "pathlib",
    },
    "store": {"pyfuse3"},
    "owners": {"pyfuse3", "trio"},
    "ledger": {"pyfuse3", "trio"},
    "engines": {"pyfuse3", "trio"},
    "selftest": {"pyfuse3", "trio"},
    "bench": {"pyfuse3", "trio"},
    "fs": {"pyfuse3"},
}


def part_of(path: Path) -> str:
    """The part that a module is of: the name of its package, or its own."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that *path* imports, anywhere in it, by its full name, with the line."""
    package = ("ckfs", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            # "from ckfs.policy import presented" imports a module, "from ckfs.policy.settings import Policy" a name.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


RULED = [path for path in MODULES if part_of(path) in LAYERS]


@pytest.mark.parametrize("path", RULED, ids=named)
def test_a_layer_imports_only_those_below_it(path: Path) -> None:
    part = part_of(path)
    allowed = LAYERS[part] | VOCABULARY | {part}
    wrong = []
    for line, module in imports_of(path):
        first, *rest = module.split(".")
        if first == "ckfs" and rest and rest[0] not in allowed and rest[0] != "__version__":
            wrong.append(f"line {line}: {module}")
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in RULED if part_of(path) in FOREIGN], ids=named)
def test_a_layer_keeps_clear_of_what_is_not_its_own(path: Path) -> None:
    wrong = [
        f"line {line}: {module}"
        for line, module in imports_of(path)
        if module.split(".")[0] in FOREIGN[part_of(path)]
    ]
    assert wrong == []


def test_only_the_transport_and_the_daemon_know_fuse() -> None:
    users = {
        part_of(path)
        for path in MODULES
        for _, module in imports_of(path)
        if module.split(".")[0] == "pyfuse3"
    }
    assert users <= {"transport", "daemon"}


def test_the_codec_of_the_kernel_s_protocol_only_computes() -> None:
    """Bytes in, values out: nothing that reads, waits or asks the system."""
    pure = {
        "__future__",
        "builtins",
        "collections",
        "dataclasses",
        "enum",
        "errno",
        "math",
        "struct",
        "typing",
    }
    wrong = [
        f"{named(path)} line {line}: {module}"
        for path in MODULES
        if path.parent == SOURCE / "transport" / "wire"
        for line, module in imports_of(path)
        if module.split(".")[0] not in pure and not module.startswith("ckfs.transport.wire")
    ]
    assert wrong == []


DOOR = {"store/door.py", "store/namespace.py", "store/way.py"}


def test_the_store_has_one_door() -> None:
    """What the door is made of is used by itself only."""
    behind = {f"ckfs.store.{name}" for name in ("namespace", "way")}
    users = {
        named(path)
        for path in MODULES
        for _, module in imports_of(path)
        if module in behind or module.rpartition(".")[0] in behind
    }
    assert users <= DOOR


def test_every_part_is_ruled_or_known_to_stand_apart() -> None:
    assert {part_of(path) for path in MODULES} - LAYERS.keys() <= {"__init__", "__main__", "demo"}


IDENTITY = re.compile(
    r"\b(?:os|posix|libc|_libc|_quick_libc)\s*\.\s*"
    r"(?:set(?:e|re|res)?[ug]id|setgroups|initgroups|setfs[ug]id)\b"
)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_switches_the_identity_of_the_whole_process(path: Path) -> None:
    """Not the standard library's calls, nor the C library's, which tell every thread (setfsuid is not among those, but
    goes by system call like the rest, in one place that checks it)."""
    text = path.read_text("utf-8")
    assert IDENTITY.findall(text) == []
    imported = {
        module.rsplit(".", 1)[-1] for _, module in imports_of(path) if module.startswith(("os.", "posix."))
    }
    assert {name for name in imported if IDENTITY.search(f"os.{name}")} == set()


@pytest.mark.parametrize(
    "line",
    [
        "os.seteuid(1)",
        "os . setuid(0)",
        "os.setresgid(1, 1, 1)",
        "libc.setgroups(0, None)",
        "_libc.setfsuid(1)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert IDENTITY.search(line)


SWITCHING = {"set_fsuid", "set_fsgid", "set_thread_groups"}


def test_one_module_switches_the_identity_of_a_thread() -> None:
    users = {
        named(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in SWITCHING
    }
    assert users == {"store/identity.py"}


def test_nothing_is_run_by_a_shell_nor_evaluated() -> None:
    wrong = [
        f"{named(path)} line {node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"})
            or (isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in {"os.system", "os.popen"})
            or any(word.arg == "shell" for word in node.keywords)
        )
    ]
    assert wrong == []


def test_handlers_catch_everything_in_one_place_of_each_transport() -> None:
    """What escapes a handler becomes an errno; it would end the mount. (``driving`` only passes on what it is thrown.)"""
    transport = [path for path in MODULES if part_of(path) == "transport"]
    catching = [
        named(path)
        for path in transport
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and node.type is not None
        and ast.unparse(node.type) == "BaseException"
    ]
    assert sorted(set(catching)) == ["transport/driving.py", "transport/kernel.py", "transport/pyfuse.py"]
    assert len(catching) == 3
