"""Everyday programs on the mount: git clone, pip install, SQLite. That they work comes before how long they take."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.data import File, content
from benchmarks.processes import run_command
from benchmarks.workload import Outcome, Scene, Stopwatch, Workload

_TIMEOUT = 120.0


def _git(scene: Scene) -> Outcome:
    """Clones a repository of 100 small files and 3 commits."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _make_repository(source, scene.sizes.count(100))
        target = str(scene.path / "clone")
        watch = Stopwatch()
        run_command(["git", "clone", "--quiet", "--no-hardlinks", str(source), target], timeout=_TIMEOUT)
        seconds = watch.seconds
    changed = run_command(["git", "-C", target, "status", "--porcelain"], timeout=_TIMEOUT).decode().strip()
    return Outcome(seconds, 1, 0, [f"git status is not clean: {changed[:80]}"] if changed else [])


def _make_repository(source: Path, files: int) -> None:
    source.mkdir()
    git = ["git", "-C", str(source), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    run_command([*git, "init", "--quiet"], timeout=_TIMEOUT)
    for commit in range(3):
        for number in range(commit, files, 3):
            file = source / f"d{number % 10}" / f"f{number}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(next(content(File(str(number), 4096))))
        run_command([*git, "add", "."], timeout=_TIMEOUT)
        run_command([*git, "commit", "--quiet", "-m", f"commit {commit}"], timeout=_TIMEOUT)


def _pip(scene: Scene) -> Outcome:
    """Installs a wheel of 50 modules into a folder of the mount, then imports one."""
    modules = scene.sizes.count(50)
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "benchwheel-1.0-py3-none-any.whl"
        _make_wheel(wheel, modules)
        target = str(scene.path / "site")
        options = ["--no-index", "--no-deps", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-compile"]
        watch = Stopwatch()
        run_command([sys.executable, "-m", "pip", "install", *options, "--target", target, str(wheel)], timeout=_TIMEOUT)
        seconds = watch.seconds
    check = f"import sys; sys.path.insert(0, {target!r}); import benchwheel.m{modules - 1} as m; print(m.NUMBER)"
    found = run_command([sys.executable, "-B", "-I", "-c", check], timeout=_TIMEOUT).decode().strip()
    return Outcome(seconds, 1, 0, [] if found == str(modules - 1) else [f"the installed module says {found!r}"])


def _make_wheel(path: Path, modules: int) -> None:
    info = "benchwheel-1.0.dist-info"
    texts = {f"benchwheel/m{number}.py": f"NUMBER = {number}\n" + "# filler\n" * 200 for number in range(modules)}
    texts["benchwheel/__init__.py"] = ""
    texts[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: benchwheel\nVersion: 1.0\n"
    texts[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    texts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*texts, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in texts.items():
            wheel.writestr(name, text)


def _sqlite(scene: Scene) -> Outcome:
    """10 transactions of 100 rows on a database with a rollback journal; then it is opened anew and checked."""
    path = scene.path / "bench.db"
    watch = Stopwatch()
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("create table t (id integer primary key, text text)")
            for transaction in range(10):
                with database:
                    database.executemany(
                        "insert into t values (?, ?)", ((transaction * 100 + row, "x" * 100) for row in range(100))
                    )
        seconds = watch.seconds
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
            count, total = database.execute("select count(*), sum(id) from t").fetchone()
            sound = database.execute("pragma integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise OSError(f"SQLite: {error}") from None
    right = (count, total, sound) == (1000, 999 * 500, "ok")
    return Outcome(seconds, 1, 0, [] if right else [f"the database holds {count} rows, sum {total}, {sound}"])


WORKLOADS = (
    Workload("git", "git clone of 100 files onto the mount", "s", _git, timeout=180, setup=15, each=15, wanted=2),
    Workload("pip", "pip install of 50 modules into the mount", "s", _pip, timeout=180, setup=18, each=18, wanted=1),
    Workload("sqlite", "SQLite, 10 transactions of 100 rows", "s", _sqlite, timeout=180, setup=12, each=12, wanted=1),
)
