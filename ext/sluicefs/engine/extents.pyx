"""Dirty bytes of one file in memory: writes of any size and order merge into the extents of fixed-size chunks.

A chunk is what one part of an upload will be: a full chunk is sent as it lies, without another copy. Not locked: the file's
lock guards it. It must never decide when or where bytes go.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from sluicefs.engine.spans cimport SpanArray, add_span, covered, first_ending_after, remove_span


cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    /* Memory of a chunk grows in place: malloc'ed while small, then mapped, where mremap moves pages and not bytes. */
    #define SLUICE_SMALL (256 * 1024)
    /* So many chunks that were sent leave their memory to the next: the kernel's zeros cost as much as a write's copies. */
    #define SLUICE_SPARE 4
    static unsigned char *sluice_grow(unsigned char *at, size_t room, size_t wanted) {
        void *grown;
        if (wanted <= SLUICE_SMALL) return (unsigned char *) realloc(at, wanted);
        if (room > SLUICE_SMALL) grown = mremap(at, room, wanted, MREMAP_MAYMOVE);
        else {
            grown = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (grown != MAP_FAILED && at) { memcpy(grown, at, room); free(at); }
        }
        return grown == MAP_FAILED ? NULL : (unsigned char *) grown;
    }
    /* All the room of a chunk that is being filled from its start. Faults of 4 KiB pages are a third of what a write costs. */
    static unsigned char *sluice_whole(size_t wanted) {
        void *made = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) return NULL;
        madvise(made, wanted, MADV_HUGEPAGE);
        return (unsigned char *) made;
    }
    static void sluice_release(unsigned char *at, size_t room) {
        if (room > SLUICE_SMALL) munmap(at, room); else free(at);
    }
    """
    enum: SLUICE_SPARE
    unsigned char* sluice_grow(unsigned char*, size_t, size_t) noexcept nogil
    unsigned char* sluice_whole(size_t) noexcept nogil
    void sluice_release(unsigned char*, size_t) noexcept nogil


# Copies from this size on are worth giving up the GIL for.
cdef Py_ssize_t LONG_COPY = 64 * 1024
cdef int64_t PAGE = 4096
# A chunk that was filled from its start up to here, in bytes, gets all its room at once, in huge pages.
cdef int64_t HUGE_FROM = 1024 * 1024


cdef class DirtyMemory:
    """Memory that dirty bytes of all files of a mount take, in whole pages, beside its limit in bytes.

    It keeps a little that was given back, as long as files are being written and it is within the limit.
    """

    cdef readonly int64_t limit
    cdef readonly int64_t used
    cdef unsigned char* spare[SLUICE_SPARE]
    cdef int64_t spare_size
    cdef int spare_count

    def __cinit__(self, int64_t limit):
        self.limit = limit

    def __dealloc__(self):
        self.give_back()

    @property
    def full(self):
        return self.used >= self.limit

    @property
    def kept(self):
        """Bytes of memory that nothing is in."""
        return self.spare_count * self.spare_size

    cdef unsigned char* take(self, int64_t size) noexcept:
        """Memory of a whole chunk, its content undefined; NULL if there is none."""
        if self.spare_count and self.spare_size == size:
            self.spare_count -= 1
            return self.spare[self.spare_count]
        return sluice_whole(size)

    cdef void leave(self, unsigned char* data, int64_t size) noexcept:
        """Memory of a whole chunk that nothing is in any more."""
        if self.spare_count == SLUICE_SPARE or (self.spare_count and self.spare_size != size) or (
            self.used + (self.spare_count + 1) * size > self.limit
        ):
            sluice_release(data, size)
        else:
            self.spare[self.spare_count] = data
            self.spare_size = size
            self.spare_count += 1

    cdef void give_back(self) noexcept:
        """Everything that is kept goes back to the system."""
        while self.spare_count:
            self.spare_count -= 1
            sluice_release(self.spare[self.spare_count], self.spare_size)


cdef class Chunk:
    """One chunk's memory, its dirty spans (positions within the chunk), and the pages they are in."""

    cdef unsigned char* data
    cdef int64_t room
    cdef SpanArray spans
    cdef SpanArray pages
    cdef int64_t held
    cdef int exports

    def __dealloc__(self):
        if self.data != NULL:
            sluice_release(self.data, self.room)
        free(self.spans.at)
        free(self.pages.at)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.room, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1

    cdef bint filled_to(self, int64_t end) noexcept nogil:
        """True if all bytes from 0 to `end`, and no others, are dirty."""
        return self.spans.count == 1 and self.spans.at[0].start == 0 and self.spans.at[0].end == end

    cdef int64_t write(
        self, int64_t start, const unsigned char* source, int64_t length, int64_t largest, DirtyMemory memory
    ) except -1:
        """Copy in; returns how many bytes are newly dirty."""
        cdef int64_t end = start + length, room, new
        cdef unsigned char* grown
        if self.exports:
            raise BufferError("the chunk is being sent")
        if end > self.room:
            room = max(end, min(largest, max(self.room * 2, 4096)))
            if room > 256 * 1024:
                room = (room + 4095) // 4096 * 4096
            if room > HUGE_FROM and self.room < largest and self.filled_to(start):
                room = largest
                grown = memory.take(room)
                if grown != NULL:
                    memcpy(grown, self.data, start)
                    sluice_release(self.data, self.room)
            else:
                grown = sluice_grow(self.data, self.room, room)
            if grown == NULL:
                raise MemoryError
            self.data = grown
            self.room = room
        # A byte here and there takes a page each, and that is what memory runs out of.
        new = add_span(&self.pages, start // PAGE * PAGE, (end + PAGE - 1) // PAGE * PAGE)
        if new < 0:
            raise MemoryError
        self.held += new
        new = add_span(&self.spans, start, end)
        if new < 0:
            raise MemoryError
        if length >= LONG_COPY:
            with nogil:
                memcpy(self.data + start, source, length)
        else:
            memcpy(self.data + start, source, length)
        return new


cdef class Extents:
    """Dirty bytes of one file, in chunks of `chunk_size` bytes; `memory` counts them for the whole mount."""

    cdef readonly int64_t chunk_size
    cdef readonly int64_t used
    cdef int64_t held
    cdef DirtyMemory memory
    cdef dict chunks

    def __cinit__(self, int64_t chunk_size, DirtyMemory memory not None):
        if chunk_size <= 0:
            raise ValueError("a chunk has a positive size")
        self.chunk_size = chunk_size
        self.memory = memory
        self.chunks = {}

    def __dealloc__(self):
        if self.memory is not None:
            self.memory.used -= self.held

    cdef void hold(self, int64_t change):
        self.held += change
        self.memory.used += change

    def write(self, int64_t offset, object data):
        """Copy `data` to `offset`; returns how many bytes are newly dirty. BufferError where a chunk is being sent."""
        cdef Py_buffer source
        cdef int64_t done = 0, index, start, length, new = 0, held
        cdef Chunk chunk
        if offset < 0:
            raise ValueError("an offset is not negative")
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            while done < source.len:
                index = (offset + done) // self.chunk_size
                start = offset + done - index * self.chunk_size
                length = min(source.len - done, self.chunk_size - start)
                chunk = self.chunks.get(index)
                if chunk is None:
                    chunk = Chunk()
                    self.chunks[index] = chunk
                held = chunk.held
                try:
                    new += chunk.write(start, <const unsigned char*> source.buf + done, length, self.chunk_size, self.memory)
                finally:
                    self.hold(chunk.held - held)
                done += length
        finally:
            self.used += new
            PyBuffer_Release(&source)
        return new

    def overlay(self, int64_t offset, object buffer):
        """Copy every dirty byte of [offset, offset + len(buffer)) over `buffer`; returns how many."""
        cdef Py_buffer target
        cdef int64_t end, index, base, start, stop, total = 0
        cdef Py_ssize_t i
        cdef Chunk chunk
        PyObject_GetBuffer(buffer, &target, PyBUF_SIMPLE | 1)
        try:
            end = offset + target.len
            index = offset // self.chunk_size
            while index * self.chunk_size < end:
                chunk = self.chunks.get(index)
                base = index * self.chunk_size
                if chunk is not None:
                    i = first_ending_after(&chunk.spans, offset - base)
                    while i < chunk.spans.count and chunk.spans.at[i].start + base < end:
                        start = max(offset, chunk.spans.at[i].start + base)
                        stop = min(end, chunk.spans.at[i].end + base)
                        memcpy(<unsigned char*> target.buf + (start - offset), chunk.data + (start - base), stop - start)
                        total += stop - start
                        i += 1
                index += 1
        finally:
            PyBuffer_Release(&target)
        return total

    def covers(self, int64_t start, int64_t end):
        """True if every byte of [start, end) is dirty in memory."""
        cdef int64_t index, base, stop
        cdef Chunk chunk
        while start < end:
            index = start // self.chunk_size
            base = index * self.chunk_size
            chunk = self.chunks.get(index)
            if chunk is None:
                return False
            stop = min(end - base, self.chunk_size)
            if covered(&chunk.spans, start - base, stop) != base + stop - start:
                return False
            start = base + self.chunk_size
        return True

    def spans(self, only=None):
        """The dirty spans in memory (of chunk `only`, or all) as (start, end), in order, cut at the ends of chunks."""
        cdef Chunk chunk
        cdef Py_ssize_t i
        cdef int64_t base
        found = []
        for index in sorted(self.chunks) if only is None else [only]:
            chunk = self.chunks[index]
            for i in range(chunk.spans.count):
                base = index * self.chunk_size
                found.append((base + chunk.spans.at[i].start, base + chunk.spans.at[i].end))
        return found

    def indices(self):
        """The chunks that hold dirty bytes, in order."""
        return sorted(self.chunks)

    def sending(self, int64_t index):
        """True while a view of chunk `index` lives."""
        cdef Chunk chunk = self.chunks.get(index)
        return chunk is not None and chunk.exports > 0

    def view(self, int64_t index, int64_t start, int64_t end):
        """A read-only memoryview of [start, end) of chunk `index`, all of it dirty; until it goes, the chunk refuses writes."""
        cdef Chunk chunk = self.chunks[index]
        if covered(&chunk.spans, start, end) != end - start:
            raise ValueError("not all of it is dirty")
        return memoryview(chunk)[start:end]

    def drop(self, int64_t index):
        """Let one chunk go; returns how many dirty bytes went with it."""
        cdef Chunk chunk = self.chunks.pop(index, None)
        cdef int64_t gone
        if chunk is None:
            return 0
        gone = covered(&chunk.spans, 0, self.chunk_size)
        self.used -= gone
        self.hold(-chunk.held)
        if chunk.room == self.chunk_size and chunk.room > HUGE_FROM and not chunk.exports:
            self.memory.leave(chunk.data, chunk.room)
            chunk.data = NULL
            chunk.room = 0
        return gone

    def truncate(self, int64_t size):
        """Forget every dirty byte from `size` on."""
        cdef Chunk chunk
        cdef int64_t index, base, gone
        for index in list(self.chunks):
            base = index * self.chunk_size
            if base >= size:
                self.drop(index)
            elif base + self.chunk_size > size:
                chunk = self.chunks[index]
                gone = remove_span(&chunk.spans, size - base, self.chunk_size)
                if gone < 0:
                    raise MemoryError
                self.used -= gone

    def clear(self):
        """Forget everything. A file is done with: memory kept for its next chunk is not needed any more."""
        self.chunks.clear()
        self.used = 0
        self.hold(-self.held)
        self.memory.give_back()
