"""What was written to one file and is not in the bucket yet.

Dirty bytes lie in memory (`Extents`), and when there are many of them or they have been sent, in a staging file. Below them
shows the version the change is based on. Nothing here talks to the bucket but by `read_base`.

Changes are made with the file's lock held. Readers need not have it: `mutex` guards what they look at, so that they need not
wait for an upload.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from sluicefs.engine import DirtyMemory, Extents, SpanSet
from sluicefs.fs.nodes import Version
from sluicefs.staging import Journal, Record, Staging, StagingFile, checks

ReadBase = Callable[[int, int], object]  # (offset, length) -> bytes of the base version

# The base is read in pieces of this many bytes: of a part that a change cuts, as few ranged GETs as are still quick.
COPY = 8 << 20
# Bytes of the base between two changes are fetched with what is missing beside them, if they are no more than these apart.
CLOSE = 128 * 1024
SALVAGE = 128 * 1024
# A file with so few dirty bytes is kept in the journal itself: one fsync instead of three.
INLINE = 256 * 1024

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory would get a page of its own for each that is read
_zeros = mmap.mmap(-1, mmap.PAGESIZE, flags=PRIVATE, prot=mmap.PROT_READ)
_zeros_lock = threading.Lock()


def zeros(length: int) -> memoryview:
    """Zero bytes that take no memory: all of it is the kernel's one page of zeros."""
    global _zeros
    with _zeros_lock:
        if len(_zeros) < length:
            _zeros = mmap.mmap(-1, length, flags=PRIVATE, prot=mmap.PROT_READ)
        return memoryview(_zeros)[:length]


class Draft:
    """A changed file: `size` bytes, of which [0, base_limit) still show `base` where nothing was written over."""

    def __init__(
        self,
        base: Version | None,
        size: int,
        *,
        part_size: int,
        memory: DirtyMemory,
        staging: Staging,
        read_base: ReadBase | None,
    ):
        self.base = base
        self.size = size
        self.base_limit = base.size if base else 0
        self.part_size = part_size
        self.extents = Extents(part_size, memory)
        self.staged = SpanSet()
        self.changed = SpanSet()  # everything that differs from the base, wherever its bytes lie
        self.read_base = read_base
        if size < self.base_limit:
            self.base_limit = size
        self.replaced = base is None  # the whole file is new: last writer wins, no condition
        # The ETag of the object that a whole file takes the place of, "" where there is none, None where that is not known.
        self.covers: str | None = ""
        self.landed: set[str] = set()  # ETags that the object has if what could not be sent arrived all the same
        self.replaces = False  # the object under the key is another file's, which this one was renamed over
        self.restored: Record | None = None  # a journal brought it back as this: perhaps the bucket has that already
        self.base_gone = False
        self.stream_again = 0.0  # monotonic seconds: not sent while it is written until then
        self.closed = False
        self.saved: tuple[Journal, Record] | None = None  # what would survive this process
        self.saved_version = -1
        self.shelved = False  # what memory would hold is in the journal only
        self.version = 0  # counts changes
        self.cuts = 0  # counts those that made it shorter
        self.whole: bytes | None = None  # all of a small file, as it was sent
        self.wanted = 0  # writers that wait while the file is sent in the background
        self.mutex = threading.RLock()
        self._staging = staging
        self._file = StagingFile(staging)

    # -- changing -----------------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take in bytes. BufferError while the chunk is being sent: let that end, then again."""
        with self.mutex:
            self._fetch_from_journal()
            self.extents.write(offset, data)
            end = offset + len(data)
            if offset > self.size:  # the hole reads as zeros, and the base must not show through it
                self.changed.add(self.size, offset)
            self.changed.add(offset, end)
            if end > self.size:
                self.size = end
            self.version += 1

    def truncate(self, size: int) -> None:
        """Set the size; what is cut off is gone, what is added reads as zeros."""
        with self.mutex:
            self._fetch_from_journal()
            if size < self.size:
                self.extents.truncate(size)
                self.staged.remove(size, self.size)
                self.changed.remove(size, self.size)
                self.base_limit = min(self.base_limit, size)
                self.cuts += 1
                if size == 0:
                    self.replaced = True
            elif size > self.size:
                self.changed.add(self.size, size)
            self.size = size
            self.version += 1

    # -- reading ------------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes | bytearray | None:
        """At most `length` bytes from `offset`, as the file would be if it were closed now. May fetch parts of the base.

        None: the draft is closed, the bucket has it all.
        """
        with self.mutex:
            length = min(length, self.size - offset)
            if length <= 0:
                return None if self.closed else b""
            buffer = bytearray(length)
        return buffer if self.fill(offset, buffer) else None

    def fill(self, offset: int, buffer: bytearray) -> bool:
        """Fill the zeroed `buffer` with the file's bytes from `offset`. False: the draft was closed meanwhile."""
        view = memoryview(buffer)
        end = offset + len(buffer)
        while True:
            with self.mutex:
                cuts = self.cuts
                below = self._below(offset, end)
            for start, stop in below:  # over the network, perhaps: without the mutex
                self._fill_base(view[start - offset : stop - offset], start)
            with self.mutex:
                if self.closed:
                    return False
                if self.cuts == cuts:
                    for start, stop in self.staged.within(offset, end):
                        self._file.read(view[start - offset : stop - offset], start)
                    for start, piece in self._shelf() if self.shelved else ():
                        low, high = max(start, offset), min(start + len(piece), end)
                        if low < high:
                            view[low - offset : high - offset] = piece[low - start : high - start]
                    self.extents.overlay(offset, buffer)
                    return True
                buffer[:] = bytes(len(buffer))  # it was cut meanwhile, and the base must not show where it is cut off

    def _below(self, start: int, end: int) -> list[tuple[int, int]]:
        """What to fetch of the base for [start, end): what still shows it, and small changes between, to be laid over.

        Whatever is changed below `base_limit` lies in memory or in the staging file.
        """
        gaps = self.changed.gaps(start, min(end, self.base_limit)) if start < self.base_limit else []
        if self.base_gone:
            return gaps
        found = gaps[:1]
        for low, high in gaps[1:]:
            if low - found[-1][1] <= CLOSE:
                found[-1] = found[-1][0], high
            else:
                found.append((low, high))
        return found

    def _fill_base(self, view: memoryview, start: int) -> None:
        assert self.read_base is not None
        done = 0
        while done < len(view):
            piece = memoryview(self.read_base(start + done, min(len(view) - done, COPY)))  # type: ignore[arg-type]
            if not len(piece):
                raise OSError(errno.EIO, "the object is shorter than its size")
            view[done : done + len(piece)] = piece
            done += len(piece)

    # -- what is sent -------------------------------------------------------------------------------------------------------

    def unchanged(self, start: int, end: int) -> bool:
        """Does [start, end) still show the base, all of it?"""
        if self.base is None or self.base_gone:
            return False
        return end <= self.base_limit and not self.changed.touches(start, end)

    def is_hole(self, start: int, end: int) -> bool:
        """Is [start, end) nothing but zeros that nobody wrote?"""
        with self.mutex:
            self._fetch_from_journal()
            if self.staged.touches(start, end):
                return False
            if start < self.base_limit and not self.changed.covers(start, min(end, self.base_limit)):
                return False
            return not self._in_memory(start, end)

    def salvage(self) -> list[int]:
        """The base is gone from the bucket: nothing can be copied from it, and of its bytes only those still in a cache are
        read; the others are zeros. Their lengths end up in the list that is returned, as they are met."""
        lost: list[int] = []
        read = self.read_base

        def read_base(offset: int, length: int) -> object:
            assert read is not None
            try:
                return read(offset, min(length, SALVAGE))
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
            lost.append(min(length, SALVAGE))
            return bytes(lost[-1])

        self.read_base, self.base_gone = read_base, True
        return lost

    def can_be_sent(self, start: int, end: int, chunks: int) -> bool:
        """Is [start, end) a part of `chunks` chunks that can go while the file is written: full, and not the last?

        What was skipped may still be written; it goes at the end.
        """
        if end >= self.size or not self.changed.covers(start, end):
            return False
        pieces = [(low, low + (end - start) // chunks) for low in range(start, end, (end - start) // chunks)]
        return all(self.extents.covers(low, high) or self._all_staged(low, high) for low, high in pieces)

    def in_one_piece(self, start: int, end: int) -> bool:
        """Can `body` give [start, end) without composing it in memory?"""
        return self.is_hole(start, end) or self._chunk_of(start, end) >= 0 or self._all_staged(start, end)

    def body(self, start: int, end: int) -> memoryview:
        """The file's bytes [start, end), without a copy in memory where that is possible. Fetches what the base still shows."""
        if start == end:
            return memoryview(b"")
        if self.is_hole(start, end):
            return zeros(end - start)
        chunk = self._chunk_of(start, end)
        if chunk >= 0:
            base = chunk * self.part_size
            return self.extents.view(chunk, start - base, end - base)
        if self._all_staged(start, end):
            return self._file.mapped(start, end)
        if end - start <= 2 * self.part_size:
            buffer = bytearray(end - start)
            self.fill(start, buffer)
            return memoryview(buffer)
        self._localize(start, end)
        return self._file.mapped(start, end)

    def _chunk_of(self, start: int, end: int) -> int:
        """The chunk in memory that holds all of [start, end); -1 if none does."""
        chunk = start // self.part_size
        return chunk if end <= (chunk + 1) * self.part_size and self.extents.covers(start, end) else -1

    def _all_staged(self, start: int, end: int) -> bool:
        if not self.staged.covers(start, end):
            return False
        return not self._in_memory(start, end)

    def _in_memory(self, start: int, end: int) -> bool:
        """Is any byte of [start, end) dirty in memory?"""
        for index in range(start // self.part_size, (end - 1) // self.part_size + 1):
            if any(low < end and high > start for low, high in self._spans(index)):
                return True
        return False

    def _spans(self, index: int) -> list[tuple[int, int]]:
        try:
            return self.extents.spans(index)
        except KeyError:
            return []

    def _localize(self, start: int, end: int) -> None:
        """Bring all of [start, end) into the staging file: for a part too large to be composed in memory."""
        for low, high in self.changed.gaps(start, min(end, self.base_limit)) if start < self.base_limit else []:
            while low < high:
                piece = bytearray(min(COPY, high - low))
                self._fill_base(memoryview(piece), low)
                self.stage(memoryview(piece), low)
                with self.mutex:
                    self.staged.add(low, low + len(piece))
                    self.changed.add(low, low + len(piece))
                low += len(piece)
        for index in range(start // self.part_size, (end - 1) // self.part_size + 1):
            self._spill_chunk(index)

    # -- the staging file ---------------------------------------------------------------------------------------------------

    def stage(self, data: memoryview, offset: int) -> None:
        """Keep bytes in the staging file too (OSError ENOSPC where the disk is full). `sent` makes them count."""
        self._file.write(data, offset)

    def sent(self, index: int) -> None:
        """A chunk that was staged on the way has been sent: it may leave memory."""
        start = index * self.part_size
        with self.mutex:
            if self._file.covers(start, start + self.part_size):
                self.staged.add(start, start + self.part_size)
                self.extents.drop(index)

    def spill(self) -> bool:
        """Move the first chunk that is not being sent to the staging file; False if there is none."""
        for index in self.extents.indices():
            if not self.extents.sending(index):
                self._spill_chunk(index)
                return True
        return False

    def _spill_chunk(self, index: int) -> None:
        base = index * self.part_size
        spans = self._spans(index)
        for start, end in spans:
            with self.extents.view(index, start - base, end - base) as view:
                self.stage(view, start)
        with self.mutex:
            for start, end in spans:
                self.staged.add(start, end)
            if not self.extents.sending(index):
                self.extents.drop(index)

    # -- surviving this process ---------------------------------------------------------------------------------------------

    def save(self, record: Record) -> None:
        """Make record and bytes durable; returns when the disk has both. OSError: it does not, and an older record stands."""
        journal = self.saved[0] if self.saved is not None else self._staging.journal
        with self.mutex:
            self._fetch_from_journal()
            self._describe(record)
            # Bytes in a staging file were spilled for want of memory: they stay there, the others join them.
            small = self.extents.used <= INLINE and not len(self.staged)
            record.present = self.extents.spans() if small else []
            body = bytearray().join(bytes(self._view(span)) for span in record.present) if small else None
            version = self.version
        if body is None:
            for index in self.extents.indices():
                self._spill_chunk(index)
            record.present = list(self.staged)
            record.file, record.sums = self._file.persist(journal.folder, record.present)
        else:
            record.sums = [checks.of_bytes(body)]
        journal.put(record, body)
        self.saved_version = version
        if body is not None:
            self._file.leave()
        else:
            self._file.settled(record.present)
        self._saved_as(journal, record)

    def save_head(self, record: Record, *, wait: bool = True) -> None:
        """What is said about the data changed (name, attributes, base), not the data. Durable, if `wait`."""
        assert self.saved is not None
        journal, old = self.saved
        record.changed, record.present, record.sums, record.size = old.changed, old.present, old.sums, old.size
        record.base_limit, record.replaced, record.file = old.base_limit, old.replaced, old.file
        record.landing = record.landing or old.landing
        if record.base is None and old.base is not None and self.base is not None:
            record.base = old.base
        journal.put(record, keep_body=True, wait=wait)
        self.saved = journal, record

    def lands(self, etag: str) -> None:
        """The object is about to be there, with this ETag: what is kept says so, durably, unless the disk refuses."""
        if self.saved is not None:
            with suppress(OSError):
                self.save_head(replace(self.saved[1], landing=etag))

    def _describe(self, record: Record) -> None:
        record.size = self.size
        record.base_limit, record.replaced, record.replaces = self.base_limit, self.replaced, self.replaces
        record.changed = list(self.changed)

    def _view(self, span: tuple[int, int]) -> memoryview:
        index = span[0] // self.part_size
        base = index * self.part_size
        return self.extents.view(index, span[0] - base, span[1] - base)

    def _saved_as(self, journal: Journal, record: Record) -> None:
        old = self.saved
        self.saved = journal, record
        if old is not None and old[1].file is not None and old[1].file != record.file:
            with suppress(OSError):
                os.unlink(os.path.join(journal.folder, old[1].file))
        with self.mutex:
            self._file.close_old()

    def unsave(self) -> None:
        """It need not survive this process any more."""
        with self.mutex:
            self._fetch_from_journal()
            saved, self.saved = self.saved, None
            if saved is None:
                return
            journal, record = saved
            journal.forget(record.id)
            self._file.thaw()
            if record.file is not None and record.file != self._file.name:
                with suppress(OSError):
                    os.unlink(os.path.join(journal.folder, record.file))

    def restore(self, journal: Journal, record: Record) -> None:
        """Be again what `record` says. OSError where its bytes are not there."""
        self.size, self.base_limit = record.size, record.base_limit
        self.replaced, self.replaces, self.restored = record.replaced, record.replaces, record
        for start, end in record.changed:
            self.changed.add(start, end)
        if record.file is None:
            for _ in _pieces(journal, record):
                pass  # whole and undamaged; memory need not hold it before somebody asks
            self.shelved = True
        else:
            self._file.open(os.path.join(journal.folder, record.file), record.present, record.sums)
            for start, end in record.present:
                self.staged.add(start, end)
        self.saved = journal, record
        self.saved_version = self.version

    def shelve(self) -> None:
        """Leave bytes that the journal has to the journal alone, until somebody wants them."""
        with self.mutex:
            if self.is_saved and self.saved is not None and self.saved[1].file is None and not len(self.staged):
                self.shelved = True
                self.extents.clear()

    def _fetch_from_journal(self) -> None:
        """Have in memory what was shelved. `mutex` is held. OSError."""
        if self.shelved:
            for start, piece in self._shelf():
                self.extents.write(start, piece)
            self.shelved = False

    def _shelf(self) -> Iterator[tuple[int, memoryview]]:
        assert self.saved is not None
        return _pieces(*self.saved)

    @property
    def is_saved(self) -> bool:
        """Would the data as it is now survive this process?"""
        return self.saved is not None and self.saved_version == self.version

    @property
    def unsent(self) -> int:
        """Bytes written that the bucket does not have."""
        saved = self.saved
        if self.shelved and saved is not None:
            return sum(end - start for start, end in saved[1].present)
        return self.extents.used + self.staged.total

    def close(self) -> None:
        """Give back memory and disk: the bucket has it, or nobody wants it. The journal on disk says so when this returns."""
        with self.mutex:
            self.closed = True
            self.extents.clear()
            if self.saved is not None:
                journal, record = self.saved
                with suppress(OSError):  # then the next mount finds that the bucket has it
                    journal.forget(record.id)
                if record.file is not None:
                    with suppress(OSError):
                        os.unlink(os.path.join(journal.folder, record.file))
                self.saved = None
            self._file.close()

    def let_go(self) -> None:
        """Forget it in memory; the journal keeps what was saved."""
        with self.mutex:
            self.closed = True
            self.extents.clear()
            self._file.close(keep=self.saved[1].file if self.saved is not None else None)


def _pieces(journal: Journal, record: Record) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of what the journal itself holds of a file. OSError EIO where that is damaged or not all there."""
    body = memoryview(journal.body(record.id))
    checks.check_bytes(body, record.sums)
    for start, end in record.present:
        if len(body) < end - start:
            raise OSError(errno.EIO, "the journal holds less than it should")
        yield start, body[: end - start]
        body = body[end - start :]
