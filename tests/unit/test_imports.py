"""The rooms and the arrows between them, as ARCHITECTURE.md has them: imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sluicefs

SOURCE = Path(sluicefs.__file__).parent
LEAVES = {"errors", "config", "control"}

# Who may import whom. A room is a folder or a module directly below the package, and may always import itself.
ALLOWED = {
    "__main__": {"cli"},
    "__init__": {"errors", "api", "sandbox"},
    "errors": set(),
    "control": set(),
    "config": {"errors"},
    "cli": {"lifecycle", "daemon", "sandbox", "devserver", "cache", "staging", "store", "recovery", "__init__"} | LEAVES,
    "sandbox": {"api"} | LEAVES,
    "api": {"lifecycle"} | LEAVES,
    "lifecycle": {"daemon"} | LEAVES,
    "daemon": {"mount", "store"} | LEAVES,
    "recovery": {"fs", "staging", "store.api"} | LEAVES,
    "mount": {"fuse", "fs", "engine", "cache", "staging", "store"} | LEAVES,
    "fuse": {"fs"} | LEAVES,
    "fs": {"engine", "cache", "staging", "store.api", "errors", "config"},
    "cache": {"engine", "errors", "config"},
    "staging": {"engine", "errors", "config"},
    "engine": set(),
    "store": {"errors"},
    "devserver": {"errors", "store.sign"},
}
OUTSIDERS = {"botocore": {"store/s3.py"}, "llfuse": {"mount.py"}}


def imported(path: Path) -> set[str]:
    """The dotted names a module imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def allows(room: str, target: str) -> bool:
    """`target` is a dotted path below the package."""
    return any(target == one or target.startswith(f"{one}.") for one in ALLOWED[room] | {room})


def is_module(target: str) -> bool:
    """`store.api` and `store` are, a name defined in one is not."""
    path = SOURCE.joinpath(*target.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or any(path.parent.glob(f"{path.name}.*.so"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"a new room, {room}: say in this table what it may import"
    for name in imported(path):
        package, _, target = name.partition(".")
        if package == "sluicefs" and not target:
            assert "__init__" in ALLOWED[room] or _only_modules(path), f"{path} imports the package itself"
        elif package == "sluicefs" and is_module(target):
            parent_of_allowed = any(one.startswith(f"{target}.") for one in ALLOWED[room])
            assert allows(room, target) or parent_of_allowed, f"{path} may not import {name}"


def _only_modules(path: Path) -> bool:
    """Each `from sluicefs import x` takes a module, which has an arrow of its own."""
    return all(
        is_module(name.partition(".")[2]) for name in imported(path) if name.startswith("sluicefs.") and name.count(".") == 1
    )


@pytest.mark.parametrize("outsider", OUTSIDERS)
def test_botocore_and_llfuse_stay_where_they_belong(outsider: str) -> None:
    users = {
        str(path.relative_to(SOURCE)) for path in modules() if any(name.split(".")[0] == outsider for name in imported(path))
    }
    if outsider == "llfuse":
        assert any(user.startswith("fuse/") for user in users)
        users = {user for user in users if not user.startswith("fuse/")}
    assert users == OUTSIDERS[outsider]


def test_there_is_no_cycle_between_rooms() -> None:
    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " -> ".join((*above, room))
        for target in ALLOWED[room] - {"__init__"}:
            visit(target.split(".")[0], (*above, room))

    for room in ALLOWED:
        visit(room, ())


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    """`sluicefs mount` has 0.6 s: the process that starts the mount loads neither botocore, nor llfuse, nor rich."""
    code = "import sys, sluicefs.cli.mount; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"botocore", "llfuse", "rich", "asyncio"} & set(loaded)
    assert "click" in loaded
