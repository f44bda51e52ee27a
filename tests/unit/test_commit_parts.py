"""What a filesystem over the reference store sends of large files, and when."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.config import Config, MiB
from sluicefs.errors import AccessDeniedError, ConditionFailedError, UnreachableError
from sluicefs.fs import parts, writeback
from sluicefs.fs.draft import zeros
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore

GiB = 1024 * MiB
PART = 5 * MiB
ME = Caller(os.getuid(), os.getgid())


class Strict(MemoryStore):
    """The reference store; notes the sizes of parts as they are sent or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, dict[int, int]] = {}
        self.copied: dict[str, dict[int, int]] = {}
        self.gets: list[tuple[int, int]] = []
        self.lax = False  # does it ignore a condition when an upload is completed?
        self.on_part = lambda: None

    def get_into(self, key, offset, buffer, **options):  # type: ignore[no-untyped-def]
        self.gets.append((offset, len(memoryview(buffer))))
        return super().get_into(key, offset, buffer, **options)

    def upload_part(self, key, upload_id, number, body):  # type: ignore[no-untyped-def]
        self.on_part()
        self.sent.setdefault(upload_id, {})[number] = len(memoryview(body))
        return super().upload_part(key, upload_id, number, body)

    def copy_part(self, key, upload_id, number, source, offset, length):  # type: ignore[no-untyped-def]
        self.copied.setdefault(upload_id, {})[number] = length
        return super().copy_part(key, upload_id, number, source, offset, length)

    def complete_upload(self, key, upload_id, parts, **conditions):  # type: ignore[no-untyped-def]
        sizes = self.copied.get(upload_id, {}) | self.sent.get(upload_id, {})
        lengths = [sizes[number] for number, _ in parts]
        assert set(lengths[:-1]) <= {lengths[0]} and lengths[-1] <= lengths[0], "R2's rule"
        if self.lax:
            conditions.pop("if_match")
        return super().complete_upload(key, upload_id, parts, **conditions)

    @property
    def sent_bytes(self) -> int:
        return sum(sum(sizes.values()) for sizes in self.sent.values())


class Bench:
    """A filesystem over `Strict`, and one file in it."""

    def __init__(self, folder: Path, **options: object):
        self.store = Strict()
        given = {"part_size": PART, "memory": 64 * MiB, "attr_ttl": 3600.0, **options}
        self.fs = FileSystem(Config("bucket", "/nowhere", **given), self.store, str(folder))  # type: ignore[arg-type]

    def create(self, name: bytes = b"file") -> int:
        return self.fs.create(ROOT_INO, name, 0o644, os.O_RDWR | os.O_CREAT, ME)[0]

    def open(self, name: bytes = b"file") -> int:
        return self.fs.open(self.fs.lookup(ROOT_INO, name).ino, os.O_RDWR)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        for start in range(0, len(data), 128 * 1024):
            self.fs.write(handle, offset + start, data[start : start + 128 * 1024])

    def end(self, handle: int) -> None:
        self.fs.flush(handle)
        self.fs.release(handle)

    def stored(self, key: str = "file") -> bytes:
        return bytes(self.store.get(key)[1])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    assert not made.fs.sync_all()
    made.fs.close()
    assert made.store.list_uploads("") == []
    assert list(tmp_path.iterdir()) == [], "staging is empty at the end"


def test_a_file_that_outgrows_its_parts_goes_on_in_larger_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS", 8)
    data = os.urandom(92 * MiB)
    handle = bench.create()
    bench.write(handle, 0, data[: 45 * MiB])
    assert bench.stored() == data[: 40 * MiB], "8 parts were finished"
    assert bytes(bench.fs.read(handle, 40 * MiB - 5, 10)) == data[40 * MiB - 5 : 40 * MiB + 5]
    bench.write(handle, 45 * MiB, data[45 * MiB :])
    bench.end(handle)
    assert bench.stored() == data
    small, large = bench.store.sent.values()
    assert set(small.values()) == {PART} and max(large.values()) == 3 * PART
    assert list(bench.store.copied.values()) == [{1: 3 * PART, 2: 3 * PART}], "what was there is copied by the server"
    assert bench.store.sent_bytes == 92 * MiB + 10 * MiB, "and only what the larger parts cut is sent again"


def test_a_file_cut_longer_than_its_parts_can_be_is_sent_in_larger_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS", 4)
    data = os.urandom(16 * MiB)
    handle = bench.create()
    bench.write(handle, 0, data)
    bench.fs.files.truncate(bench.fs.lookup(ROOT_INO, b"file"), 41 * MiB)
    bench.end(handle)
    assert bench.stored() == data + bytes(25 * MiB)
    *_, last = bench.store.sent.values()  # parts of an upload before it may never have gone: it was given up
    assert max(last.values()) > PART


def test_what_is_appended_after_an_fsync_is_sent_while_it_is_written(bench: Bench) -> None:
    data = os.urandom(44 * MiB)
    handle = bench.create()
    bench.write(handle, 0, data[: 12 * MiB])
    bench.fs.fsync(handle)
    bench.write(handle, 12 * MiB, data[12 * MiB :])
    (first, second) = bench.store.sent.values()
    assert len(first) == 3 and len(second) >= 2
    bench.end(handle)
    assert bench.stored() == data
    assert list(bench.store.copied.values()) == [{1: PART, 2: PART}]


def test_a_part_that_was_sent_and_written_again_is_sent_again(bench: Bench) -> None:
    data = bytearray(os.urandom(18 * MiB))
    handle = bench.create()
    bench.write(handle, 0, data)
    data[3:5] = b"xy"
    bench.write(handle, 3, b"xy")
    bench.fs.fsync(handle)
    assert bench.stored() == data
    data[PART : PART + 5] = b"again"
    bench.write(handle, PART, b"again")
    bench.write(handle, len(data), b"more")
    bench.end(handle)
    assert bench.stored() == data + b"more"


@pytest.mark.parametrize("size", [0, 7, PART, PART + 1, 2 * PART + 17, 25 * MiB])
def test_truncated_with_parts_under_way(bench: Bench, size: int) -> None:
    data = os.urandom(18 * MiB)
    handle = bench.create()
    node = bench.fs.lookup(ROOT_INO, b"file")
    bench.write(handle, 0, data)
    bench.fs.files.truncate(node, size)
    tail = os.urandom(11 * MiB)
    bench.write(handle, size, tail)
    bench.end(handle)
    assert bench.stored() == (data[:size] + bytes(max(0, size - len(data)))) + tail


def test_random_order_overlaps_and_holes(bench: Bench) -> None:
    expected = bytearray(30 * MiB)
    handle = bench.create()
    import random

    dice = random.Random(5)
    size = 0
    for _ in range(300):
        offset, length = dice.randrange(29 * MiB), dice.randrange(1, 200_000)
        piece = dice.randbytes(length)
        expected[offset : offset + length] = piece
        size = max(size, offset + length)
        bench.write(handle, offset, piece)
        start = dice.randrange(size)
        assert bytes(bench.fs.read(handle, start, 50_000)) == expected[start : min(size, start + 50_000)]
    bench.end(handle)
    assert bench.stored() == expected[:size]


def test_changing_4_kib_sends_one_part_and_copies_the_rest(bench: Bench) -> None:
    data = bytearray(os.urandom(41 * MiB))
    handle = bench.create()
    bench.write(handle, 0, data)
    bench.end(handle)
    before = bench.store.sent_bytes
    handle = bench.open()
    bench.write(handle, 12 * MiB, b"z" * 4096)
    bench.end(handle)
    data[12 * MiB : 12 * MiB + 4096] = b"z" * 4096
    assert bench.stored() == data
    assert bench.store.sent_bytes - before == PART
    handle = bench.open()
    bench.write(handle, len(data), b"a" * 4096)
    bench.end(handle)
    assert bench.stored() == data + b"a" * 4096
    assert bench.store.sent_bytes - before == PART + (41 * MiB) % PART + 4096


def test_memory_stays_within_its_limit_while_a_large_file_is_written_in_random_order(bench: Bench) -> None:
    handle = bench.create()
    piece = os.urandom(MiB)
    limit = bench.fs.core.dirty.limit
    for index in range(80):
        bench.write(handle, (index * 37 % 80) * MiB, piece)
        assert bench.fs.core.dirty.used <= limit
    bench.end(handle)
    assert bench.stored() == piece * 80


@pytest.mark.parametrize("memory", [64 * MiB, 512 * MiB], ids=["spilled", "in memory"])
def test_bytes_of_parts_that_were_sent_are_kept_until_the_upload_is_complete(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, memory=memory)
    data = os.urandom(43 * MiB)
    handle = bench.create()
    bench.write(handle, 0, data)
    written = list(tmp_path.glob("mount-*/data-*"))
    assert bool(written) == (memory == 64 * MiB), "the disk is not needed while half of the memory is free"

    def refuse(*_: object, **__: object) -> str:
        raise AccessDeniedError("no", code="AccessDenied", status=403)

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "complete_upload", refuse)
        with pytest.raises(OSError):
            bench.fs.flush(handle)
    assert bench.store.list_uploads("") == [], "so its parts are gone"
    (record,) = bench.fs.core.staging.journal.records()
    assert record.present == [(0, len(data))]
    staged = (tmp_path / next(tmp_path.glob("mount-*")).name / (record.file or "")).read_bytes()
    assert staged == data
    assert bytes(bench.fs.read(handle, 7 * MiB, MiB)) == data[7 * MiB : 8 * MiB]
    bench.end(handle)
    assert bench.stored() == data
    bench.fs.close()


def test_large_copied_parts_are_given_up_where_more_was_changed_before_they_could_be_completed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = bytearray(os.urandom(101 * MiB))
    bench.store.put("file", data)
    handle = bench.open()
    bench.write(handle, len(data), b"more")
    data += b"more"

    def away(*_: object, **__: object) -> str:
        raise UnreachableError("away")

    complete = bench.store.complete_upload
    bench.store.complete_upload = away  # type: ignore[method-assign]
    with pytest.raises(OSError):
        bench.fs.flush(handle)
    (lengths,) = [set(sizes.values()) for sizes in bench.store.copied.values()]
    assert lengths == {2 * PART}
    bench.store.complete_upload = complete  # type: ignore[method-assign]
    for offset in (30 * MiB, 60 * MiB):
        bench.write(handle, offset, b"again")
        data[offset : offset + 5] = b"again"
    before = bench.store.sent_bytes
    bench.end(handle)
    assert bench.stored() == data
    assert bench.store.sent_bytes - before <= 3 * PART, "a chunk for each change"
    bench.fs.close()


def test_a_part_that_is_written_again_after_it_was_cut_off_is_not_taken_from_the_disk(tmp_path: Path) -> None:
    """The disk has old bytes at its place, and it may be sent without going there again."""
    bench = Bench(tmp_path)
    handle = bench.create()
    old, new = os.urandom(31 * MiB), os.urandom(21 * MiB)
    bench.write(handle, 0, old)
    bench.fs.setattr(bench.fs.lookup(ROOT_INO, b"file").ino, SetAttr(size=PART))
    bench.write(handle, PART, new[: PART + MiB])
    (stream,) = bench.fs.core.committer.multipart.streams.values()
    for part in list(stream.pending.values()):  # memory is not half full: this one is sent and not staged
        part.result()
    bench.write(handle, 2 * PART + MiB, new[PART + MiB :])
    expected = old[:PART] + new
    assert bytes(bench.fs.read(handle, 6 * MiB, MiB)) == expected[6 * MiB : 7 * MiB]
    bench.end(handle)
    assert bench.stored() == expected
    bench.fs.close()


def test_an_endpoint_that_ignores_conditions_is_found_out_and_looked_at_first(tmp_path: Path) -> None:
    class Lax(MemoryStore):
        def put(self, key, body, **options):  # type: ignore[no-untyped-def]
            return super().put(key, body, **{**options, "if_match": None})

    store = Lax()
    fs = FileSystem(Config("bucket", "/nowhere", attr_ttl=3600.0), store, str(tmp_path))
    store.put("file", b"old")
    handle = fs.open(fs.lookup(ROOT_INO, b"file").ino, os.O_RDWR)
    fs.write(handle, 3, b" ours")
    assert bytes(fs.read(handle, 0, 10)) == b"old ours"
    store.put("file", b"theirs")
    with pytest.raises(OSError):
        fs.flush(handle)
    fs.release(handle)
    assert fs.core.committer.conditions.heeded is False
    assert bytes(store.get("file")[1]) == b"theirs"
    kept = [info.key for info in store.list("").objects if ".conflict-" in info.key]
    assert [bytes(store.get(key)[1]) for key in kept] == [b"old ours"]
    assert not [info.key for info in store.list("").objects if "probe" in info.key]
    fs.close()


def test_the_base_is_looked_at_before_parts_are_copied(bench: Bench) -> None:
    handle = bench.create()
    bench.write(handle, 0, os.urandom(21 * MiB))
    bench.end(handle)
    handle = bench.open()
    bench.write(handle, 0, b"ours")
    bench.store.put("file", b"theirs")
    with pytest.raises(OSError):
        bench.fs.flush(handle)
    bench.fs.release(handle)
    assert bench.stored() == b"theirs"
    assert not bench.store.copied
    with pytest.raises(ConditionFailedError):
        bench.store.put("file", b"", if_match="other")


def test_a_copy_is_looked_at_after_it_too(bench: Bench) -> None:
    """Where the store heeds no condition when an upload is completed, HEAD tells that the object was replaced meanwhile."""
    store = bench.store
    handle = bench.create()
    bench.write(handle, 0, os.urandom(21 * MiB))
    bench.end(handle)
    handle = bench.open()
    bench.write(handle, 0, b"ours")
    store.lax = True
    store.on_part = lambda: (store.put("file", b"theirs"), setattr(store, "on_part", lambda: None))  # type: ignore[assignment]
    with pytest.raises(OSError) as failed:
        bench.fs.flush(handle)
    assert failed.value.errno == errno.ESTALE
    bench.fs.release(handle)
    assert bench.stored() == b"theirs"
    assert [info.key for info in store.list("").objects if ".conflict-" in info.key]


@pytest.mark.parametrize("size", [7, 21 * MiB], ids=["small", "parts"])
def test_a_change_of_what_someone_deleted_is_a_conflict(bench: Bench, size: int) -> None:
    data = os.urandom(size)
    handle = bench.create()
    bench.write(handle, 0, data)
    bench.end(handle)
    handle = bench.open()
    bench.fs.read(handle, 0, size)
    bench.write(handle, size, b"ours")
    bench.store.delete("file")
    with pytest.raises(OSError) as failed:
        bench.fs.flush(handle)
    assert failed.value.errno == errno.ESTALE
    bench.fs.release(handle)
    (key,) = [info.key for info in bench.store.list("").objects]
    assert key.startswith("file.conflict-") and bench.stored(key).endswith(b"ours")


def test_what_a_change_cuts_is_fetched_once_in_few_requests(bench: Bench) -> None:
    data = bytearray(os.urandom(40 * MiB))
    bench.store.put("file", data)
    gets = bench.store.gets
    handle = bench.open()
    bench.write(handle, 12 * MiB, b"z" * 4096)
    bench.end(handle)
    assert gets == [(10 * MiB, PART)]
    gets.clear()
    handle = bench.open()
    for offset in range(20 * MiB, 25 * MiB, 64 * 1024):
        bench.write(handle, offset, b"y" * 100)
        data[offset : offset + 100] = b"y" * 100
    bench.end(handle)
    assert len(gets) == 1, "small changes near to each other are one GET"
    data[12 * MiB : 12 * MiB + 4096] = b"z" * 4096
    assert bench.stored() == data


def test_zeros_take_no_memory() -> None:
    before = resident()
    view = zeros(256 * MiB)
    assert not any(view[offset] for offset in range(0, len(view), 4096))
    assert resident() - before < 16 * MiB


@pytest.mark.slow
def test_a_sparse_file_of_200_gib_takes_no_memory_and_no_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, part_size=16 * MiB)
    handle = bench.create()
    node = bench.fs.lookup(ROOT_INO, b"file")
    bench.write(handle, 0, b"begin")
    bench.fs.files.truncate(node, 200 * GiB)
    bench.write(handle, 150 * GiB, b"middle")
    bench.write(handle, 200 * GiB - 3, b"end")
    before = resident()
    bench.end(handle)
    assert resident() - before < 150 * MiB
    (lengths,) = [set(sizes.values()) for sizes in bench.store.sent.values()]
    assert max(lengths) == 32 * MiB, "10,000 parts of 16 MiB are not enough"
    info = bench.store.head("file")
    assert info.size == 200 * GiB
    for offset, expected in ((0, b"begin"), (150 * GiB, b"middle"), (200 * GiB - 3, b"end"), (100 * GiB, bytes(5))):
        found = bytearray(len(expected))
        bench.store.get_into("file", offset, found)
        assert found == expected
    # A change in the middle: all other parts are copied by the server.
    before_bytes = bench.store.sent_bytes
    handle = bench.open()
    bench.write(handle, 77 * GiB, b"changed")
    bench.end(handle)
    assert bench.store.sent_bytes - before_bytes == 32 * MiB
    bench.fs.close()


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("write_mode", ["sync", "back"])
def test_a_deadline_holds_though_parts_are_on_their_way(
    tmp_path: Path, write_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In back mode what is being sent in the background gives way first."""
    monkeypatch.setattr(writeback, "QUIET", 0.0)
    bench = Bench(tmp_path, memory=1024 * MiB, write_mode=write_mode)
    begun, go = threading.Event(), threading.Event()

    def on_part() -> None:
        begun.set()
        go.wait(60)

    bench.store.on_part = on_part  # type: ignore[method-assign]
    handle = bench.create()
    for offset in range(30 * PART - MiB, -1, -MiB):  # they are full when the first one is
        bench.fs.write(handle, offset, b"x" * MiB)
    node = bench.fs.handle(handle).node
    if write_mode == "back":
        bench.fs.flush(handle)
        while node.file.lock.acquire(blocking=False):  # until it is being sent
            node.file.lock.release()
    assert begun.wait(60)
    draft = node.draft
    assert draft is not None
    ended: list[OSError] = []

    def upload() -> None:
        with pytest.raises(OSError) as failed:
            bench.fs.files.upload(node, 0.0)
        ended.append(failed.value)

    uploading = threading.Thread(target=upload)
    uploading.start()
    while write_mode == "back" and not draft.wanted:
        time.sleep(0.01)
    if write_mode == "back":
        go.set()
    uploading.join(60)
    assert [error.errno for error in ended] == [errno.ETIMEDOUT]
    assert len(bench.store.sent.get(next(iter(bench.store._uploads)), {})) < 30
    go.set()
    bench.end(handle)
    assert not bench.fs.sync_all()
    assert bench.stored() == b"x" * (30 * PART)
    bench.fs.close()


def test_a_write_that_was_taken_in_does_not_fail_for_an_upload_that_cannot_begin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who appends would do it again."""

    def full(key: str) -> int:
        raise OSError(errno.ENOSPC, f"no room to write down that {key} is begun")

    handle = bench.create()
    with monkeypatch.context() as patch:
        patch.setattr(bench.fs.core.staging.journal, "upload_begins", full)
        bench.write(handle, 0, b"x" * 3 * PART)
        with pytest.raises(OSError) as failed:
            bench.fs.flush(handle)
        assert failed.value.errno == errno.ENOSPC
    bench.end(handle)
    assert bench.stored() == b"x" * 3 * PART
