"""Read-ahead: from the offsets of past reads of one open file, which bytes are worth asking for next.

Pure arithmetic on C structs; `PatternProbe` is its Python door for tests. It must never fetch anything itself.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

# The kernel sends up to 16 reads of one sequential reader at once, in any order: 2 MiB of disorder is still one stream.
cdef int64_t DISORDER = 2 * 1024 * 1024
cdef int64_t GRAIN = 128 * 1024
cdef int64_t FIRST = 256 * 1024


cdef int match_stream(Pattern* pattern, int64_t offset, int64_t length) noexcept nogil:
    """Index of the stream that this read continues, advanced past it; -1 if it continues none (a new one was begun)."""
    cdef int i, slot
    cdef Stream* stream
    pattern.clock += 1
    for i in range(pattern.count):
        stream = &pattern.streams[i]
        if stream.next - DISORDER <= offset <= stream.next + DISORDER // 2 and offset >= stream.start - DISORDER:
            # A read that begins where another one did, far behind, is a re-read and moves nothing.
            if offset + length > stream.next:
                stream.next = offset + length
            if offset < stream.start:
                stream.start = offset
            stream.seen += length
            stream.last_use = pattern.clock
            return i
    if pattern.count < STREAMS:
        slot = pattern.count
        pattern.count += 1
    else:
        slot = stalest_stream(pattern)
    stream = &pattern.streams[slot]
    stream.start = offset
    stream.next = stream.ahead = offset + length
    stream.seen = length
    stream.last_use = pattern.clock
    return -1 - slot


cdef int stalest_stream(const Pattern* pattern) noexcept nogil:
    """Index of the stream that was not read from for the longest time; 0 when there is none."""
    cdef int i, stalest = 0
    for i in range(1, pattern.count):
        if pattern.streams[i].last_use < pattern.streams[stalest].last_use:
            stalest = i
    return stalest


cdef int64_t window_for(const Stream* stream, int64_t largest) noexcept nogil:
    """How many bytes to keep asked for beyond `next`: what the run has proven so far, so a short one wastes at most as much.

    A run from the start of the file is most likely a whole-file read: eight times that. Nothing before the second read.
    """
    cdef int64_t run = stream.next - stream.start
    if run > DISORDER and stream.seen < run // 2:  # reads here and there are no run
        return 0
    run = min(run, stream.seen)
    if run <= GRAIN:
        return 0
    if stream.start == 0:
        run *= 8
    return min(run, largest)


cdef int64_t block_size_for(int64_t window, int64_t largest) noexcept nogil:
    """Bytes of one fetch: a quarter of the window, in whole grains, so that several are under way at once."""
    cdef int64_t size = (window // 4) // GRAIN * GRAIN
    return min(largest, max(FIRST, size))


cdef int note_stride(Pattern* pattern, int64_t offset, int64_t length) noexcept nogil:
    """How many reads in a row kept one distance that leaves gaps or goes backwards; the distance is `pattern.stride`."""
    cdef int64_t distance = offset - pattern.last_offset
    if distance == pattern.stride and (distance < 0 or distance > length):
        pattern.stride_hits += 1
    else:
        pattern.stride = distance
        pattern.stride_hits = 0
    pattern.last_offset = offset
    return pattern.stride_hits


cdef class PatternProbe:
    """The kernels above as tests call them."""

    cdef Pattern pattern

    def __cinit__(self):
        memset(&self.pattern, 0, sizeof(Pattern))

    def read(self, int64_t offset, int64_t length):
        """Account one read; returns (stream index or -1 - slot of a new one, stride hits)."""
        cdef int hits = note_stride(&self.pattern, offset, length)
        return match_stream(&self.pattern, offset, length), hits

    def window(self, int slot, int64_t largest):
        if not 0 <= slot < self.pattern.count:
            raise IndexError(f"there is no stream {slot}")
        return window_for(&self.pattern.streams[slot], largest)

    @staticmethod
    def block_size(int64_t window, int64_t largest):
        return block_size_for(window, largest)
