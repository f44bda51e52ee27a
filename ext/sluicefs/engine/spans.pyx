"""Sets of byte positions as sorted, disjoint, non-adjacent half-open spans [start, end).

Kernels work on C arrays without the GIL; `SpanSet` is their Python door. It must never know whose bytes they are.
"""

from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove


cdef Py_ssize_t first_ending_after(const SpanArray* spans, int64_t position) noexcept nogil:
    """Index of the first span whose end lies beyond `position`; `count` if there is none."""
    cdef Py_ssize_t low = 0, high = spans.count, middle
    while low < high:
        middle = (low + high) >> 1
        if spans.at[middle].end > position:
            high = middle
        else:
            low = middle + 1
    return low


cdef int reserve(SpanArray* spans, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t room
    cdef void* grown
    if count <= spans.room:
        return 0
    room = 2 * count if count > 4 else 4
    grown = realloc(spans.at, room * sizeof(Span))
    if grown == NULL:
        return -1
    spans.at = <Span*> grown
    spans.room = room
    return 0


cdef int64_t add_span(SpanArray* spans, int64_t start, int64_t end) noexcept nogil:
    """Unite with [start, end); returns how many positions are new, -1 when memory is out."""
    cdef Py_ssize_t first, last
    cdef int64_t known = 0, before = start, after = end
    if start >= end:
        return 0
    # Sequential writers extend the last span: no search, no move.
    if spans.count and spans.at[spans.count - 1].end == start:
        spans.at[spans.count - 1].end = end
        return end - start
    first = first_ending_after(spans, start - 1)  # a span that ends exactly at `start` is adjacent: merge it
    last = first
    while last < spans.count and spans.at[last].start <= end:
        known += min(end, spans.at[last].end) - max(start, spans.at[last].start)
        before = min(before, spans.at[last].start)
        after = max(after, spans.at[last].end)
        last += 1
    if last == first:
        if reserve(spans, spans.count + 1) < 0:
            return -1
        memmove(&spans.at[first + 1], &spans.at[first], (spans.count - first) * sizeof(Span))
        spans.count += 1
    elif last > first + 1:
        memmove(&spans.at[first + 1], &spans.at[last], (spans.count - last) * sizeof(Span))
        spans.count -= last - first - 1
    spans.at[first].start = before
    spans.at[first].end = after
    return end - start - known


cdef int64_t remove_span(SpanArray* spans, int64_t start, int64_t end) noexcept nogil:
    """Take [start, end) away; returns how many positions were there, -1 when memory is out (a split needs one more span)."""
    cdef Py_ssize_t first, last
    cdef int64_t gone = 0
    if start >= end:
        return 0
    first = first_ending_after(spans, start)
    if first == spans.count or spans.at[first].start >= end:
        return 0
    if spans.at[first].start < start and spans.at[first].end > end:
        if reserve(spans, spans.count + 1) < 0:
            return -1
        memmove(&spans.at[first + 1], &spans.at[first], (spans.count - first) * sizeof(Span))
        spans.count += 1
        spans.at[first].end = start
        spans.at[first + 1].start = end
        return end - start
    if spans.at[first].start < start:
        gone += spans.at[first].end - start
        spans.at[first].end = start
        first += 1
    last = first
    while last < spans.count and spans.at[last].end <= end:
        gone += spans.at[last].end - spans.at[last].start
        last += 1
    if last < spans.count and spans.at[last].start < end:
        gone += end - spans.at[last].start
        spans.at[last].start = end
    if last > first:
        memmove(&spans.at[first], &spans.at[last], (spans.count - last) * sizeof(Span))
        spans.count -= last - first
    return gone


cdef int64_t covered(const SpanArray* spans, int64_t start, int64_t end) noexcept nogil:
    """How many positions of [start, end) are in the set."""
    cdef Py_ssize_t i = first_ending_after(spans, start)
    cdef int64_t total = 0
    if start >= end:
        return 0
    while i < spans.count and spans.at[i].start < end:
        total += min(end, spans.at[i].end) - max(start, spans.at[i].start)
        i += 1
    return total


cdef class SpanSet:
    """A set of positions (bytes of a file). Not locked: the caller's lock guards it."""

    def __cinit__(self):
        self.spans.at = NULL
        self.spans.count = 0
        self.spans.room = 0

    def __dealloc__(self):
        free(self.spans.at)

    cpdef int64_t add(self, int64_t start, int64_t end) except -1:
        """Unite with [start, end); returns how many positions are new."""
        cdef int64_t new = add_span(&self.spans, start, end)
        if new < 0:
            raise MemoryError
        return new

    cpdef int64_t remove(self, int64_t start, int64_t end) except -1:
        """Take [start, end) away; returns how many positions were there."""
        cdef int64_t gone = remove_span(&self.spans, start, end)
        if gone < 0:
            raise MemoryError
        return gone

    cpdef bint covers(self, int64_t start, int64_t end):
        """True if every position of [start, end) is in the set."""
        return end <= start or covered(&self.spans, start, end) == end - start

    cpdef bint touches(self, int64_t start, int64_t end):
        """True if any position of [start, end) is in the set."""
        cdef Py_ssize_t i = first_ending_after(&self.spans, start)
        return start < end and i < self.spans.count and self.spans.at[i].start < end

    cpdef int64_t bytes_within(self, int64_t start, int64_t end):
        """How many positions of [start, end) are in the set."""
        return covered(&self.spans, start, end)

    def within(self, int64_t start, int64_t end):
        """The parts of [start, end) in the set, as a list of (start, end)."""
        cdef Py_ssize_t i = first_ending_after(&self.spans, start)
        parts = []
        while start < end and i < self.spans.count and self.spans.at[i].start < end:
            parts.append((max(start, self.spans.at[i].start), min(end, self.spans.at[i].end)))
            i += 1
        return parts

    def gaps(self, int64_t start, int64_t end):
        """The parts of [start, end) not in the set, as a list of (start, end)."""
        cdef Py_ssize_t i = first_ending_after(&self.spans, start)
        cdef int64_t position = start
        parts = []
        while start < end and i < self.spans.count and self.spans.at[i].start < end:
            if self.spans.at[i].start > position:
                parts.append((position, self.spans.at[i].start))
            position = self.spans.at[i].end
            i += 1
        if position < end:
            parts.append((position, end))
        return parts

    def clear(self):
        self.spans.count = 0

    def __iter__(self):
        return iter(self.within(0, INT64_MAX))

    def __len__(self):
        return self.spans.count

    @property
    def total(self):
        """How many positions the set holds."""
        return covered(&self.spans, 0, INT64_MAX)
