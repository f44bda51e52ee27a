from libc.stdint cimport int64_t


cdef struct Span:
    int64_t start
    int64_t end


cdef struct SpanArray:
    Span* at
    Py_ssize_t count
    Py_ssize_t room


cdef Py_ssize_t first_ending_after(const SpanArray* spans, int64_t position) noexcept nogil
cdef int64_t add_span(SpanArray* spans, int64_t start, int64_t end) noexcept nogil
cdef int64_t remove_span(SpanArray* spans, int64_t start, int64_t end) noexcept nogil
cdef int64_t covered(const SpanArray* spans, int64_t start, int64_t end) noexcept nogil


cdef class SpanSet:
    cdef SpanArray spans
    cpdef int64_t add(self, int64_t start, int64_t end) except -1
    cpdef int64_t remove(self, int64_t start, int64_t end) except -1
    cpdef bint covers(self, int64_t start, int64_t end)
    cpdef bint touches(self, int64_t start, int64_t end)
    cpdef int64_t bytes_within(self, int64_t start, int64_t end)
