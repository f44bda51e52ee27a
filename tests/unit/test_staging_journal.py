"""The journal and the folders it lies in: what survives, whose it is, and when it is cleaned up."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sluicefs.engine import DirtyMemory
from sluicefs.fs.draft import INLINE, Draft
from sluicefs.staging import Base, Journal, Record, Staging

MiB = 1024 * 1024
PART = 5 * MiB


def record(**fields: object) -> Record:
    return Record(**{"id": "1", "key": "k", "size": 3, **fields})  # type: ignore[arg-type]


def test_a_record_is_read_back_as_it_was_written_by_another_process(tmp_path: Path) -> None:
    full = record(
        base=Base("k", "e", 9), base_limit=4, replaced=False, changed=[(1, 2)], present=[(1, 2)], etag="e", replaces=True,
        metadata={"mode": "33188"}, content_type="a/b", complete=False, pending=False, error="why", at=5.0, sums=["0"],
    )  # fmt: skip
    code = "import sys, os; sys.path[:0] = sys.argv[2:]; from sluicefs.staging import Journal, Record, Base\n"
    code += f"j = Journal(sys.argv[1]); j.put({full!r}, b'body'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *sys.path], check=False)
    journal = Journal(str(tmp_path))
    assert journal.records() == [full]
    assert journal.body("1") == b"body"
    journal.put(record(id="1", key="other"), keep_body=True)
    assert [found.key for found in journal.records()] == ["other"] and journal.body("1") == b"body"
    journal.forget("1")
    assert journal.empty()
    journal.close()


def test_many_threads_share_a_commit_and_none_is_lost(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))

    def work(number: int) -> None:
        for index in range(20):
            journal.put(record(id=f"{number}-{index}"), b"x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.records()) == 160
    journal.close()


def test_a_journal_that_cannot_grow_says_enospc_and_keeps_what_it_has(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.put(record(id="kept"), b"x")
    journal._base.execute("PRAGMA max_page_count=20")
    with pytest.raises(OSError) as failed:
        journal.put(record(id="large"), bytes(MiB))
    assert failed.value.errno == errno.ENOSPC
    assert [found.id for found in journal.records()] == ["kept"]
    journal.close()


def left_by_a_kill(folder: Path, commits: int) -> Path:
    """A mount's folder whose journal has `commits` records, all of them in the write-ahead log still."""
    mount = folder / "mount-0123456789ab"
    mount.mkdir()
    code = "import sys, os; sys.path[:0] = sys.argv[3:]; from sluicefs.staging import Journal, Record\n"
    code += "j = Journal(sys.argv[1]); j.describe({'bucket': 'b'})\n"
    code += "for n in range(int(sys.argv[2])): j.put(Record(str(n), f'k{n}', 4), b'data')\n"
    code += "os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(mount), str(commits), *sys.path], check=False)
    assert (mount / "journal-wal").stat().st_size > 0
    return mount


def test_a_write_ahead_log_damaged_anywhere_is_noticed_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite reads as far as it can and says nothing of the rest."""
    mount = left_by_a_kill(tmp_path, 6)
    good = (mount / "journal-wal").read_bytes()
    for at in range(11, len(good), 8192 // 3):
        damaged = bytearray(good)
        damaged[at] ^= 1
        (mount / "journal-wal").write_bytes(damaged)
        before = {path.name: path.read_bytes() for path in mount.iterdir() if path.name != "journal-shm"}
        caplog.clear()
        staging = Staging(str(tmp_path))
        assert staging.adopt() == [], at
        staging.close()
        assert "mount-0123456789ab" in caplog.text
        assert {path.name: path.read_bytes() for path in mount.iterdir() if path.name != "journal-shm"} == before
    for part in (good[: len(good) // 2], b""):
        (mount / "journal-wal").write_bytes(part)
        assert Staging(str(tmp_path)).adopt() == []
    (mount / "journal-wal").write_bytes(good)
    staging = Staging(str(tmp_path))
    (left,) = staging.adopt()
    assert [record.key for record in left.journal.records()] == [f"k{number}" for number in range(6)]
    staging.close()


@pytest.mark.parametrize("count", [b"", b"00", b"9999999999 0123456789abcdef\n", None])
def test_a_damaged_count_of_commits_costs_no_record(
    tmp_path: Path, count: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    mount = left_by_a_kill(tmp_path, 3)
    if count is None:
        (mount / "journal-commits").unlink()  # as an earlier version left it
    else:
        (mount / "journal-commits").write_bytes(count)
    with caplog.at_level(logging.WARNING):
        (left,) = Staging(str(tmp_path)).adopt()
    assert len(left.journal.records()) == 3
    assert bool(caplog.text) == (count is not None)


def test_a_kill_between_a_commit_and_its_count_is_no_damage(tmp_path: Path) -> None:
    mount = left_by_a_kill(tmp_path, 3)
    counted = (mount / "journal-commits").read_bytes()
    again = Journal(str(mount))
    again.put(record(id="last"), b"x")
    again.close()
    (mount / "journal-commits").write_bytes(counted)
    (left,) = Staging(str(tmp_path)).adopt()
    assert len(left.journal.records()) == 4


def test_nothing_is_made_until_there_is_something_to_keep(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    assert staging.adopt() == [] and staging.journals == []
    staging.close()
    assert list(tmp_path.iterdir()) == []


def test_folders_are_private_and_gone_when_they_owe_nothing(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path), {"bucket": "b"})
    row = staging.journal.upload_begins("key")
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    staging.journal.upload_ended(row)
    staging.close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_folders_of_mounts_that_are_gone_are_taken_over(tmp_path: Path) -> None:
    dead, alive, next_one = (Staging(str(tmp_path), {"bucket": "b"}) for _ in range(3))
    dead.journal.put(record(file="data-kept"))
    folder = Path(dead.journal.folder)
    (folder / "data-kept").write_bytes(b"abc")
    (folder / "data-stale").write_bytes(b"abc")
    alive.journal.put(record(id="2"))
    alive.journal.upload_begins("elsewhere")
    dead.close()
    (left,) = next_one.adopt()
    assert [found.id for found in left.journal.records()] == ["1"]
    assert (folder / "data-kept").exists() and not (folder / "data-stale").exists()
    assert [upload.key for upload in next_one.others_uploads()] == ["elsewhere"]
    assert Staging(str(tmp_path)).adopt() == [], "it is taken"
    left.journal.forget("1")
    next_one.close()
    assert [Path(alive.journal.folder)] == list(tmp_path.iterdir())
    alive.journal.forget("2")
    alive.close()


# --- drafts in the journal


def draft(staging: Staging, base: object = None, read_base: object = None) -> Draft:
    memory = DirtyMemory(64 * MiB)
    return Draft(base, 0, part_size=PART, memory=memory, staging=staging, read_base=read_base)  # type: ignore[arg-type]


def crash_and_restore(staging: Staging, before: Draft) -> Draft:
    """What the next process makes of it."""
    before.let_go()
    staging.close()
    (left,) = staging.adopt()
    (found,) = left.journal.records()
    after = draft(staging)
    after.restore(left.journal, found)
    return after


@pytest.mark.parametrize("size", [0, 100, INLINE, INLINE + 1, 12 * MiB])
def test_what_was_saved_is_there_after_a_crash_and_later_writes_do_not_tear_it(tmp_path: Path, size: int) -> None:
    staging = Staging(str(tmp_path))
    data = os.urandom(size)
    first = draft(staging)
    first.write(0, data)
    first.save(record())
    assert first.is_saved
    first.truncate(0)
    first.write(0, b"later " * max(1, size // 6))
    while first.spill():  # memory is full: later bytes go to disk, not over those that were saved
        pass
    assert not first.is_saved
    second = crash_and_restore(staging, first)
    assert second.size == size and bytes(second.read(0, size) or b"") == data
    assert second.is_saved
    second.write(size, b"appended")
    second.save(second.saved[1] if second.saved else record())
    third = crash_and_restore(staging, second)
    assert bytes(third.read(0, size + 8) or b"") == data + b"appended"
    third.close()
    staging.close()
    assert list(tmp_path.iterdir()) == []


def test_a_record_whose_bytes_are_gone_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    first = draft(staging)
    first.write(0, os.urandom(2 * MiB))
    first.save(record())
    assert first.saved is not None and first.saved[1].file is not None
    os.truncate(Path(staging.journal.folder, first.saved[1].file), MiB)
    with pytest.raises(OSError):
        crash_and_restore(staging, first)
    staging.close()


def test_saving_again_replaces_the_data_file(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    first = draft(staging)
    for number in range(3):
        first.write(0, bytes([number]) * MiB)
        first.save(record())
    assert len([path for path in Path(staging.journal.folder).iterdir() if path.name.startswith("data-")]) == 1
    first.truncate(10)
    first.truncate(0)
    first.write(0, b"small")
    first.save(record())
    second = crash_and_restore(staging, first)
    assert bytes(second.read(0, 10) or b"") == b"small"
    second.close()
    staging.close()


def test_what_was_saved_stays_whole_when_saving_less_of_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(str(tmp_path))
    data = os.urandom(2 * MiB)
    first = draft(staging)
    first.write(0, data)
    first.save(record())
    first.truncate(MiB)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(staging.journal, "put", full)
        first.save(record())
    first.write(MiB, b"later" * 1000)
    while first.spill():
        pass
    second = crash_and_restore(staging, first)
    assert bytes(second.read(0, 3 * MiB) or b"") == data
    second.close()
    staging.close()
