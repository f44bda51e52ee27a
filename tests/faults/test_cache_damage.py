"""Damage to the disk cache, and disks that are full or refuse: reads go on and give the right bytes, and the cache heals."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluicefs.cache import DiskCache, Folder
from sluicefs.cache import disk as disk_module
from sluicefs.cache.segment import GRAIN, PAGE
from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.mount.helpers import User

MiB = 1024 * 1024
SIZE = 2 * MiB + 3 * PAGE + 11
DATA_AT = 128 * 1024  # where data begins in a cache file

root_only = pytest.mark.skipif(os.getuid() != 0, reason="makes a mount or changes an owner")


@functools.cache
def content(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)


def opened(folder: Path, limit: int = 64 * MiB) -> DiskCache:
    return DiskCache(str(folder), limit, endpoint="e", bucket="b")


def read(cache: DiskCache, key: str, offset: int = 0, length: int = SIZE) -> bytes:
    """The leading bytes that the cache has; what it published must not have changed later."""
    buffer = memoryview(bytearray(length))
    published: list[bytes] = []
    count = cache.read_into(key, "v", SIZE, offset, buffer, lambda n: published.append(bytes(buffer[:n])))
    assert all(content(key)[offset:].startswith(part) for part in published)
    return bytes(buffer[:count])


def files(folder: Path) -> list[Path]:
    return sorted((folder / "blocks").glob("*.*"))


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


def flip(path: Path, at: int) -> None:
    with path.open("rb") as stream:
        stream.seek(at)
        found = stream.read(1)[0]
    overwrite(path, at, bytes([found ^ 0x10]))


def swap(first: Path, second: Path) -> None:
    first.rename(first.parent / "aside")
    second.rename(first)
    (first.parent / "aside").rename(second)


def swap_data(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    overwrite(first, DATA_AT, two[DATA_AT:])
    overwrite(second, DATA_AT, one[DATA_AT:])


def swap_grains(path: Path) -> None:
    """Two grains of one file, with their checksums."""
    data = path.read_bytes()
    overwrite(path, DATA_AT, data[DATA_AT + GRAIN : DATA_AT + 2 * GRAIN] + data[DATA_AT : DATA_AT + GRAIN])
    overwrite(path, 2048, data[2056:2064] + data[2048:2056])


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "bit of the first byte": lambda a, b: flip(a, DATA_AT),
    "bit in the middle": lambda a, b: flip(a, DATA_AT + MiB + 77),
    "bit of the last byte": lambda a, b: flip(a, DATA_AT + SIZE - 1),
    "bit of a checksum": lambda a, b: flip(a, 2048 + 8 * 3),
    "bit of the header": lambda a, b: flip(a, 9),
    "bit of the object's size": lambda a, b: flip(a, 24),
    "zeros": lambda a, b: overwrite(a, DATA_AT + GRAIN, bytes(GRAIN)),
    "truncated": lambda a, b: os.truncate(a, DATA_AT + MiB),
    "truncated to nothing": lambda a, b: os.truncate(a, 0),
    "truncated, then as long as before": lambda a, b: (os.truncate(a, DATA_AT + MiB), os.truncate(a, DATA_AT + SIZE)),
    "longer": lambda a, b: os.truncate(a, DATA_AT + 2 * SIZE),
    "deleted": lambda a, b: a.unlink(),
    "swapped with another": swap,
    "data swapped with another's": swap_data,
    "places swapped": lambda a, b: swap_grains(a),
    "copied over another": lambda a, b: b.write_bytes(a.read_bytes()),
    "a folder": lambda a, b: (a.unlink(), a.mkdir()),
    "a link elsewhere": lambda a, b: (a.rename(a.parent / "aside"), a.symlink_to(a.parent / "aside")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_heals(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "OFF_SECONDS", 0.0)
    cache = opened(tmp_path)
    for key in "ab":
        cache.put(key, "v", SIZE, 0, content(key))
    assert cache.flush(30)
    assert read(cache, "a") == content("a") and read(cache, "b") == content("b")
    DAMAGE[kind](*files(tmp_path))
    missing = 0
    for key in "ab":
        found = read(cache, key)
        assert content(key).startswith(found), "a wrong byte"
        missing += len(found) < SIZE
    assert missing, "not noticed"
    for _ in range(2):  # the first may find what is damaged still there, and has it removed
        for key in "ab":
            if len(read(cache, key)) < SIZE:
                cache.put(key, "v", SIZE, 0, content(key))
        assert cache.flush(30)
    if kind not in ("a folder", "a link elsewhere"):  # nothing of ours: not touched, those bytes are just not cached
        assert read(cache, "a") == content("a") and read(cache, "b") == content("b")
    cache.close()


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind not in ("deleted", "a folder", "a link elsewhere")])
def test_verify_finds_it(tmp_path: Path, kind: str) -> None:
    cache = opened(tmp_path)
    for key in "ab":
        cache.put(key, "v", SIZE, 0, content(key))
    cache.close()
    folder = Folder(str(tmp_path))
    with folder.locked():
        assert [folder.heal(name) for name in folder.names()] == [(SIZE, 0), (SIZE, 0)]
        DAMAGE[kind](*files(tmp_path))
        assert sum(folder.heal(name)[1] for name in folder.names()) > 0
        assert sum(folder.heal(name)[1] for name in folder.names()) == 0
    folder.close()


def test_bits_flipped_in_pages(tmp_path: Path) -> None:
    """What is kept of random reads has checksums of its own."""
    cache = opened(tmp_path)
    cache.put("a", "v", SIZE, 5 * PAGE, content("a")[5 * PAGE : 9 * PAGE])
    assert cache.flush(30)
    assert read(cache, "a", 5 * PAGE, 4 * PAGE) == content("a")[5 * PAGE : 9 * PAGE]
    flip(files(tmp_path)[0], DATA_AT + 7 * PAGE + 100)
    assert read(cache, "a", 5 * PAGE, 2 * PAGE) == content("a")[5 * PAGE : 7 * PAGE]
    assert read(cache, "a", 7 * PAGE + 10, 20) == b""
    cache.close()


# --- disks that refuse


@contextlib.contextmanager
def small_disk(path: Path, size: int, *words: str) -> Iterator[None]:
    path.mkdir()
    options = ",".join((f"size={size}", *words))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@root_only
def test_a_full_disk_switches_the_cache_off_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 5 * MiB), caplog.at_level(logging.WARNING):
        cache = opened(disk / "cache")
        for key in "abcdef":
            cache.put(key, "v", SIZE, 0, content(key))
        assert cache.flush(30)
        assert not cache.stats()["on"]
        assert [record.message for record in caplog.records] == [
            f"the disk cache in {disk}/cache is off for 60 s: the disk is full"
        ]
        monkeypatch.setattr(cache, "_off_until", 0.0)  # the while is over
        assert read(cache, "a") == content("a"), "what was kept before stays"
        found = {key: read(cache, key) for key in "bcdef"}
        assert all(content(key).startswith(data) for key, data in found.items())
        folder = Folder(str(disk / "cache"))
        with folder.locked():
            folder.clear()
        folder.close()
        cache.put("f", "v", SIZE, 0, content("f"))
        assert cache.flush(30)
        assert read(cache, "f") == content("f")
        cache.close()


def _foreign(folder: Path) -> None:
    (folder / "blocks").mkdir(parents=True)
    os.chown(folder / "blocks", 65534, 65534)


REFUSALS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: folder.write_text(""),
    "a file for the blocks": lambda folder: (folder.mkdir(), (folder / "blocks").write_text("")),
    "somebody else's": _foreign,
    "a link to elsewhere": lambda folder: (folder.mkdir(), (folder / "blocks").symlink_to("/tmp")),
}


@root_only
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_folder_that_cannot_be_used(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    REFUSALS[kind](tmp_path / "cache")
    cache = opened(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        cache.put("a", "v", SIZE, 0, content("a"))
        assert cache.flush(30)
        assert read(cache, "a") == b""
        cache.put("b", "v", SIZE, 0, content("b"))
        assert cache.flush(30)
    assert not cache.stats()["on"] and cache.stats()["used"] == 0
    assert len(caplog.records) <= 1
    assert not [name for name in os.listdir("/tmp") if name == "lock"]
    cache.close()


@root_only
def test_a_disk_that_became_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 32 * MiB):
        cache = opened(disk / "cache")
        cache.put("a", "v", SIZE, 0, content("a"))
        assert cache.flush(30)
        cache.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        again = opened(disk / "cache")
        again.put("b", "v", SIZE, 0, content("b"))
        assert again.flush(30)
        assert not again.stats()["on"]
        assert read(again, "b") == b""
        again.close()


# --- on a mount


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        store = bucket.store()
        store.put("big", content("big", 40 * MiB + 5))
        for number in range(20):
            store.put(f"small/{number}", content(f"s{number}", 30_000 + number))
        store.close()
        yield made
        made.clean_up()


def read_all(user: User, *words: str) -> tuple[int, dict[str, object]]:
    """Mount, read every file and compare it, unmount; the number of GetObject requests, and the disk cache's figures."""
    folder = user.home / "m"
    folder.mkdir(exist_ok=True)
    user.ok("mount", user.bucket.name, str(folder), *words)
    assert (folder / "big").read_bytes() == content("big", 40 * MiB + 5)
    for number in range(20):
        assert (folder / f"small/{number}").read_bytes() == content(f"s{number}", 30_000 + number)
    with (folder / "big").open("rb") as stream:
        for place in (7 * MiB + 5, 31 * MiB + 4095, 39 * MiB):
            stream.seek(place)
            assert stream.read(5000) == content("big", 40 * MiB + 5)[place : place + 5000]
    status = json.loads(user.ok("status", str(folder), "--json"))
    user.ok("unmount", str(folder))
    return status["requests"].get("GetObject", 0), status["disk"]


def test_a_remount_reads_from_the_disk_cache_alone_and_damage_is_fetched_again(user: User) -> None:
    cache = user.home / "cache"
    words = ("--cache-dir", str(cache), "--cache-size", "100M")
    gets, _ = read_all(user, *words)
    assert gets >= 25
    gets, figures = read_all(user, *words)
    assert gets == 0, figures
    assert figures["damaged"] == 0
    for path in files(cache):
        if path.stat().st_size > MiB:
            flip(path, DATA_AT + 3 * MiB)
    os.truncate(files(cache)[0], 100)
    gets, figures = read_all(user, *words)
    assert 0 < gets < 12 and figures["damaged"]
    gets, figures = read_all(user, *words)
    assert gets == 0, figures


def test_no_cache_unless_asked_for(user: User) -> None:
    gets, figures = read_all(user)
    assert gets and figures is None
    assert not (user.home / ".cache").exists()


def test_the_size_holds_on_a_mount(user: User) -> None:
    """A cache smaller than what is read: never over its size, every byte right."""
    cache = user.home / "cache"
    words = ("--cache-dir", str(cache), "--cache-size", "64M")
    store = user.bucket.store()
    store.put("big2", content("big2", 40 * MiB))
    store.close()
    folder = user.home / "m2"
    folder.mkdir()
    user.ok("mount", user.bucket.name, str(folder), *words)
    for _ in range(2):
        for name, size in (("big", 40 * MiB + 5), ("big2", 40 * MiB)):
            assert (folder / name).read_bytes() == content(name, size)
            du = int(subprocess.run(["du", "-sB1", str(cache)], capture_output=True, text=True, check=True).stdout.split()[0])
            assert du <= 64 * MiB
    user.ok("unmount", str(folder))


@root_only
def test_a_full_cache_disk_does_not_harm_a_mount(user: User) -> None:
    disk = user.home / "disk"
    with small_disk(disk, 20 * MiB):
        words = ("--cache-dir", str(disk / "cache"), "--cache-size", "100M")
        for _ in range(2):
            _, figures = read_all(user, *words)
        assert not figures["on"] or figures["hits"]


@root_only
def test_the_key_is_not_in_the_cache(user: User) -> None:
    cache = user.home / "cache"
    read_all(user, "--cache-dir", str(cache))
    secret = user.bucket.server.secret_key.encode()
    for path in cache.rglob("*"):
        assert path.is_dir() or secret not in path.read_bytes()
    assert cache.stat().st_mode & 0o777 == 0o700
