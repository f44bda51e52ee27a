"""What a mount owes its bucket, in a SQLite file: unsent data of files, and multipart uploads that were begun.

A call that returns has its change on disk (WAL, synchronous=FULL); calls made at the same time share one fsync. It must never
hold the only word on whether bytes are good: a record counts only with the body or the data file it names.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Span = tuple[int, int]
Statement = tuple[str, Sequence[Any]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, pending INTEGER NOT NULL, size INTEGER NOT NULL,
    head TEXT NOT NULL, file TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS uploads (id INTEGER PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, upload_id TEXT);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
"""
PAGE_SIZE = 8192  # bodies of 64 KiB are fastest so


@dataclass(frozen=True, slots=True)
class Base:
    """The version of an object that a change is based on."""

    key: str
    etag: str
    size: int


@dataclass(slots=True)
class Record:
    """A file's unsent data: `size` bytes, of which [0, base_limit) show `base` outside `changed`.

    The bytes of `present` are in the data file `file` at their own offsets, or one after the other in the body. What is in
    `changed` and not `present` is zeros. `etag`: the object under `key` when this was stored (None: there was none of this
    file). `complete`: `metadata` is all there is. `replaces`: another object is under `key`, which this one takes the place
    of. `pending`: to be sent without anybody asking; else the application was told of the failure, `error`, and `sluicefs
    recover` decides. `at`: seconds since the epoch.
    """

    id: str
    key: str
    size: int
    base: Base | None = None
    base_limit: int = 0
    replaced: bool = True
    changed: list[Span] = field(default_factory=list)
    present: list[Span] = field(default_factory=list)
    etag: str | None = None
    replaces: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    content_type: str | None = None
    complete: bool = True
    pending: bool = True
    error: str = ""
    at: float = 0.0
    file: str | None = None

    def head(self) -> str:
        fields = asdict(self)
        for name in ("id", "key", "size", "pending", "at", "file"):
            del fields[name]
        return json.dumps(fields)


@dataclass(frozen=True, slots=True)
class StartedUpload:
    """A multipart upload that was begun. `upload_id` is None where nobody lived to write down the store's answer."""

    row: int
    key: str
    at: float
    upload_id: str | None


@dataclass(slots=True)
class _Ticket:
    """Statements that wait to be committed together with others."""

    statements: list[Statement]
    done: bool = False
    error: Exception | None = None
    row: int = 0


class Journal:
    """The journal in `folder`. Thread-safe. Raises OSError (ENOSPC, EIO) where the disk refuses."""

    def __init__(self, folder: str, *, read_only: bool = False):
        self.folder = folder
        self.path = os.path.join(folder, "journal")
        self._lock = threading.Lock()  # of the database
        self._waiting: list[_Ticket] = []
        self._queue = threading.Lock()  # of `_waiting`
        mode = "ro" if read_only else "rwc"
        try:
            self._base = sqlite3.connect(
                f"file:{self.path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            if not read_only:
                self._base.execute(f"PRAGMA page_size={PAGE_SIZE}")
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise _as_oserror(error, self.path) from error

    # -- unsent data ------------------------------------------------------------------------------------------------------

    def put(self, record: Record, body: bytes | bytearray | None = None, *, keep_body: bool = False, wait: bool = True) -> None:
        """Store or replace a record, durably. `keep_body`: only what is said about the data changes; `wait` for it."""
        record.at = record.at or time.time()
        head = (record.key, record.at, int(record.pending), record.size, record.head(), record.file)
        if keep_body:
            update = ("UPDATE files SET key=?, at=?, pending=?, size=?, head=?, file=? WHERE id=?", (*head, record.id))
            if wait:
                self._commit(update)
            else:
                self._later(update)
        else:
            self._commit(
                (
                    "INSERT OR REPLACE INTO files (key, at, pending, size, head, file, id, body) VALUES (?,?,?,?,?,?,?,?)",
                    (*head, record.id, body),
                )
            )

    def forget(self, identity: str) -> None:
        """The bucket has it, or nobody wants it. Durable: else a later change of the same name could be undone by it."""
        self._commit(("DELETE FROM files WHERE id=?", (identity,)))

    def records(self) -> list[Record]:
        """All records, oldest first, without their bodies."""
        rows = self._query("SELECT id, key, at, pending, size, head, file FROM files ORDER BY at, rowid")
        return [_record(*row) for row in rows]

    def body(self, identity: str) -> bytes:
        """The body of a record, b"" where its bytes are in a file."""
        rows = self._query("SELECT body FROM files WHERE id=?", (identity,))
        return bytes(rows[0][0] or b"") if rows else b""

    # -- multipart uploads --------------------------------------------------------------------------------------------------

    def upload_begins(self, key: str) -> int:
        """Say, before the store is asked, that an upload of `key` is about to exist; returns the row to name it by."""
        return self._commit(("INSERT INTO uploads (key, at) VALUES (?, ?)", (key, time.time())))

    def upload_has_id(self, row: int, upload_id: str) -> None:
        self._commit(("UPDATE uploads SET upload_id=? WHERE id=?", (upload_id, row)))

    def upload_ended(self, row: int) -> None:
        """Completed or aborted."""
        self._later(("DELETE FROM uploads WHERE id=?", (row,)))

    def uploads(self) -> list[StartedUpload]:
        rows = self._query("SELECT id, key, at, upload_id FROM uploads ORDER BY id")
        return [StartedUpload(*row) for row in rows]

    # -- the whole --------------------------------------------------------------------------------------------------------

    def describe(self, about: dict[str, str]) -> None:
        """Whose data this is: endpoint, bucket and the like, for `recover`. No secrets."""
        self._commit(*[("INSERT OR REPLACE INTO about VALUES (?, ?)", item) for item in about.items()])

    def about(self) -> dict[str, str]:
        return dict(self._query("SELECT name, value FROM about"))

    def empty(self) -> bool:
        return not self._query("SELECT 1 FROM files UNION ALL SELECT 1 FROM uploads LIMIT 1")

    def flush(self) -> None:
        """Write down what was left for later."""
        self._commit()

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._base.close()

    # -- one commit for all who wait ----------------------------------------------------------------------------------------

    def _later(self, *statements: Statement) -> None:
        with self._queue:
            self._waiting.append(_Ticket(list(statements)))

    def _commit(self, *statements: Statement) -> int:
        """Run statements and wait for the disk; whoever comes first commits for all. Returns the last row made."""
        ticket = _Ticket(list(statements))
        with self._queue:
            self._waiting.append(ticket)
        with self._lock:
            if not ticket.done:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                self._run(batch)
        if ticket.error is not None:
            raise ticket.error
        return ticket.row

    def _run(self, batch: list[_Ticket]) -> None:
        try:
            if not any(ticket.statements for ticket in batch):
                return
            self._base.execute("BEGIN IMMEDIATE")
            for ticket in batch:
                for statement, values in ticket.statements:
                    ticket.row = self._base.execute(statement, values).lastrowid or 0
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            if len(batch) > 1:  # the one that does not fit must not take the others with it
                for ticket in batch:
                    self._run([ticket])
                return
            batch[0].error = _as_oserror(error, self.path)
        finally:
            for ticket in batch:
                ticket.done = True

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        self.flush()
        with self._lock:
            try:
                return self._base.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise _as_oserror(error, self.path) from error


def _record(identity: str, key: str, at: float, pending: int, size: int, head: str, file: str | None) -> Record:
    fields = json.loads(head)
    base = fields.pop("base")
    for name in ("changed", "present"):
        fields[name] = [(start, end) for start, end in fields[name]]
    return Record(
        id=identity, key=key, at=at, pending=bool(pending), size=size, file=file, base=Base(**base) if base else None, **fields
    )


def _as_oserror(error: sqlite3.Error, path: str) -> OSError:
    full = "full" in str(error) or ("disk I/O" in str(error) and _no_room(path))
    return OSError(errno.ENOSPC if full else errno.EIO, f"journal {path}: {error}")


def _no_room(path: str) -> bool:
    """SQLite says "disk I/O error" for a write-ahead log that cannot grow."""
    try:
        room = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 1024 * 1024
