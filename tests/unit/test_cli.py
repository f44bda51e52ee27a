"""The command line's own logic: help, options, exit statuses. What needs a mount is in tests/mount."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sluicefs import __version__
from sluicefs.cli import cli, doctor, main
from sluicefs.cli.mount import mount
from sluicefs.cli.options import config_from, size
from sluicefs.cli.run import split_mount
from sluicefs.cli.status import _lines as status_lines
from sluicefs.config import OPTIONS
from sluicefs.errors import InvalidMountConfigError

ACCOUNT = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ACCOUNT_ID", ACCOUNT)
    monkeypatch.setenv("SLUICEFS_CONFIG", "/dev/null")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def test_every_command_is_listed_and_has_help() -> None:
    listed = CliRunner().invoke(cli, ["--help"]).output
    for name in ("mount", "unmount", "status", "top", "run", "warm", "cache", "doctor", "dev-server"):
        assert re.search(rf"^  {name} +\S", listed, re.MULTILINE)
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0 and len(shown.output) > 100


def test_every_option_is_in_help_with_its_default() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["mount", "--help"]).output.split())
    for name in OPTIONS.keys() - {"prefix"}:
        assert f"--{name.replace('_', '-')}" in shown
    for default in (
        "[16 MiB]",
        "[1 seconds]",
        "[0644]",
        "[sync]",
        "[auto]",
        "[30 seconds]",
        "auto|listing|full",
        "SIZE",
        "MODE",
    ):
        assert default in shown


def test_no_option_takes_a_secret() -> None:
    names = {name for parameter in mount.params for name in parameter.opts}
    assert not [name for name in names if re.search("secret|token|password|key", name)]


def test_flags_beat_fstab_words() -> None:
    given: dict[str, Any] = {"words": ("ro,umask=022", "umask=027"), "config": None, "umask": None, "read_only": None}
    config = config_from("bucket", "/mnt", dict(given))
    assert (config.umask, config.read_only) == (0o027, True)
    assert config_from("bucket", "/mnt", {**given, "umask": "077"}).umask == 0o077


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b:/data", ("b", "/data", False)),
        ("b:/data:ro", ("b", "/data", True)),
        ("b:/p/q:/data:ro", ("b:/p/q", "/data", True)),
        ("b:/p:/data:rw", ("b:/p", "/data", False)),
    ],
)
def test_mounts_of_a_sandbox(text: str, expected: tuple[str, str, bool]) -> None:
    assert split_mount(text) == expected


@pytest.mark.parametrize("text", ["", "b", "/data", ":/data", "b:data", "b:/p:data"])
def test_what_is_no_mount_of_a_sandbox(text: str) -> None:
    with pytest.raises(InvalidMountConfigError):
        split_mount(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (16 << 20, "16.0 MiB"), (5 << 50, "5120.0 TiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["frobnicate"], 2),
        (["mount", "bucket", "/mnt", "--frobnicate"], 2),
        (["mount", "bucket", "/mnt", "--memory", "x"], 2),
        (["mount", "bucket", ""], 2),
        (["unmount", "/nowhere"], 1),
        (["unmount", ""], 2),
        (["dev-server", "--bucket", "B"], 2),
        (["dev-server", "--keep", "/proc/nowhere"], 1),
    ],
)
def test_exit_statuses(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "should not" not in said.err
    assert bool(said.err) == bool(status)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"sluicefs {__version__}\n"


def test_status_says_what_is_amiss() -> None:
    answer: dict[str, Any] = {"alive": True, "mountpoint": "/m", "bucket": "b", "prefix": "", "endpoint": "http://e", "pid": 1}
    answer |= {"started": 0.0, "read_only": False, "write_mode": "sync", "pending": {"files": 0, "bytes": 0}, "requests": {}}
    answer |= {"cache": {"used": 0, "budget": 0, "hits": 0, "misses": 0}, "retries": 0, "bytes_down": 0, "bytes_up": 0}
    answer["disk"] = None
    assert "disk" not in "\n".join(status_lines(answer))
    disk = {"used": 1024, "limit": 2048, "on": False, "hits": 3, "misses": 4, "bytes_skipped": 10, "damaged": 0}
    line = "  disk      1.0 KiB of 2.0 KiB, hits 3, misses 4, off for now, 10 B not taken"
    assert line in status_lines({**answer, "disk": disk})
    left_out = [f"a//{n}" for n in range(6)]
    line = "  left out  9 keys that cannot be file names: 'a//0', 'a//1', 'a//2', 'a//3', 'a//4', …"
    assert line in status_lines({**answer, "left_out": left_out, "left_out_count": 9})
    for heeded, says in ((True, False), (None, False), (False, True)):
        assert ("ignores If-Match" in "\n".join(status_lines({**answer, "if_match": heeded}))) is says


def test_doctor_sees_a_fusermount_that_may_not_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fusermount"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.os, "getuid", lambda: 1000)
    found = doctor._fusermount()
    assert not found.ok and f"chmod u+s {program}" in found.fix
    program.chmod(0o4755)
    assert doctor._fusermount().ok
