"""`sluicefs cache stat|clear|verify`, on a folder that a cache has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sluicefs.cache import DiskCache
from sluicefs.cli.cache import cache as command
from sluicefs.errors import InvalidMountConfigError

MiB = 1024 * 1024


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words, catch_exceptions=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache = DiskCache(str(tmp_path), 64 * MiB, endpoint="e", bucket="b")
    for key in "abc":
        cache.put(key, "v", MiB, 0, key.encode() * MiB)
    cache.close()
    return tmp_path


def test_stat(folder: Path) -> None:
    done = run("stat", "--cache-dir", str(folder))
    assert done.exit_code == 0
    assert "3.0 MiB in 3 files" in done.output
    shown = json.loads(run("stat", "--json", "--cache-dir", str(folder)).output)
    assert shown["files"] == 3 and 3 * MiB <= shown["used"] <= 3.1 * MiB


def test_clear_leaves_nothing(folder: Path) -> None:
    assert run("clear", "--cache-dir", str(folder)).exit_code == 0
    assert [path.name for path in (folder / "blocks").iterdir()] == ["lock"]
    assert "in 0 files" in run("stat", "--cache-dir", str(folder)).output


def test_verify_says_what_is_damaged_once(folder: Path) -> None:
    assert run("verify", "--cache-dir", str(folder)).exit_code == 0
    victim = sorted((folder / "blocks").glob("*.0"))[1]
    with victim.open("r+b") as stream:
        stream.seek(500_000)
        stream.write(b"?")
    done = run("verify", "--cache-dir", str(folder))
    assert done.exit_code == 1
    assert str(victim) in done.output and "1 damaged" in done.output
    assert run("verify", "--cache-dir", str(folder)).exit_code == 0


def test_no_cache_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for verb in ("stat", "clear", "verify"):
        error = run(verb).exception
        assert isinstance(error, InvalidMountConfigError)
        assert str(tmp_path / "sluicefs") in str(error)
    assert not any(tmp_path.iterdir()), "looking makes nothing"


def test_the_cache_of_the_config_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.toml").write_text(f'cache-dir = "{folder}"\n')
    monkeypatch.setenv("SLUICEFS_CONFIG", str(tmp_path / "some.toml"))
    assert str(folder) in run("stat").output
    monkeypatch.setenv("SLUICEFS_CACHE_DIR", str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(run("stat").exception)
