from libc.stdint cimport int64_t, uint64_t
from posix.types cimport mode_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef class Block:
    cdef unsigned char* data
    cdef readonly int64_t offset
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t filled_bytes
    cdef int64_t served
    cdef int waiters
    cdef bint ended
    cdef bint withdrawn
    cdef bint protected
    cdef bint read_ahead  # asked for by a sequential stream
    cdef bint passed  # read to its end, and not worth keeping
    cdef readonly object error
    cdef BlockMap owner
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed
    cdef Py_ssize_t filled(self) noexcept nogil
    cdef void lock(self) noexcept
    cdef int wait_for(self, Py_ssize_t need, double seconds) except -1


cdef class BlockMap:
    cdef object __weakref__
    cdef BlockCache cache
    cdef list blocks
    cdef public double confirmed
    cdef int64_t asked  # bytes of all blocks that were ever made here
    cdef bint rest_asked  # all of the object was asked for
    cdef Py_ssize_t index_of(self, int64_t position)
    cdef Block find(self, int64_t position)
    cdef Block create(self, int64_t start, int64_t end, bint must)
    cdef void forget(self, Block block)


cdef class BlockCache:
    cdef readonly int64_t budget
    cdef readonly int64_t used
    cdef readonly int64_t in_flight
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t evictions
    cdef int64_t protected_bytes
    cdef readonly int streams
    cdef object probation
    cdef object protected_blocks
    cdef bint make_room(self, int64_t size, bint must)
    cdef int64_t keepable(self)
    cdef void pass_by(self, Block block)
    cdef void touch(self, Block block, Py_ssize_t count)
    cdef void settle(self, Block block)
