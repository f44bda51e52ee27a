from libc.stdint cimport int64_t


cdef enum:
    STREAMS = 8


cdef struct Stream:
    int64_t start      # where this run began
    int64_t next       # end of the furthest read seen
    int64_t seen       # bytes of its reads
    int64_t ahead      # end of what was asked for ahead
    int64_t last_use   # the pattern's clock at the last read that belonged to it
    bint window_open   # it counts among the readers that share the budget


cdef struct Pattern:
    Stream streams[STREAMS]
    int count
    int64_t clock
    int64_t last_offset
    int64_t stride
    int stride_hits


cdef int match_stream(Pattern* pattern, int64_t offset, int64_t length) noexcept nogil
cdef int stalest_stream(const Pattern* pattern) noexcept nogil
cdef int64_t window_for(const Stream* stream, int64_t largest) noexcept nogil
cdef int64_t block_size_for(int64_t window, int64_t largest) noexcept nogil
cdef int note_stride(Pattern* pattern, int64_t offset, int64_t length) noexcept nogil
