"""Answers the reads of one open file from blocks, and asks for what comes next.

`Reader.try_read` is the hot path: one compiled call per FUSE read. What is missing is asked for through `fetch(block, urgent)`,
a callable that queues and returns at once. It must never block while the caller holds a lock: only `collect` waits.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

from sluicefs.engine.blocks cimport Block, BlockCache, BlockMap
from sluicefs.engine.readahead cimport (
    Pattern, Stream, block_size_for, match_stream, note_stride, window_for,
)

cdef int64_t PAGE = 4096
cdef int64_t GRAIN = 128 * 1024
cdef int64_t FIRST = 256 * 1024
# Of an object of up to a quarter of the budget, once an eighth was asked for in pieces, the rest is asked for too: who reads
# like that goes through all of it, and each piece would cost a round trip.
cdef int SHARE_OF_BUDGET = 4
cdef int SHARE_OF_OBJECT = 8
cdef int64_t PIECE = 1024 * 1024
# A stream is taken for abandoned after this many reads of others: what it still waits for in the queue is withdrawn.
cdef int64_t ABANDONED = 24


cdef class Reader:
    """Reads of one open file: `size` bytes of one object version, whose blocks `blocks` holds.

    `largest_block` and `largest_window` bound a fetch and a stream's read-ahead, in bytes. An object of up to `whole` bytes is
    fetched in one go.
    """

    cdef BlockMap blocks
    cdef BlockCache cache
    cdef readonly int64_t size
    cdef object fetch
    cdef int64_t largest_block
    cdef int64_t largest_window
    cdef int64_t whole
    cdef bint passing  # too large to be kept: what a sequential reader is through with leaves at once
    cdef Pattern pattern
    cdef list ahead  # offsets of blocks asked for ahead; a reference would keep an evicted block's bytes
    cdef list rest  # the same, of an object that is fetched whole

    def __cinit__(self, BlockMap blocks not None, int64_t size, object fetch, *, int64_t largest_block=16 << 20,
                  int64_t largest_window=128 << 20, int64_t whole=1 << 20):
        self.blocks = blocks
        self.cache = blocks.cache
        self.size = size
        self.fetch = fetch
        self.largest_block = largest_block
        self.largest_window = largest_window
        self.whole = whole
        self.passing = size > self.cache.keepable()
        self.ahead = []
        self.rest = []
        memset(&self.pattern, 0, sizeof(Pattern))

    def try_read(self, int64_t offset, int64_t length):
        """The bytes, if they are all in memory: a memoryview of a block. None: call `demand`, then `collect`."""
        cdef int64_t end
        cdef Block block
        if offset >= self.size or length <= 0:
            return b""
        end = min(offset + length, self.size)
        self.follow(offset, end - offset)
        block = self.blocks.find(offset)
        if block is None or block.offset + block.filled() < end:
            return None
        self.served(block, end - offset)
        return memoryview(block)[offset - block.offset:end - block.offset]

    def demand(self, int64_t offset, int64_t length):
        """Make sure that a fetch is under way for every byte; returns the new blocks, which the caller has to fetch."""
        cdef int64_t end = min(offset + length, self.size)
        cdef int64_t stop
        cdef Block block
        cdef list mine = []
        while offset < end:
            block = self.blocks.find(offset)
            if block is None:
                if self.size <= self.whole:
                    stop = self.size
                else:
                    stop = (end + PAGE - 1) // PAGE * PAGE
                    if offset == 0:
                        stop = max(stop, FIRST)
                block = self.blocks.create(offset, min(stop, self.size), True)
                self.cache.misses += 1
                mine.append(block)
            offset = block.offset + block.size
        if len(mine) and self.deserves_the_rest():
            self.ask_rest()
        return mine

    cdef bint deserves_the_rest(self):
        """Is the object read all over, and is there room for all of it?"""
        if self.size <= self.whole or self.blocks.rest_asked or self.blocks.asked < self.size // SHARE_OF_OBJECT:
            return False
        return self.size <= self.cache.budget // SHARE_OF_BUDGET and self.cache.in_flight + self.size <= self.cache.budget // 2

    def collect(self, int64_t offset, int64_t length, double seconds):
        """Wait for the bytes, at most `seconds` for each block. None if a block went meanwhile: `demand` again.

        Raises what the fetch failed with, or TimeoutError.
        """
        cdef int64_t end = min(offset + length, self.size)
        cdef int64_t position = offset, stop
        cdef Block block
        cdef list held = []
        while position < end:
            block = self.blocks.find(position)
            if block is None:
                return None
            held.append(block)
            position = block.offset + block.size
        pieces = []
        position = offset
        for block in held:
            stop = min(end, block.offset + block.size)
            if not block.wait_for(stop - block.offset, seconds):
                if block.withdrawn:
                    return None
                raise block.error
            self.served(block, stop - position)
            pieces.append(memoryview(block)[position - block.offset:stop - block.offset])
            position = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    cdef void served(self, Block block, Py_ssize_t count):
        """Account `count` bytes given from `block`: the kernel keeps them now, memory need not hold them twice."""
        self.cache.touch(block, count)
        if self.passing and block.served >= block.size and block.read_ahead:
            self.cache.pass_by(block)

    cdef int follow(self, int64_t offset, int64_t length) except -1:
        """Account a read; ask ahead where the pattern promises something."""
        cdef int slot, hits
        cdef bint replaced
        cdef Stream* stream
        if self.size <= self.whole:
            return 0
        hits = note_stride(&self.pattern, offset, length)
        slot = match_stream(&self.pattern, offset, length)
        if slot < 0:
            stream = &self.pattern.streams[-1 - slot]
            replaced = stream.window_open
            if replaced:
                stream.window_open = False
                self.cache.streams -= 1
            self.withdraw_abandoned(replaced)
            if hits >= 2:
                self.ask_strided(offset, length)
            return 0
        stream = &self.pattern.streams[slot]
        # Backwards: below all that was read. (Reads of a forward reader come out of order, a few of them in reverse.)
        if self.pattern.stride < 0 and hits >= 2 and offset == stream.start:
            self.ask_strided(offset, length)
        else:
            self.ask_ahead(stream)
        return 0

    cdef int ask_ahead(self, Stream* stream) except -1:
        cdef int64_t share, window, size, start, end
        cdef Block block
        share = (self.cache.budget // 2) // max(1, self.cache.streams + (0 if stream.window_open else 1))
        window = window_for(stream, min(self.largest_window, share))
        if window == 0:
            return 0
        if not stream.window_open:
            stream.window_open = True
            self.cache.streams += 1
        size = block_size_for(window, self.largest_block)
        while stream.ahead < self.size and stream.ahead + size <= stream.next + max(window, size):
            start = stream.ahead
            block = self.blocks.find(start)
            if block is None:
                end = (start + size) // GRAIN * GRAIN
                block = self.blocks.create(start, min(max(end, start + GRAIN), self.size), False)
                if block is None:
                    return 0
                block.read_ahead = True
                self.note_ahead(block)
                self.fetch(block, False)
            stream.ahead = block.offset + block.size
        return 0

    cdef int ask_rest(self) except -1:
        """Ask for all of the object that is not there. Small pieces that are give way, as they would cut it into many more."""
        cdef int64_t position = 0
        cdef Block block
        self.blocks.rest_asked = True
        for block in list(self.blocks.blocks):
            if block.ended and block.size < PIECE:
                self.cache.drop(block)
        while position < self.size:
            block = self.blocks.find(position)
            if block is None:
                block = self.blocks.create(position, min(position + self.largest_block, self.size), False)
                if block is None:
                    return 0
                self.rest.append(position)
                self.fetch(block, False)
            position = block.offset + block.size
        return 0

    cdef int ask_strided(self, int64_t offset, int64_t length) except -1:
        """The next reads of a reader that jumps by a constant distance, forwards or backwards."""
        cdef int i
        cdef int64_t start, end
        cdef Block block
        for i in range(1, min(self.pattern.stride_hits, 8) + 1):
            start = (offset + i * self.pattern.stride) // PAGE * PAGE
            end = offset + i * self.pattern.stride + length
            if end <= 0 or start >= self.size:
                break
            start = max(start, 0)
            block = self.blocks.find(start)
            if block is not None:
                continue
            block = self.blocks.create(start, min((end + PAGE - 1) // PAGE * PAGE, self.size), False)
            if block is None:
                break
            self.note_ahead(block)
            self.fetch(block, False)
        return 0

    cdef int note_ahead(self, Block block) except -1:
        if len(self.ahead) >= 64:
            self.ahead = [offset for offset in self.ahead if self.in_flight(offset) is not None]
        self.ahead.append(block.offset)
        return 0

    cdef Block in_flight(self, int64_t offset):
        """The block at `offset`, if its fetch has not ended."""
        cdef Block block = self.blocks.find(offset)
        return None if block is None or block.ended else block

    cdef int withdraw_abandoned(self, bint abandoned) except -1:
        """Take back what streams asked for that nobody has read from lately, or that gave way to new ones (`abandoned`)."""
        cdef Block block
        cdef Stream* stream
        cdef int i
        cdef list kept = []
        if len(self.ahead) == 0:
            return 0
        for i in range(self.pattern.count):
            stream = &self.pattern.streams[i]
            if stream.window_open and self.pattern.clock - stream.last_use > ABANDONED:
                stream.window_open = False
                stream.ahead = stream.next
                self.cache.streams -= 1
                abandoned = True
        for offset in self.ahead:
            block = self.in_flight(offset)
            if block is None:
                continue
            if abandoned and not self.in_window(block):
                self.drop(block)
            else:
                kept.append(offset)
        self.ahead = kept
        return 0

    cdef bint in_window(self, Block block):
        cdef int i
        cdef Stream* stream
        for i in range(self.pattern.count):
            stream = &self.pattern.streams[i]
            if stream.window_open and stream.next <= block.offset + block.size and block.offset < stream.ahead:
                return True
        return False

    cdef void drop(self, Block block):
        block.withdraw()
        if block.waiters == 0:
            self.cache.drop(block)

    def close(self):
        """The file was closed: read-ahead under way for it is taken back."""
        cdef Block block
        cdef int i
        for i in range(self.pattern.count):
            if self.pattern.streams[i].window_open:
                self.pattern.streams[i].window_open = False
                self.cache.streams -= 1
        self.pattern.count = 0
        for offset in self.ahead + self.rest:
            block = self.in_flight(offset)
            if block is not None:
                self.drop(block)
                self.blocks.rest_asked = False
        self.ahead = []
        self.rest = []
