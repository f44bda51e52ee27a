"""What a mount owes its bucket, in a SQLite file: unsent data of files, and multipart uploads that were begun.

A call that returns has its change on disk (WAL, synchronous=FULL); calls made at the same time share one fsync. A record counts
only with the body or the data file it names, and both only as their checksums say. SQLite ends the reading of a damaged
write-ahead log where the damage is, and says nothing: a file beside it counts the commits, so that missing ones are noticed.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sluicefs.staging import checks

log = logging.getLogger(__name__)

Span = tuple[int, int]
TICK = 1e-5  # seconds by which a record is later than the one before it, at least
Statement = tuple[str, Sequence[Any]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, pending INTEGER NOT NULL, size INTEGER NOT NULL,
    head TEXT NOT NULL, file TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS uploads (id INTEGER PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, upload_id TEXT);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
"""
MAX_SIZE = 4995 * 1024**4 // 1000  # bytes: no file of a mount grows beyond, as no store takes more
PAGE_SIZE = 8192  # bodies of 64 KiB are fastest so
# The text of an error can quote the damaged file.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)
COUNT = "journal-commits"
FILES = ("journal", "journal-wal", "journal-shm", COUNT)
COMMITS = 1 << 31  # SQLite's user_version counts to there, and begins anew


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
    of. `landing`: the ETag that the object has if the upload that was just being completed was, "" where there was none.
    `pending`: to be sent without anybody asking; else the application was told of the failure, `error`, and `sluicefs
    recover` decides. `at`: seconds since the epoch. `sums`: see `checks`, of the body or of the data file; [] where not known.
    """

    id: str
    key: str
    size: int
    base: Base | None = None
    base_limit: int = 0
    replaced: bool = True
    changed: list[Span] = field(default_factory=list)
    present: list[Span] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    etag: str | None = None
    replaces: bool = False
    landing: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    content_type: str | None = None
    complete: bool = True
    pending: bool = True
    error: str = ""
    at: float = 0.0
    file: str | None = None

    def head(self) -> str:
        base = self.base
        fields = {
            "base": None if base is None else {"key": base.key, "etag": base.etag, "size": base.size},
            "base_limit": self.base_limit,
            "replaced": self.replaced,
            "changed": self.changed,
            "present": self.present,
            "sums": self.sums,
            "etag": self.etag,
            "replaces": self.replaces,
            "landing": self.landing,
            "metadata": self.metadata,
            "content_type": self.content_type,
            "complete": self.complete,
            "error": self.error,
        }
        text = json.dumps(fields)
        return f'{text[:-1]}, "check": "{self._check(text)}"}}'

    def _check(self, rest: str) -> str:
        return checks.of_bytes(repr((self.id, self.key, self.size, self.pending, self.at, self.file, rest)).encode())

    def verify(self, head: str) -> None:
        """ValueError unless this is what was written with `head`."""
        fields = json.loads(head)
        if fields.pop("check", None) != self._check(json.dumps(fields)):
            raise ValueError("its checksum is another")


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
        self._owed: list[Statement] = []  # what was to be forgotten and is not yet
        self._left: dict[str, _Ticket] = {}  # by record: what was said of it last, where nobody waited for that
        self._queue = threading.Lock()  # of `_waiting` and `_owed`
        self.damaged: list[str] = []  # keys of rows that `records` passed over: they stay, and so does what they may name
        mode = "ro" if read_only else "rwc"
        try:
            self._base = sqlite3.connect(
                f"file:{self.path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        except _FAILURES as error:
            raise _as_oserror(error, self.path) from error
        # Text that is not UTF-8 is a damaged row's, which must not hide the others.
        self._base.text_factory = lambda text: text.decode(errors="surrogateescape")
        try:
            if not read_only:
                self._base.execute(f"PRAGMA page_size={PAGE_SIZE}")
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(SCHEMA)
        except _FAILURES as error:
            self._base.close()
            raise _as_oserror(error, self.path) from error
        self._latest = 0.0 if read_only else self._newest()
        self.commits = self._counted()
        self._count: int | None = None
        if not read_only:
            try:
                self._count = os.open(os.path.join(folder, COUNT), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                self._base.close()
                raise
            self._note_count()

    # -- unsent data ------------------------------------------------------------------------------------------------------

    def put(self, record: Record, body: bytes | bytearray | None = None, *, keep_body: bool = False, wait: bool = True) -> None:
        """Store or replace a record, durably. `keep_body`: only what is said about the data changes; `wait` for it."""
        with self._queue:  # of two records for one key the later counts, whatever the clock says meanwhile
            record.at = self._latest = max(record.at or time.time(), self._latest + TICK)
        head = (record.key, record.at, int(record.pending), record.size, record.head(), record.file)
        if keep_body:
            update = ("UPDATE files SET key=?, at=?, pending=?, size=?, head=?, file=? WHERE id=?", (*head, record.id))
            if not wait:
                self._left[record.id] = self._later(update)
                return
            self._commit(update)
        else:
            self._commit(
                (
                    "INSERT OR REPLACE INTO files (key, at, pending, size, head, file, id, body) VALUES (?,?,?,?,?,?,?,?)",
                    (*head, record.id, body),
                )
            )
        self._left.pop(record.id, None)

    def settled(self, identity: str) -> bool:
        """Does the disk have what was last said of a record? Waits for it. False: it refused."""
        ticket = self._left.get(identity)
        if ticket is not None:
            self.flush()
            if ticket.error is not None:
                return False
            self._left.pop(identity, None)
        return True

    def forget(self, identity: str) -> None:
        """The bucket has it, or nobody wants it. Durable: else a later change of the same name could be undone by it.

        OSError: the disk refuses, and it goes with the next change that the disk takes.
        """
        statement: Statement = ("DELETE FROM files WHERE id=?", (identity,))
        self._left.pop(identity, None)
        try:
            self._commit(statement)
        except OSError:
            with self._queue:
                self._owed.append(statement)
            raise

    def records(self) -> list[Record]:
        """All records, oldest first, without their bodies. Damaged rows are passed over, logged and named in `damaged`."""
        rows = self._query("SELECT id, key, at, pending, size, head, file FROM files ORDER BY at, rowid")
        found = []
        self.damaged = []
        for row in rows:
            try:
                found.append(_record(*row))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                log.error("journal %s: the record of %r is damaged and stays there: %r", self.path, row[1], error)
                self.damaged.append(row[1] if isinstance(row[1], str) else repr(row[1]))
        return found

    def _newest(self) -> float:
        """The time of the newest record."""
        try:
            rows = self._base.execute("SELECT max(at) FROM files WHERE typeof(at)='real'").fetchall()
        except _FAILURES as error:
            log.error("journal %s: %s", self.path, error)  # `check` finds out what of it is good
            return 0.0
        return float(rows[0][0] or 0.0) if _is_time(rows[0][0] or 0.0) else 0.0

    def _counted(self) -> int:
        try:
            commits: int = self._base.execute("PRAGMA user_version").fetchone()[0]
        except _FAILURES as error:
            log.error("journal %s: %s", self.path, error)  # `check` finds out what of it is good
            return 0
        return commits % COMMITS

    def body(self, identity: str) -> bytes:
        """The body of a record, b"" where its bytes are in a file."""
        rows = self._query("SELECT body FROM files WHERE id=?", (identity,))
        body = rows[0][0] if rows else None
        if not isinstance(body, (bytes, type(None))):
            raise OSError(errno.EIO, f"journal {self.path}: the data of {identity} is damaged")
        return body or b""

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
        good = [row for row in rows if _is_upload(*row)]
        if len(good) < len(rows):
            log.error("journal %s: %d records of uploads are damaged and stay there", self.path, len(rows) - len(good))
        return [StartedUpload(*row) for row in good]

    # -- the whole --------------------------------------------------------------------------------------------------------

    def describe(self, about: dict[str, str]) -> None:
        """Whose data this is: endpoint, bucket and the like, for `recover`. No secrets."""
        self._commit(*[("INSERT OR REPLACE INTO about VALUES (?, ?)", item) for item in ({"form": "1"} | about).items()])

    def about(self) -> dict[str, str]:
        return dict(self._query("SELECT name, value FROM about"))

    def check(self) -> None:
        """OSError EIO where this is no journal as a mount leaves it, and nothing in it can be relied on. Reads all of it."""
        said = self._query("PRAGMA quick_check(1)")
        if said != [("ok",)]:
            raise OSError(errno.EIO, f"journal {self.path}: {said[0][0] if said else 'it cannot be checked'}")
        # Before anything else a mount writes down whose it is. A file cut to nothing is an empty database to SQLite.
        if not self.about() and (not self.empty() or set(os.listdir(self.folder)) - set(FILES)):
            raise OSError(errno.EIO, f"journal {self.path}: what it held is gone")

    def empty(self) -> bool:
        return not self._query("SELECT 1 FROM files UNION ALL SELECT 1 FROM uploads LIMIT 1")

    def flush(self) -> None:
        """Write down what was left for later."""
        self._commit()

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._base.close()
            if self._count is not None:
                os.close(self._count)
                self._count = None

    # -- one commit for all who wait ----------------------------------------------------------------------------------------

    def _later(self, *statements: Statement) -> _Ticket:
        ticket = _Ticket(list(statements))
        with self._queue:
            self._waiting.append(ticket)
        return ticket

    def _commit(self, *statements: Statement) -> int:
        """Run statements and wait for the disk; whoever comes first commits for all. Returns the last row made."""
        ticket = _Ticket(list(statements))
        with self._queue:
            self._waiting.append(ticket)
        with self._lock:
            if not ticket.done:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                    owed, self._owed = _Ticket(self._owed), []
                self._run([owed, *batch] if owed.statements else batch)
                if owed.error is not None:
                    with self._queue:
                        self._owed = owed.statements + self._owed
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
            commits = (self.commits + 1) % COMMITS
            self._base.execute(f"PRAGMA user_version={commits}")
            self._base.execute("COMMIT")
            self.commits = commits
            self._note_count()
        except _FAILURES as error:
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

    def _note_count(self) -> None:
        """Say how many commits there were. After the commit and without an fsync: it may say too few, never too many."""
        if self._count is None:
            return
        text = f"{self.commits:010}"
        try:
            os.pwrite(self._count, f"{text} {checks.of_bytes(text.encode())}\n".encode(), 0)
        except OSError as error:
            log.warning("journal %s: its commits are not counted: %s", self.path, error)

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        self.flush()
        with self._lock:
            try:
                return self._base.execute(statement, values).fetchall()
            except _FAILURES as error:
                raise _as_oserror(error, self.path) from error


def missing_commits(folder: str) -> int:
    """How many commits the journal in `folder` has lost, as far as can be known. Changes nothing there."""
    try:
        with open(os.path.join(folder, COUNT), "rb") as file:
            text, _, check = file.read(100).decode("ascii").strip().partition(" ")
        if check != checks.of_bytes(text.encode()):
            raise ValueError(f"its checksum is not {check!r}")
        told = int(text)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        log.warning("journal %s: nobody knows how many commits there were: %s", folder, error)
        return 0
    try:
        journal = Journal(folder, read_only=True)
    except OSError:
        return 0  # who opens it to use it finds out
    missing: int = (told - journal.commits) % COMMITS
    journal.close()
    return missing if missing < COMMITS // 2 else 0


def _record(identity: Any, key: Any, at: Any, pending: Any, size: Any, head: Any, file: Any) -> Record:
    """A row as it was written. Raises ValueError, TypeError, KeyError, AttributeError, RecursionError for a damaged one."""
    fields = json.loads(head)
    del fields["check"]
    base = fields.pop("base")
    for name in ("changed", "present"):
        fields[name] = [(start, end) for start, end in fields[name]]
        if not all(_is_size(start) and _is_size(end) and start <= end for start, end in fields[name]):
            raise ValueError(f"{name} is no list of spans")
    record = Record(
        id=identity, key=key, at=at, pending=bool(pending), size=size, file=file, base=Base(**base) if base else None, **fields
    )
    texts: list[Any] = [identity, key, record.error, record.landing, *record.metadata, *record.metadata.values(), *record.sums]
    texts += [text for text in (record.etag, record.content_type, file) if text is not None]
    texts += [record.base.key, record.base.etag] if record.base is not None else []
    for text in texts:
        text.encode()  # neither a number nor bytes nor text that is not UTF-8
    if not (_is_size(size) and _is_size(record.base_limit) and (record.base is None or _is_size(record.base.size))):
        raise ValueError("a size that is none")
    flags = (record.replaced, record.replaces, record.complete)
    if not key or not _is_time(at) or not all(type(flag) is bool for flag in flags):
        raise ValueError("a field of another kind")
    if file is not None and (os.path.basename(file) != file or not file.startswith("data-")):
        raise ValueError(f"{file!r} is no data file of its folder")
    record.verify(head)
    return record


def _is_upload(row: Any, key: Any, at: Any, upload_id: Any) -> bool:
    try:
        return bool(key.encode()) and _is_time(at) and (upload_id is None or bool(upload_id.encode()))
    except (AttributeError, ValueError):
        return False


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number <= MAX_SIZE


def _is_time(seconds: Any) -> bool:
    return type(seconds) is float and math.isfinite(seconds)


def _as_oserror(error: Exception, path: str) -> OSError:
    full = "full" in str(error) or ("disk I/O" in str(error) and _no_room(path))
    return OSError(errno.ENOSPC if full else errno.EIO, f"journal {path}: {error}")


def _no_room(path: str) -> bool:
    """SQLite says "disk I/O error" for a write-ahead log that cannot grow."""
    try:
        room = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 1024 * 1024
