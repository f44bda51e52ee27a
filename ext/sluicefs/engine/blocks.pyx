"""Blocks of objects in memory, within a byte budget.

A `Block` is one contiguous range of one object version. It is filled once, from its start on, by one fetch; its bytes are
usable as they arrive, and a byte once published never changes, so a FUSE reply may send straight from it. A `BlockMap` holds
the disjoint blocks of one object version; a `BlockCache` bounds the blocks of all maps and evicts.

Structure (maps, cache lists) is guarded by the GIL: nothing here gives it up half way. A block's fill state has its own mutex,
so that a reader waits for it without the GIL. This module must never know a key, a URL or a file name.
"""

from collections import OrderedDict

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, const timespec*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)
    int pthread_condattr_destroy(pthread_condattr_t*)


cdef extern from *:
    """
    #include <sys/mman.h>
    static inline Py_ssize_t sluice_load(const Py_ssize_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void sluice_store(Py_ssize_t *at, Py_ssize_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static unsigned char *sluice_map(size_t size) {
        void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return NULL;
        /* Filling fresh 4 KiB pages costs 0.5 s of CPU per GB, huge ones half of that. */
        if (size >= 2 << 20) madvise(at, size, MADV_HUGEPAGE);
        return (unsigned char *) at;
    }
    static void sluice_unmap(unsigned char *at, size_t size) { munmap(at, size); }
    """
    Py_ssize_t sluice_load(const Py_ssize_t*) noexcept nogil
    void sluice_store(Py_ssize_t*, Py_ssize_t) noexcept nogil
    unsigned char* sluice_map(size_t) noexcept nogil
    void sluice_unmap(unsigned char*, size_t) noexcept nogil


# Below this malloc is cheaper; above it, memory given back by munmap really leaves the process (glibc's heap keeps it).
cdef Py_ssize_t MAP_FROM = 128 * 1024
# Blocks of a sequential read follow one another: using their pages again spares the faults, which cost as much as receiving the
# bytes. A little may be kept for that beyond the budget, up to half of the (last made) cache's budget while that is free.
cdef Py_ssize_t SPARE_BYTES = 32 * 1024 * 1024
cdef Py_ssize_t spare_beyond = SPARE_BYTES
cdef Py_ssize_t spare_limit = SPARE_BYTES
cdef enum:
    SPARES = 64
cdef unsigned char* spares[SPARES]
cdef Py_ssize_t spare_sizes[SPARES]
cdef int spare_count = 0
cdef Py_ssize_t spare_bytes = 0


cdef unsigned char* take_memory(Py_ssize_t size) noexcept:
    global spare_count, spare_bytes
    cdef unsigned char* data
    cdef int i
    if size < MAP_FROM:
        return <unsigned char*> malloc(size if size else 1)
    for i in range(spare_count - 1, -1, -1):
        if spare_sizes[i] == size:
            data = spares[i]
            spare_count -= 1
            spares[i] = spares[spare_count]
            spare_sizes[i] = spare_sizes[spare_count]
            spare_bytes -= size
            return data
    return sluice_map(size)


cdef void give_memory(unsigned char* data, Py_ssize_t size) noexcept:
    global spare_count, spare_bytes
    if size < MAP_FROM:
        free(data)
    elif spare_count < SPARES and spare_bytes + size <= spare_limit:
        spares[spare_count] = data
        spare_sizes[spare_count] = size
        spare_count += 1
        spare_bytes += size
    else:
        sluice_unmap(data, size)


cdef void trim_spares(Py_ssize_t limit) noexcept:
    """Give spare memory back to the system until at most `limit` bytes are kept."""
    global spare_count, spare_bytes
    while spare_count and spare_bytes > limit:
        spare_count -= 1
        spare_bytes -= spare_sizes[spare_count]
        sluice_unmap(spares[spare_count], spare_sizes[spare_count])


cdef class Filling:
    """The writable face of a block, for its one fetch. Drop it when the fetch ends."""

    cdef Block block

    def __cinit__(self, Block block):
        self.block = block

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.block.data, self.block.size, 0, flags)


cdef class Block:
    """Bytes [offset, offset + size) of one object version. The buffer is read-only; only its first `len(block)` bytes count."""

    def __cinit__(self, int64_t offset, Py_ssize_t size):
        cdef pthread_condattr_t monotonic
        if size <= 0 or offset < 0:
            raise ValueError("a block has a positive size and an offset from 0 on")
        self.data = take_memory(size)
        if self.data == NULL:
            raise MemoryError
        self.offset = offset
        self.size = size
        pthread_mutex_init(&self.mutex, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&self.changed, &monotonic)
        pthread_condattr_destroy(&monotonic)

    def __dealloc__(self):
        if self.data != NULL:
            give_memory(self.data, self.size)
            pthread_cond_destroy(&self.changed)
            pthread_mutex_destroy(&self.mutex)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 1, flags)

    cdef Py_ssize_t filled(self) noexcept nogil:
        return sluice_load(&self.filled_bytes)

    def __len__(self):
        """How many bytes, from the start on, have arrived."""
        return self.filled()

    @property
    def done(self):
        """The fetch ended: filled, failed or withdrawn."""
        return self.ended

    @property
    def wanted(self):
        """False once nobody waits for the block and its read-ahead was withdrawn."""
        return not self.withdrawn or self.waiters > 0

    def cancelled(self):
        """For `Store.get_into(cancelled=…)`."""
        return self.withdrawn and self.waiters == 0

    def writable(self):
        """A writable memoryview of the whole block, for its fetch."""
        return memoryview(Filling(self))

    def advance(self, Py_ssize_t filled):
        """Publish: the first `filled` bytes are in place. Never goes back."""
        cdef Py_ssize_t now = min(filled, self.size)
        if now <= self.filled():
            return
        self.lock()
        if now > self.filled_bytes:
            sluice_store(&self.filled_bytes, now)
            pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)

    cdef void lock(self) noexcept:
        """Nobody holds the mutex for long, and without the GIL only to wait: giving the GIL up first is seldom needed."""
        if pthread_mutex_trylock(&self.mutex) != 0:
            with nogil:
                pthread_mutex_lock(&self.mutex)

    def finish(self, object error=None):
        """The fetch is over. With `error`, or with bytes missing, the block leaves its map and the next reader fetches anew."""
        cdef BlockMap owner = self.owner
        if self.ended:
            return
        if error is None and self.filled() < self.size:
            error = RuntimeError("a fetch ended before its block was full")
        self.error = error
        self.ended = True
        self.lock()
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)
        if owner is not None:
            owner.cache.settle(self)

    def withdraw(self):
        """Read-ahead that is no longer wanted: a queued fetch is skipped, a running one stops, unless somebody waits."""
        if not self.ended:
            self.withdrawn = True

    cdef int wait_for(self, Py_ssize_t need, double seconds) except -1:
        """Wait until `need` bytes are there (1), the fetch ended without them (0) or the time is over (-> TimeoutError)."""
        cdef timespec until
        cdef int state = 0
        if self.filled() >= need:
            return 1
        clock_gettime(CLOCK_MONOTONIC, &until)
        until.tv_sec += <long> seconds
        until.tv_nsec += <long> ((seconds - <long> seconds) * 1e9)
        if until.tv_nsec >= 1000000000:
            until.tv_nsec -= 1000000000
            until.tv_sec += 1
        self.waiters += 1
        with nogil:
            pthread_mutex_lock(&self.mutex)
            while self.filled_bytes < need and not self.ended and state != ETIMEDOUT:
                state = pthread_cond_timedwait(&self.changed, &self.mutex, &until)
            pthread_mutex_unlock(&self.mutex)
        self.waiters -= 1
        if self.filled() >= need:
            return 1
        if self.ended:
            return 0
        raise TimeoutError(f"no data within {seconds:g} s")

    def wait(self, Py_ssize_t need, double seconds):
        """Wait at most `seconds` for the first `need` bytes; False if the fetch ended without them. Raises TimeoutError."""
        return self.wait_for(need, seconds) == 1


cdef class BlockMap:
    """The disjoint blocks of one object version, by offset.

    `confirmed`: when the owner last learnt that the version is still the current one (monotonic seconds).
    """

    def __cinit__(self, BlockCache cache not None):
        self.cache = cache
        self.blocks = []

    def __len__(self):
        return len(self.blocks)

    cdef Py_ssize_t index_of(self, int64_t position):
        """Index of the first block that ends beyond `position`."""
        cdef Py_ssize_t low = 0, high = len(self.blocks), middle
        cdef Block block
        while low < high:
            middle = (low + high) >> 1
            block = <Block> self.blocks[middle]
            if block.offset + block.size > position:
                high = middle
            else:
                low = middle + 1
        return low

    cdef Block find(self, int64_t position):
        """The block that holds `position`, or None."""
        cdef Py_ssize_t i = self.index_of(position)
        cdef Block block
        if i < len(self.blocks):
            block = <Block> self.blocks[i]
            if block.offset <= position:
                return block
        return None

    cdef Block create(self, int64_t start, int64_t end, bint must):
        """A new, empty block at `start`, cut where the next begins; None if `start` is held or room is short."""
        cdef Py_ssize_t i = self.index_of(start)
        cdef Block next_block, block
        if i < len(self.blocks):
            next_block = <Block> self.blocks[i]
            if next_block.offset <= start:
                return None
            end = min(end, next_block.offset)
        if not self.cache.make_room(end - start, must) and not must:
            return None
        i = self.index_of(start)  # making room may have evicted blocks of this very map
        block = Block(start, end - start)
        block.owner = self
        self.blocks.insert(i, block)
        self.asked += block.size
        self.cache.used += block.size
        self.cache.in_flight += block.size
        return block

    cdef void forget(self, Block block):
        cdef Py_ssize_t i = self.index_of(block.offset)
        if i < len(self.blocks) and self.blocks[i] is block:
            del self.blocks[i]
        block.owner = None

    def insert(self, int64_t start, object data):
        """Put bytes that are known already (a small file just written or fetched) into the map, where there is room."""
        cdef const unsigned char[::1] source = data
        cdef Block block
        if source.shape[0] == 0:
            return
        block = self.create(start, start + source.shape[0], False)
        if block is None:
            return
        memoryview(Filling(block))[:] = memoryview(source)[:block.size]
        block.advance(block.size)
        block.finish()

    def claim(self, int64_t start, int64_t end):
        """A new empty block for [start, end), cut at the next one, to be filled; None if `start` is held or room is short."""
        return self.create(start, end, False)

    def covers(self, int64_t start, int64_t end):
        """True if every byte of [start, end) is in the map and has arrived."""
        cdef Block block
        while start < end:
            block = self.find(start)
            if block is None or block.offset + block.filled() <= start:
                return False
            start = block.offset + block.filled()
        return True

    def clear(self):
        """Drop every block; fetches under way are withdrawn."""
        cdef Block block
        for block in list(self.blocks):
            block.withdraw()
            self.cache.drop(block)

    def drop_ended(self):
        """Drop the blocks whose fetch has ended."""
        cdef Block block
        for block in list(self.blocks):
            if block.ended:
                self.cache.drop(block)


cdef class BlockCache:
    """The budget over all blocks, and who leaves first.

    Segmented LRU: new blocks are on probation, a block served well over its own size (somebody came back) is protected.
    Probation is evicted first, and a fifth of the budget is never protected, so one long sequential read passes through without
    flushing what is read again and again. Only a reader that waits may evict protected blocks, read-ahead may not.
    """

    def __cinit__(self, int64_t budget):
        if budget <= 0:
            raise ValueError("the budget is a positive number of bytes")
        global spare_limit, spare_beyond
        self.budget = budget
        spare_limit = <Py_ssize_t> (budget // 2)
        spare_beyond = <Py_ssize_t> min(budget // 4, <int64_t> SPARE_BYTES)
        trim_spares(spare_beyond)
        self.probation = OrderedDict()
        self.protected_blocks = OrderedDict()

    def stream_opened(self):
        """One more sequential reader shares the budget."""
        self.streams += 1

    def stream_closed(self):
        self.streams -= 1

    cdef bint make_room(self, int64_t size, bint must):
        """Evict until `size` more bytes fit; False if what is left may not be evicted."""
        cdef Block victim
        while self.used + size > self.budget:
            if self.probation:
                _, victim = self.probation.popitem(False)
            elif must and self.protected_blocks:
                _, victim = self.protected_blocks.popitem(False)
                self.protected_bytes -= victim.size
            else:
                return False
            self.used -= victim.size
            self.evictions += 1
            if victim.owner is not None:
                victim.owner.forget(victim)
        # Not counting the new block: most likely it takes a spare one's place.
        trim_spares(<Py_ssize_t> max(<int64_t> spare_beyond, self.budget + spare_beyond - self.used))
        return True

    cdef void touch(self, Block block, Py_ssize_t count):
        """Account `count` bytes served from `block`."""
        cdef object name
        self.hits += 1
        block.served += count
        if not block.ended or block.owner is None:
            return
        name = id(block)
        if block.protected:
            self.protected_blocks.move_to_end(name)
        elif block.served > block.size + (block.size >> 1):
            if self.probation.pop(name, None) is not None:
                block.protected = True
                self.protected_blocks[name] = block
                self.protected_bytes += block.size
                while self.protected_bytes > self.keepable():  # the longest unused one must prove itself anew
                    name, block = self.protected_blocks.popitem(False)
                    self.protected_bytes -= block.size
                    block.protected = False
                    block.served = 0
                    self.probation[name] = block

    cdef int64_t keepable(self):
        """Bytes of the largest object that is worth keeping whole."""
        return self.budget - self.budget // 5

    cdef void pass_by(self, Block block):
        """Everything of the block was read by a stream that will not come back."""
        block.passed = True
        if block.ended:
            self.drop(block)

    cdef void settle(self, Block block):
        """A fetch ended: the block may now be evicted, or is gone if it failed or nobody needs it any more."""
        self.in_flight -= block.size
        if block.error is not None or block.passed:
            self.used -= block.size
            if block.owner is not None:
                block.owner.forget(block)
        else:
            self.probation[id(block)] = block

    def drop(self, Block block not None):
        """Take one block out of the cache and its map."""
        cdef BlockMap owner = block.owner
        if owner is None:
            return
        if not block.ended:
            # Its fetch still writes into it: out of the map now, out of the books here; `finish` finds no owner.
            self.in_flight -= block.size
            self.used -= block.size
        else:
            if self.probation.pop(id(block), None) is None:
                if self.protected_blocks.pop(id(block), None) is not None:
                    self.protected_bytes -= block.size
            self.used -= block.size
        owner.forget(block)

    def stats(self):
        """Bytes and counts, for `status`."""
        return {
            "budget": self.budget,
            "used": self.used,
            "in_flight": self.in_flight,
            "protected": self.protected_bytes,
            "blocks": len(self.probation) + len(self.protected_blocks),
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
        }
