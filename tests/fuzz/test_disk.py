"""Fuzz: what lies on disk. A journal and a cache file that something has damaged."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluicefs.cache.segment import Damaged, Segment, digest_of, size_in
from sluicefs.config import Config
from sluicefs.fs.filesystem import FileSystem
from sluicefs.staging import Staging, checks
from sluicefs.staging.journal import Journal, Record
from sluicefs.store.memory import MemoryStore
from tests.fuzz import FEW, FUZZ

BODY = bytes(range(256)) * 40
GOOD = {"dir/one": BODY, "two": BODY}
ABOUT = {"bucket": "data", "endpoint": "http://localhost"}


def left_behind(root: str) -> str:
    """The folder of a mount that died: two files unsent, one in a data file, and an upload that was begun."""
    folder = os.path.join(root, "mount-0123456789ab")
    os.mkdir(folder, 0o700)
    journal = Journal(folder)
    journal.describe(ABOUT)
    spans = [(0, len(BODY))]
    sums = [checks.of_bytes(BODY)]
    journal.put(Record("one", "dir/one", len(BODY), changed=spans, present=spans, sums=sums, at=1.0), BODY)
    with open(os.path.join(folder, "data-two"), "w+b", buffering=0) as file:
        file.write(BODY)
        sums = [checks.of_file(file.fileno(), spans)]
    journal.put(Record("two", "two", len(BODY), changed=spans, present=spans, sums=sums, at=2.0, file="data-two"))
    journal.upload_has_id(journal.upload_begins("three"), "an id")
    journal.close()
    return folder


def mount_again(root: str) -> dict[str, bytes]:
    """A mount over what is there: it must start. Its bucket afterwards."""
    store = MemoryStore()
    fs = FileSystem(Config(bucket="data", mountpoint="/nowhere", timeout=2.0, stop_timeout=2.0), store, root)
    try:
        fs.take_over()
        fs.sync_all()
        return {info.key: bytes(store.get(info.key)[1]) for info in store.list("").objects}
    finally:
        fs.close()


def test_undamaged_it_all_arrives() -> None:
    with tempfile.TemporaryDirectory() as root:
        left_behind(root)
        assert mount_again(root) == GOOD
        assert os.listdir(root) == []


@FEW
@given(st.lists(st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4), st.booleans())
@example([(0, b"\0" * 40)], False)
@example([(24, b"\xff" * 40)], False)
@example([(7966, b"\x80")], False)
def test_a_mount_starts_over_a_journal_with_damaged_bytes(damage: list[tuple[int, bytes]], cut: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = left_behind(root)
        path = os.path.join(folder, "journal")
        with open(path, "r+b") as file:
            size = os.path.getsize(path)
            for at, data in damage:
                file.seek(at % size)
                file.write(data)
            file.truncate(max(1, damage[0][0] % size) if cut else size)
        found = mount_again(root)
        assert found.items() <= GOOD.items(), "nothing damaged is sent"
        assert "two" in found or os.path.exists(os.path.join(folder, "data-two"))


def left_by_a_kill(root: str) -> str:
    """The same, with all of it in the write-ahead log still, behind records that were struck out again."""
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = os.path.join(elsewhere, "live")
        os.mkdir(folder)
        journal = Journal(folder)
        journal.describe(ABOUT)
        spans = [(0, len(BODY))]
        old = BODY[::-1]
        for number, key in enumerate(GOOD):
            journal.put(Record(f"old{number}", key, len(old), present=spans, sums=[checks.of_bytes(old)]), old)
            journal.forget(f"old{number}")
        sums = [checks.of_bytes(BODY)]
        journal.put(Record("one", "dir/one", len(BODY), changed=spans, present=spans, sums=sums), BODY)
        with open(os.path.join(folder, "data-two"), "w+b", buffering=0) as file:
            file.write(BODY)
            sums = [checks.of_file(file.fileno(), spans)]
        journal.put(Record("two", "two", len(BODY), changed=spans, present=spans, sums=sums, file="data-two"))
        killed = os.path.join(root, "mount-0123456789ab")
        shutil.copytree(folder, killed)
        os.chmod(killed, 0o700)
        journal.close()
    return killed


@FEW
@given(st.lists(st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=40)), max_size=3), st.booleans())
@example([], False)
@example([(0, b"\xff" * 32)], False)
@example([(100_000, b"\xff")], True)
def test_a_damaged_write_ahead_log_loses_nothing_in_silence_and_brings_nothing_back(
    damage: list[tuple[int, bytes]], cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = left_by_a_kill(root)
        path = os.path.join(folder, "journal-wal")
        with open(path, "r+b") as file:
            size = os.path.getsize(path)
            for at, data in damage:
                file.seek(at % size)
                file.write(data)
            file.truncate(damage[0][0] % size if cut and damage else size)
        found = mount_again(root)
        assert found.items() <= GOOD.items(), "neither damaged nor outdated data is sent"
        if found != GOOD:
            assert damage and not found, "all of it or none"
            with open(os.path.join(folder, "data-two"), "rb") as file:
                assert file.read() == BODY


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 500, b"SQLite format 3\0"])
def test_a_journal_that_is_none_is_kept_and_said(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = left_behind(str(tmp_path))
    Path(folder, "journal").write_bytes(content)
    assert mount_again(str(tmp_path)) == {}
    assert Path(folder, "data-two").read_bytes() == BODY
    assert "unsent data" in caplog.text and folder in caplog.text


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = [
    "base",
    "base_limit",
    "replaced",
    "changed",
    "present",
    "etag",
    "replaces",
    "metadata",
    "content_type",
    "complete",
    "error",
]
VALUE = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=8))


@FEW
@given(
    st.one_of(
        st.tuples(st.sampled_from(["key", "at", "pending", "size", "head", "file", "body"]), VALUE),
        st.tuples(st.sampled_from(FIELDS), JSON),
    )
)
@example(("head", "{"))
@example(("head", "[" * 100_000))
@example(("file", "../../../etc/passwd"))
@example(("size", -1))
@example(("size", 2**55))
@example(("key", b"\xff\xfe"))
@example(("changed", [[5, 2]]))
@example(("present", [[0, 2**70]]))
@example(("present", [[0, 2**62]]))
@example(("base", {"key": "k"}))
@example(("metadata", {"mode": 5}))
def test_a_damaged_row_harms_no_other(damage: tuple[str, Any]) -> None:
    name, value = damage
    with tempfile.TemporaryDirectory() as root:
        folder = left_behind(root)
        base = sqlite3.connect(os.path.join(folder, "journal"))
        if name in FIELDS:
            head = json.loads(base.execute("SELECT head FROM files WHERE id='one'").fetchone()[0])
            name, value = "head", json.dumps(head | {name: value})
        try:
            base.execute(f"UPDATE files SET {name}=? WHERE id='one'", (value,))
            base.commit()
        except sqlite3.IntegrityError:  # SQLite itself refuses it
            pass
        finally:
            base.close()
        found = mount_again(root)
        assert found.items() <= GOOD.items(), "nothing damaged is sent"
        assert "two" in found or value == "two"


@FEW
@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_a_damaged_data_file_is_not_sent_and_stays(at: int, change: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = os.path.join(left_behind(root), "data-two")
        damaged = bytearray(BODY)
        damaged[at] ^= change
        Path(path).write_bytes(damaged)
        assert mount_again(root) == {"dir/one": BODY}
        assert Path(path).read_bytes() == damaged


@FEW
@given(VALUE, VALUE, st.one_of(st.floats(), VALUE))
@example(b"\xff", "id", 1.0)
@example("three", 5, "never")
def test_a_damaged_upload_is_passed_over(key: Any, upload_id: Any, at: Any) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = left_behind(root)
        base = sqlite3.connect(os.path.join(folder, "journal"))
        try:
            base.execute("UPDATE uploads SET key=?, upload_id=?, at=?", (key, upload_id, at))
            base.commit()
        except sqlite3.IntegrityError:
            pass
        finally:
            base.close()
        assert mount_again(root) == GOOD


def test_a_data_file_that_a_damaged_row_may_name_is_kept(tmp_path: Path) -> None:
    folder = left_behind(str(tmp_path))
    base = sqlite3.connect(os.path.join(folder, "journal"))
    base.execute("UPDATE files SET file=NULL, head='?' WHERE id='two'")
    base.commit()
    base.close()
    staging = Staging(str(tmp_path))
    assert len(staging.adopt()) == 1
    staging.close()
    assert Path(folder, "data-two").read_bytes() == BODY


SIZE = 300_000
CONTENT = bytes((i * 31 + i // 251) % 256 for i in range(SIZE))
DIGEST = digest_of("http://h", "b", "k", "e")


@FUZZ
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(0, 4200), st.integers(0, 131072 + SIZE)), st.binary(min_size=1, max_size=600)),
        max_size=4,
    ),
    st.one_of(st.none(), st.integers(0, 131072 + SIZE + 10)),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)), min_size=1, max_size=4),
)
@example([(2048, b"\1" * 600)], None, [(0, SIZE)])
@example([(2048 + 24, b"\1" * 8)], None, [(0, SIZE)])
def test_a_damaged_cache_file_never_gives_a_wrong_byte(
    damage: list[tuple[int, bytes]], length: int | None, reads: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        segment = Segment(fd, DIGEST, 0, SIZE)
        segment.create()
        segment.load()
        segment.write(0, memoryview(CONTENT), segment.missing(0, SIZE), direct=False)
        for at, data in damage:
            os.pwrite(fd, data, at)
        if length is not None:
            os.ftruncate(fd, length)
        for offset, wanted in reads:
            space = memoryview(bytearray(min(wanted, SIZE - offset)))
            done = 0

            def landed(count: int) -> None:
                nonlocal done
                done = count

            try:
                again = Segment(fd, DIGEST, 0, SIZE)
                again.load()
                again.read(offset, space, 0, landed)
            except Damaged:
                pass
            assert space[:done] == CONTENT[offset : offset + done]
        try:
            assert size_in(fd) == SIZE or damage
            again = Segment(fd, DIGEST, 0, SIZE)
            again.load()
            again.heal()
            again = Segment(fd, DIGEST, 0, SIZE)
            again.load()
            again.read(0, memoryview(bytearray(SIZE)), 0, lambda count: None)
        except Damaged:
            assert damage or length is not None
