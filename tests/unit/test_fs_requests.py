"""What each everyday action costs in requests: counts never drift, so they are asserted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sluicefs.config import Config, MiB
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore

ME = Caller(os.getuid(), os.getgid())


@dataclass
class Bench:
    """A filesystem over the reference store, driven as the kernel would, and what it asked for since `reset`."""

    fs: FileSystem
    store: MemoryStore

    def reset(self) -> None:
        self.store.counters.requests.clear()

    @property
    def requests(self) -> dict[str, int]:
        return dict(self.store.counters.requests)

    def walk(self, path: str) -> int:
        ino = ROOT_INO
        for name in path.split("/"):
            ino = self.fs.lookup(ino, name.encode()).ino
        return ino

    def write(self, path: str, data: bytes, *, piece: int = 128 * 1024) -> int:
        folder, _, name = path.rpartition("/")
        parent = self.walk(folder) if folder else ROOT_INO
        handle, node = self.fs.create(parent, name.encode(), 0o644, os.O_WRONLY | os.O_CREAT, ME)
        for start in range(0, len(data), piece):
            self.fs.write(handle, start, data[start : start + piece])
        self.fs.flush(handle)
        self.fs.release(handle)
        return node.ino

    def read(self, path: str, piece: int = 128 * 1024) -> bytes:
        handle = self.fs.open(self.walk(path), os.O_RDONLY)
        data = bytearray()
        while found := bytes(self.fs.read(handle, len(data), piece)):
            data += found
        self.fs.release(handle)
        return bytes(data)

    def names(self, path: str) -> list[str]:
        handle = self.fs.opendir(self.walk(path) if path else ROOT_INO)
        names = [name for name, _, _ in self.fs.entries(handle)]
        self.fs.releasedir(handle)
        return names


def make(store: MemoryStore, tmp_path: Path, **options: object) -> FileSystem:
    return FileSystem(Config("bucket", "/nowhere", **options), store, str(tmp_path))  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = MemoryStore()
    fs = make(store, tmp_path)
    yield Bench(fs, store)
    assert not fs.sync_all()
    fs.close()


def test_a_new_small_file_is_one_request(bench: Bench) -> None:
    bench.names("")
    bench.reset()
    bench.write("small", b"x" * 4096)
    assert bench.requests == {"PutObject": 1}


def test_a_new_100_mib_file_is_its_parts_and_two(bench: Bench) -> None:
    bench.names("")
    bench.reset()
    data = os.urandom(1024) * (100 * 1024)
    bench.write("large", data)
    assert bench.requests == {"CreateMultipartUpload": 1, "UploadPart": 7, "CompleteMultipartUpload": 1}
    assert bench.store.counters.bytes_up == len(data)
    assert bytes(bench.store.get("large")[1]) == data


def test_cold_open_and_read_of_a_small_file_is_a_listing_and_a_get(bench: Bench) -> None:
    bench.store.put("folder/small", b"content")
    bench.reset()
    assert bench.read("folder/small") == b"content"
    assert bench.requests == {"ListObjectsV2": 2, "GetObject": 1}  # the root, the folder, the bytes


def test_a_second_open_within_the_ttl_asks_nothing(bench: Bench) -> None:
    bench.store.put("small", b"content")
    bench.read("small")
    bench.reset()
    assert bench.read("small") == b"content"
    assert bench.requests == {}


def test_what_was_just_written_is_read_without_a_request(bench: Bench) -> None:
    bench.write("small", b"content")
    bench.reset()
    assert bench.read("small") == b"content"
    assert bench.requests == {}


def test_stat_of_a_missing_name_twice_is_one_listing(bench: Bench) -> None:
    bench.store.put("there", b"")
    bench.reset()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            bench.walk("missing")
    assert bench.requests == {"ListObjectsV2": 1}


def test_cat_of_100_mib_fetches_each_byte_once_in_few_requests(bench: Bench) -> None:
    data = os.urandom(1 << 20) * 100
    bench.store.put("large", data)
    bench.reset()
    bench.store.counters.bytes_down = 0
    assert bench.read("large") == data
    assert bench.store.counters.bytes_down == len(data)
    assert bench.requests["GetObject"] <= 32


def test_what_the_disk_cache_has_is_read_without_a_data_request_after_a_remount(tmp_path: Path) -> None:
    store, data = MemoryStore(), {"small.txt": b"content", "large.bin": os.urandom(1 << 20) * 5}
    for name, body in data.items():
        store.put(f"set/{name}", body)
    for mount in ("first", "second"):
        fs = make(store, tmp_path / mount, cache_dir=str(tmp_path / "cache"), cache_size=64 * MiB)
        bench = Bench(fs, store)
        bench.reset()
        for name, body in data.items():
            assert bench.read(f"set/{name}") == body
        if mount == "first":
            assert bench.requests["GetObject"] >= 2
        else:
            assert bench.requests == {"ListObjectsV2": 2}
        fs.close()


def test_a_long_listing_and_its_look_ups_cost_its_pages(bench: Bench) -> None:
    for i in range(10_000):
        bench.store.put(f"many/{i:05}", b"")
    bench.reset()
    names = bench.names("many")
    assert len(names) == 10_002
    many = bench.walk("many")  # the kernel keeps it, however long the look-ups take
    for name in names[2:]:
        bench.fs.lookup(many, name.encode())
    assert bench.requests["ListObjectsV2"] <= 12
    assert set(bench.requests) == {"ListObjectsV2"}


def test_a_walk_of_a_thousand_folders_is_served_by_flat_listings(bench: Bench) -> None:
    for i in range(10_000):
        bench.store.put(f"top/{i // 10:04}/{i:05}", b"")
    bench.reset()
    seen = 0
    for folder in bench.names("top")[2:]:
        seen += len(bench.names(f"top/{folder}")) - 2
    assert seen == 10_000
    assert sum(bench.requests.values()) <= 40


def test_small_files_read_in_listing_order_are_fetched_ahead(bench: Bench) -> None:
    for i in range(200):
        bench.store.put(f"set/{i:03}", b"%03d" % i)
    bench.reset()
    bench.names("set")
    for i in range(20):
        assert bench.read(f"set/{i:03}") == b"%03d" % i
    deadline = time.monotonic() + 5
    while bench.requests["GetObject"] < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.requests["GetObject"] >= 60


def test_random_reads_of_small_files_fetch_nothing_ahead(bench: Bench) -> None:
    for i in range(200):
        bench.store.put(f"set/{i:03}", b"%03d" % i)
    bench.reset()
    bench.names("set")
    for i in (90, 17, 150, 3, 60, 199, 44, 120):
        bench.read(f"set/{i:03}")
    time.sleep(0.1)
    assert bench.requests["GetObject"] == 8


def test_random_128_kib_reads_fetch_little_more_than_was_asked(bench: Bench) -> None:
    size = 64 * MiB
    bench.store.put("large", os.urandom(size))
    bench.store.counters.bytes_down = 0
    handle = bench.fs.open(bench.walk("large"), os.O_RDONLY)
    asked = 0
    for i in range(40):
        offset = (i * 7919 * 4096 * 13) % (size - 131072) // 4096 * 4096
        asked += len(bench.fs.read(handle, offset, 131072))
    time.sleep(0.1)
    assert bench.store.counters.bytes_down <= 1.5 * asked
    bench.fs.release(handle)


@pytest.mark.parametrize(("offset", "copies"), [(1024 * MiB, 8), (512 * MiB + 12345, 63)], ids=["append", "middle"])
def test_4_kib_in_a_gibibyte_uploads_at_most_two_parts(bench: Bench, offset: int, copies: int) -> None:
    part = 16 * MiB
    upload = bench.store.create_upload("huge")
    zeros = bytes(part)
    bench.store.complete_upload("huge", upload, [(n, bench.store.upload_part("huge", upload, n, zeros)) for n in range(1, 65)])
    bench.reset()
    bench.store.counters.bytes_up = 0
    handle = bench.fs.open(bench.walk("huge"), os.O_RDWR)
    bench.fs.write(handle, offset, b"y" * 4096)
    bench.fs.flush(handle)
    assert bench.store.counters.bytes_up <= 2 * part
    assert bench.requests["UploadPartCopy"] == copies, "as large as they can be when nothing more is sent for it"
    assert bytes(bench.fs.read(handle, offset - 1, 4098))[1:4097] == b"y" * 4096
    bench.fs.release(handle)


def test_attributes_set_one_after_the_other_are_one_copy(bench: Bench) -> None:
    ino = bench.write("file", b"data")
    bench.reset()
    bench.fs.setattr(ino, SetAttr(mode=0o600))
    bench.fs.setattr(ino, SetAttr(uid=1, gid=1))
    bench.fs.setattr(ino, SetAttr(mtime_ns=10**18))
    assert not bench.fs.sync_all()
    assert bench.requests["CopyObject"] == 1
    metadata = bench.store.head("file").metadata
    assert metadata is not None
    assert (metadata["mode"], metadata["uid"], metadata["mtime"]) == (str(0o100600), "1", "1000000000.000000000")


def test_attributes_set_before_close_go_up_with_the_data(bench: Bench) -> None:
    bench.names("")
    handle, node = bench.fs.create(ROOT_INO, b"file", 0o644, os.O_WRONLY, ME)
    bench.fs.write(handle, 0, b"data")
    bench.fs.setattr(node.ino, SetAttr(mtime_ns=10**18))
    bench.fs.flush(handle)
    bench.fs.release(handle)
    assert "CopyObject" not in bench.requests
    assert bench.requests["PutObject"] == 2  # the file, and once per directory the marker that says its entries have attributes


def test_a_read_of_a_replaced_object_is_estale_after_one_request(bench: Bench) -> None:
    bench.store.put("file", b"one" * 100_000)
    handle = bench.fs.open(bench.walk("file"), os.O_RDWR)
    bench.fs.write(handle, 0, b"x")  # a change on top of the version that is about to go
    bench.store.put("file", b"two" * 100_000)
    bench.reset()
    with pytest.raises(OSError) as failed:
        bench.fs.read(handle, 0, 4096)
    assert failed.value.errno == errno.ESTALE
    assert bench.requests == {"GetObject": 1}
    with pytest.raises(OSError):
        bench.fs.flush(handle)
    bench.fs.release(handle)
    conflicts = [info.key for info in bench.store.list("").objects if ".conflict-" in info.key]
    assert len(conflicts) == 1


def test_files_below_a_renamed_directory_stay_open(bench: Bench) -> None:
    part = 5 * MiB
    upload = bench.store.create_upload("old/large")
    parts = [(n, bench.store.upload_part("old/large", upload, n, bytes([n]) * part)) for n in (1, 2)]
    bench.store.complete_upload("old/large", upload, parts)
    bench.store.put("old/small", b"small")
    handle = bench.fs.open(bench.walk("old/large"), os.O_RDWR)
    bench.fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert bytes(bench.fs.read(handle, part - 1, 2)) == b"\1\2"
    bench.fs.write(handle, 0, b"x")
    bench.fs.flush(handle)
    bench.fs.release(handle)
    assert bench.read("new/small") == b"small"
    assert bytes(bench.store.get("new/large", limit=2)[1]) == b"x\1"
    assert [info.key for info in bench.store.list("").objects] == ["new/", "new/large", "new/small"]


def test_a_file_that_is_changed_while_it_is_renamed_keeps_both(bench: Bench) -> None:
    bench.write("old", b"base" * 1000)
    handle = bench.fs.open(bench.walk("old"), os.O_RDWR)
    bench.fs.write(handle, 0, b"X")
    bench.fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert bytes(bench.fs.read(handle, 0, 4)) == b"Xase"
    bench.fs.flush(handle)
    bench.fs.release(handle)
    assert bytes(bench.store.get("new")[1]) == b"Xase" + b"base" * 999
    assert [info.key for info in bench.store.list("").objects] == ["new"]


def rewrite(bench: Bench, ino: int, data: bytes) -> None:
    """As a shell's `>` on an existing file: O_TRUNC reaches a filesystem as an open and a truncate."""
    handle = bench.fs.open(ino, os.O_WRONLY)
    bench.fs.setattr(ino, SetAttr(size=0))
    bench.fs.write(handle, 0, data)
    bench.fs.flush(handle)
    bench.fs.flush(handle)  # a descriptor that was dup'ed
    bench.fs.release(handle)


def append(bench: Bench, ino: int, data: bytes) -> None:
    handle = bench.fs.open(ino, os.O_WRONLY | os.O_APPEND)
    bench.fs.write(handle, bench.fs.getattr(ino).size, data)
    bench.fs.flush(handle)
    bench.fs.release(handle)


def test_rewriting_with_the_same_content_is_one_request(bench: Bench) -> None:
    ino = bench.write("file", b"x" * 4096)
    bench.reset()
    rewrite(bench, ino, b"x" * 4096)
    assert bench.requests == {"PutObject": 1}


def test_a_hundred_small_appends_are_a_hundred_small_puts(bench: Bench) -> None:
    ino = bench.write("log", b"")
    bench.reset()
    for number in range(100):
        append(bench, ino, b"%07d\n" % number)
    # Each is conditional on the version before; one question more: does the store heed conditions?
    assert bench.requests == {"PutObject": 101}
    assert bench.read("log") == b"".join(b"%07d\n" % number for number in range(100))


def test_in_back_mode_a_hundred_small_appends_are_few_puts(tmp_path: Path) -> None:
    store = MemoryStore()
    bench = Bench(make(store, tmp_path, write_mode="back"), store)
    ino = bench.write("log", b"")
    for number in range(100):
        append(bench, ino, b"%07d\n" % number)
    assert not bench.fs.sync_all()
    bench.fs.close()
    assert bytes(store.get("log")[1]) == b"".join(b"%07d\n" % number for number in range(100))
    assert bench.requests.get("PutObject", 0) <= 5
