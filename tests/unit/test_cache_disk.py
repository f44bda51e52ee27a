"""The disk cache never gives a wrong byte, never exceeds its size, and is there again for the next mount."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluicefs.cache import DiskCache, Folder
from sluicefs.cache import disk as disk_module
from sluicefs.cache.segment import GRAIN, PAGE, SEGMENT

MiB = 1024 * 1024


def content(seed: int, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of object number `seed`; no two places of any two objects look alike."""
    first = offset // 16
    data = b"".join(
        (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 & 2**128 - 1).to_bytes(16, "little")
        for index in range(first, (offset + length + 15) // 16)
    )
    return data[offset - first * 16 : offset - first * 16 + length]


def used(folder: Path) -> int:
    """Bytes of disk below `folder`, as du counts."""
    return sum(os.lstat(path).st_blocks * 512 for path in [folder, *folder.rglob("*")])


def read(cache: DiskCache, key: str, size: int, offset: int, length: int, etag: str = "v1") -> bytes:
    """The leading bytes that the cache has. What it reports as it goes on must agree with what it returns."""
    buffer = bytearray(length)
    reports: list[int] = []
    count = cache.read_into(key, etag, size, offset, memoryview(buffer), reports.append)
    assert reports == sorted(set(reports))
    assert (reports[-1] if reports else 0) == count
    return bytes(buffer[:count])


Open = Callable[..., DiskCache]


@pytest.fixture
def open_cache(tmp_path: Path) -> Iterator[Open]:
    made: list[DiskCache] = []

    def make(
        limit: int = 64 * MiB, *, bucket: str = "b", folder: Path = tmp_path / "cache", queue: int = 64 * MiB
    ) -> DiskCache:
        made.append(DiskCache(str(folder), limit, endpoint="http://s", bucket=bucket, queue_bytes=queue))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def put(cache: DiskCache, key: str, size: int, offset: int, data: bytes, etag: str = "v1") -> None:
    cache.put(key, etag, size, offset, data)
    assert cache.flush(30)


@pytest.mark.parametrize("size", [1, PAGE, PAGE + 1, GRAIN - 1, GRAIN, GRAIN + 5, 3 * GRAIN + 7])
def test_a_whole_object_is_there_after_a_remount(open_cache: Open, size: int) -> None:
    data = content(1, 0, size)
    first = open_cache()
    put(first, "k", size, 0, data)
    first.close()
    second = open_cache()
    assert read(second, "k", size, 0, size) == data
    assert second.stats()["hits"] == 1


def test_a_block_across_two_segments(open_cache: Open) -> None:
    cache, size, start = open_cache(), SEGMENT + 4 * MiB, SEGMENT - 2 * MiB
    data = content(2, start, 4 * MiB)
    put(cache, "k", size, start, data)
    assert read(cache, "k", size, start, 4 * MiB) == data
    assert read(cache, "k", size, start + MiB + 5, 2 * MiB) == data[MiB + 5 : 3 * MiB + 5]
    assert read(cache, "k", size, start - GRAIN, 4 * MiB) == b""
    assert read(cache, "k", size, start + 3 * MiB, 2 * MiB - GRAIN) == data[3 * MiB :]  # the leading bytes that are there


def test_small_random_reads_are_kept(open_cache: Open) -> None:
    cache, size = open_cache(), 10 * 1024 * MiB
    places = [PAGE * 5, 700 * MiB, 9000 * MiB + 3 * PAGE]
    for place in places:
        put(cache, "k", size, place, content(3, place, 2 * PAGE))
    for place in places:
        assert read(cache, "k", size, place, 2 * PAGE) == content(3, place, 2 * PAGE)
        assert read(cache, "k", size, place + 1, PAGE) == content(3, place + 1, PAGE)
        assert read(cache, "k", size, place, 3 * PAGE) == content(3, place, 2 * PAGE)
        assert read(cache, "k", size, place - PAGE, PAGE) == b""


def test_only_the_very_version_of_the_very_object_is_given(open_cache: Open) -> None:
    cache, other_bucket = open_cache(), open_cache(bucket="c")
    data = content(4, 0, GRAIN)
    put(cache, "k", GRAIN, 0, data)
    assert read(cache, "k", GRAIN, 0, GRAIN) == data
    assert read(cache, "k", GRAIN, 0, GRAIN, etag="v2") == b""
    assert read(cache, "K", GRAIN, 0, GRAIN) == b""
    assert read(other_bucket, "k", GRAIN, 0, GRAIN) == b""
    assert cache.stats()["damaged"] == 0


def test_a_version_without_an_etag_is_not_kept(open_cache: Open) -> None:
    cache = open_cache()
    put(cache, "k", PAGE, 0, content(1, 0, PAGE), etag="")
    assert read(cache, "k", PAGE, 0, PAGE, etag="") == b""


def test_folders_are_private_and_a_folder_of_the_user_stays_as_it_is(open_cache: Open, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "blocks").mkdir(mode=0o755)
    for folder in (theirs, tmp_path / "made"):
        cache = open_cache(folder=folder)
        put(cache, "k", PAGE, 0, content(1, 0, PAGE))
        assert stat.S_IMODE((folder / "blocks").stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (folder / "blocks").iterdir())
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_never_over_its_size_and_the_least_recently_used_leaves(
    open_cache: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "USE_SECONDS", 0.0)
    limit, cache = 4 * MiB, open_cache(4 * MiB)
    data = content(5, 0, MiB // 2)
    put(cache, "loved", MiB // 2, 0, data)
    for number in range(40):
        put(cache, f"k{number}", MiB // 2, 0, data)
        assert used(tmp_path / "cache" / "blocks") <= limit
        assert read(cache, "loved", MiB // 2, 0, MiB // 2) == data
    assert read(cache, "k39", MiB // 2, 0, MiB // 2) == data
    assert read(cache, "k0", MiB // 2, 0, MiB // 2) == b""
    stats = cache.stats()
    assert used(tmp_path / "cache" / "blocks") <= int(stats["used"]) <= limit
    assert int(stats["evictions"]) >= 30


def test_a_smaller_size_at_the_next_mount_is_kept_at_once(open_cache: Open, tmp_path: Path) -> None:
    cache = open_cache()
    for number in range(20):
        put(cache, f"k{number}", MiB, 0, content(number, 0, MiB))
    cache.close()
    assert used(tmp_path / "cache" / "blocks") > 20 * MiB
    second = open_cache(5 * MiB)
    assert second.flush(30)
    assert used(tmp_path / "cache" / "blocks") <= 5 * MiB
    assert read(second, "k19", MiB, 0, MiB) == content(19, 0, MiB)


def test_the_count_is_right_again_after_a_crash(open_cache: Open, tmp_path: Path) -> None:
    cache = open_cache()
    put(cache, "k", MiB, 0, content(1, 0, MiB))
    cache.close()
    blocks = tmp_path / "cache" / "blocks"
    for wrong in (b"", b"\xff" * 8, b"\0" * 8, b"garbage" * 9):
        (blocks / "lock").write_bytes(wrong)
        (blocks / "new").write_bytes(bytes(MiB))  # of a writer that died
        again = open_cache()
        assert again.flush(30)
        assert used(blocks) <= int(again.stats()["used"]) <= used(blocks) + 4 * PAGE
        assert read(again, "k", MiB, 0, MiB) == content(1, 0, MiB)
        assert not (blocks / "new").exists()
        again.close()


def test_a_full_queue_drops_and_does_not_wait(open_cache: Open) -> None:
    cache = open_cache(queue=3 * MiB)
    other = Folder(cache.folder)
    assert cache.flush(30)
    with other.locked():  # the thread can write nothing
        for number in range(10):
            cache.put(f"k{number}", "v1", MiB, 0, content(number, 0, MiB))
        stats = cache.stats()
        assert stats["queued"] == 3 * MiB
        assert stats["bytes_skipped"] == 7 * MiB
    other.close()
    assert cache.flush(30)
    assert cache.stats()["queued"] == 0
    assert read(cache, "k2", MiB, 0, MiB) == content(2, 0, MiB)
    assert read(cache, "k3", MiB, 0, MiB) == b""


def test_a_deleted_folder_is_made_again(open_cache: Open, tmp_path: Path) -> None:
    cache = open_cache()
    put(cache, "k", MiB, 0, content(1, 0, MiB))
    subprocess.run(["rm", "-rf", str(tmp_path / "cache")], check=True)
    assert read(cache, "k", MiB, 0, MiB) == b""
    put(cache, "k", MiB, 0, content(1, 0, MiB))
    assert read(cache, "k", MiB, 0, MiB) == content(1, 0, MiB)
    assert cache.stats()["on"]


def test_what_others_put_into_the_folder_stays(open_cache: Open, tmp_path: Path) -> None:
    blocks = tmp_path / "cache" / "blocks"
    blocks.mkdir(parents=True)
    (blocks / "note.txt").write_text("mine")
    cache = open_cache(2 * MiB)
    for number in range(8):
        put(cache, f"k{number}", MiB, 0, content(number, 0, MiB))
    folder = Folder(cache.folder)
    with folder.locked():
        assert folder.clear().segments >= 1
    folder.close()
    assert (blocks / "note.txt").read_text() == "mine"
    assert used(blocks) <= 16 * PAGE


# --- against a model

SIZES = {"a": 5 * GRAIN + 3 * PAGE + 17, "b": SEGMENT + 3 * GRAIN, "c": 700, "d": 2 * GRAIN}

ranges = st.tuples(
    st.sampled_from(sorted(SIZES)),
    st.integers(0, 2**30),
    st.integers(1, 9 * GRAIN),
    st.sampled_from([1, PAGE, GRAIN]),
    st.booleans(),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), ranges),
        st.tuples(st.just("read"), ranges),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("clear"), st.none()),
    ),
    max_size=40,
)


def _place(drawn: tuple[str, int, int, int, bool]) -> tuple[str, int, int]:
    """Key, offset and length within the object, rounded as blocks are; where wanted near the border of two segments."""
    key, offset, length, unit, border = drawn
    size = SIZES[key]
    offset %= size
    if border and size > SEGMENT:
        offset = SEGMENT - 4 * GRAIN + offset % (4 * GRAIN)
    offset -= offset % unit
    length += -length % unit
    return key, offset, min(length, size - offset)


@pytest.mark.parametrize("limit", [2 * MiB, 64 * MiB])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_any_sequence_agrees_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[str, tuple[str, int, int, int, bool] | None]]
) -> None:
    folder = tmp_path_factory.mktemp("model")
    numbers = {key: number for number, key in enumerate(SIZES)}
    pages: set[tuple[str, int]] = set()  # what was put since the last clear, in whole pages
    cache = DiskCache(str(folder), limit, endpoint="e", bucket="b")
    try:
        for verb, drawn in steps:
            if verb == "reopen":
                cache.close()
                cache = DiskCache(str(folder), limit, endpoint="e", bucket="b")
            elif verb == "clear":
                other = Folder(str(folder))
                with other.locked():
                    other.clear()
                other.close()
                pages.clear()
            else:
                assert drawn is not None
                key, offset, length = _place(drawn)
                size = SIZES[key]
                if verb == "put":
                    put(cache, key, size, offset, content(numbers[key], offset, length))
                    whole = range(-(-offset // PAGE), (offset + length) // PAGE + (offset + length == size and size % PAGE > 0))
                    pages |= {(key, page) for page in whole}
                    assert used(folder / "blocks") <= limit
                else:
                    found = read(cache, key, size, offset, length)
                    assert found == content(numbers[key], offset, len(found))
                    expected = 0
                    while expected < length and (key, (offset + expected) // PAGE) in pages:
                        expected += min(PAGE - (offset + expected) % PAGE, length - expected)
                    assert len(found) == expected if limit > 32 * MiB else len(found) <= expected
        assert cache.stats()["damaged"] == 0
        assert cache.stats()["on"]
    finally:
        cache.close()


# --- two processes

_WORKER = """
import os, random, sys
from sluicefs.cache import DiskCache
sys.path.insert(0, sys.argv[4])
from tests.unit.test_cache_disk import content, read
folder, limit, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
cache = DiskCache(folder, limit, endpoint="e", bucket=sys.argv[5])
number = int(sys.argv[6])
print("begun", flush=True)
while True:
    key = rng.randrange(12)
    size = 256 * 1024
    offset = rng.randrange(0, size, 4096)
    length = min(rng.randrange(4096, size, 4096), size - offset)
    cache.put(f"k{key}", "v", size, offset, content(number * 100 + key, offset, length))
    found = read(cache, f"k{key}", size, offset, length, "v")
    if found != content(number * 100 + key, offset, len(found)):
        print("wrong bytes", key, offset, length, flush=True)
    if cache.stats()["damaged"] or not cache.stats()["on"]:
        print("damaged", cache.stats(), flush=True)
"""


@pytest.mark.slow
def test_processes_share_a_folder_and_are_killed(tmp_path: Path) -> None:
    """Two of one bucket and one of another, on a cache far too small for them, killed at any moment, again and again."""
    folder, limit = tmp_path / "cache", 2 * MiB
    root = str(Path(__file__).parents[2])

    def start(seed: int) -> subprocess.Popen[str]:
        bucket, number = ("one", 1) if seed % 3 else ("two", 2)
        arguments = [str(folder), str(limit), str(seed), root, bucket, str(number)]
        return subprocess.Popen([sys.executable, "-c", _WORKER, *arguments], stdout=subprocess.PIPE, text=True)

    running = [start(seed) for seed in range(3)]
    said: list[str] = []
    try:
        for seed in range(3, 12):
            oldest = running.pop(0)
            assert oldest.stdout is not None and oldest.stdout.readline() == "begun\n"
            for _ in range(10):
                time.sleep(random.random() / 20)
                assert used_while_changing(folder / "blocks") <= limit
            oldest.kill()
            said.append(oldest.communicate()[0])
            running.append(start(seed))
    finally:
        for process in running:
            process.kill()
            said.append(process.communicate()[0].removeprefix("begun\n"))
    assert said == [""] * len(said)
    cache = DiskCache(str(folder), limit, endpoint="e", bucket="one")
    assert cache.flush(30)
    kept = sum(
        len(read(cache, f"k{key}", 256 * 1024, page, PAGE, "v")) for key in range(12) for page in range(0, 2 * GRAIN, PAGE)
    )
    assert kept
    assert cache.stats()["damaged"] == 0
    cache.close()
    files = Folder(str(folder))
    with files.locked():
        assert all(bad == 0 < good for good, bad in map(files.heal, files.names()))
    files.close()


def used_while_changing(folder: Path) -> int:
    """`used`, at one moment: writers are kept out meanwhile."""
    files = Folder(str(folder.parent))
    with files.locked():
        total = used(folder)
    files.close()
    return total
