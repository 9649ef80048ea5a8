# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The frame loop's inner steps, compiled where there is a compiler at install (docs/adr/0056).

Every function here does at once what Python does step by step, for the ordinary case alone. For
anything else (a frame that contradicts itself, a block that is not what its context says, a file
that cannot be read) it answers None before it has changed anything, and the caller goes the way it
goes without this module: what is refused, and how, is decided in one place. Layouts are those of
stairlib/wire/frame.py, vmmd/block/nbd_wire.py and downstaird/core/overlay.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_GET_BUFFER
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from xxhash import xxh3_64_intdigest as _hash


cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "frames are little endian: the Python form serves this machine"
    #endif
    #include <unistd.h>
    #define swap16 __builtin_bswap16
    #define swap32 __builtin_bswap32
    #define swap64 __builtin_bswap64
    """
    uint16_t swap16(uint16_t) nogil
    uint32_t swap32(uint32_t) nogil
    uint64_t swap64(uint64_t) nogil
    ssize_t pread(int, void *, size_t, int64_t) nogil


cdef packed struct Header:
    uint32_t magic
    uint16_t kind, flags
    uint32_t length, ops, dependencies, contexts, blob_bytes, payload_bytes
    uint64_t sequence


cdef packed struct Op:
    uint64_t job
    uint8_t kind, status
    uint16_t flags
    uint32_t dependencies
    uint64_t offset
    uint32_t length, blob_bytes
    uint64_t generation, number


cdef enum:
    MAGIC = 0x31465753, OPS_MAX = 4096, PAYLOAD_MAX = 4 << 20, CONTEXT = 32, FRAME_KINDS = 7
    REQUEST = 3, REPLY = 4, READ = 1, WRITE = 2, PLAIN_MARK = 1, HOME = -1, DEAD = -1


cdef class Held:
    def __cinit__(self, of):
        PyObject_GetBuffer(of, &self.view, PyBUF_SIMPLE)
        self.at = <char *>self.view.buf
        self.size = self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


# ---- hashes and contexts

cdef bint _all_as_told(const char *data, const char *contexts, Py_ssize_t count, Py_ssize_t size,
                       bint plain):
    """Whether every block is of that kind and what its context says (stairlib/model/context.py)."""
    cdef Py_ssize_t index
    cdef const char *told = contexts
    cdef uint64_t found
    # One view for all blocks: the function called looks at it, and keeps nothing.
    view = PyMemoryView_FromMemory(<char *>data, size, 0x100)
    head = PyMemoryView_FromMemory(<char *>contexts, CONTEXT - 4, 0x100)
    for index in range(count):
        PyMemoryView_GET_BUFFER(view).buf = <char *>data + index * size
        if plain:
            found = _hash(view)
            if (<uint64_t *>told)[0] != found or (<uint64_t *>told)[1] != PLAIN_MARK:
                return False
        else:
            PyMemoryView_GET_BUFFER(head).buf = <char *>told + 4
            found = _hash(view, _hash(head)) & 0xFFFFFFFF
            # 0 is told of a block without a context, too.
            if not found or (<uint32_t *>told)[0] != found:
                return False
        told += CONTEXT
    return True


def as_told(data not None, contexts not None, Py_ssize_t size, bint plain):
    """Whether the blocks of `size` bytes are what their contexts (32 bytes each) say."""
    cdef Held blocks = Held(data), told = Held(contexts)
    cdef Py_ssize_t count = told.size // CONTEXT
    if size < 1 or told.size % CONTEXT or blocks.size % size or blocks.size // size != count:
        return False
    return _all_as_told(blocks.at, told.at, count, size, plain) if count else True


def plain_contexts(data not None, Py_ssize_t size):
    """The contexts of the plain blocks in `data`, a bytearray."""
    cdef Held blocks = Held(data)
    cdef Py_ssize_t index, count = blocks.size // size if size > 0 else 0
    made = bytearray(count * CONTEXT)
    cdef uint64_t *told = <uint64_t *><char *>made
    view = PyMemoryView_FromMemory(blocks.at, size, 0x100)
    for index in range(count):
        PyMemoryView_GET_BUFFER(view).buf = blocks.at + index * size
        told[4 * index], told[4 * index + 1] = _hash(view), PLAIN_MARK
    return made


cdef class Filling:  # lets bytes be filled that nobody has seen yet
    cdef bytes made

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, PyBytes_AS_STRING(self.made), len(self.made), 0, flags)


def new_bytes(Py_ssize_t size):
    """Bytes that are to be filled by the view beside them, which nobody may use after that."""
    cdef Filling filling = Filling()
    filling.made = PyBytes_FromStringAndSize(NULL, size)
    return filling.made, memoryview(filling)


# ---- frames

cdef bint _adds_up(const char *data, Py_ssize_t size, Header *head):
    """Whether the bytes are one frame by their header."""
    if size < <Py_ssize_t>sizeof(Header):
        return False
    memcpy(head, data, sizeof(Header))
    return (
        head.magic == MAGIC and head.length == <uint64_t>size
        and head.ops <= OPS_MAX and 1 <= head.kind <= FRAME_KINDS
        and sizeof(Header) + <uint64_t>head.ops * sizeof(Op) + <uint64_t>head.dependencies * 8
        + head.blob_bytes + <uint64_t>head.contexts * CONTEXT + head.payload_bytes == <uint64_t>size
    )


def summary(frame not None):
    """(kind, flags, sequence, ops, dependencies, contexts, blob bytes, first job, last job, whether
    no op has a status) of what is one frame by itself; None for anything else."""
    cdef Held held = Held(frame)
    cdef Header head
    cdef const Op *op
    cdef uint64_t dependencies = 0, blobs = 0, first = 0, last = 0
    cdef uint32_t index
    cdef uint8_t statuses = 0
    if not _adds_up(held.at, held.size, &head):
        return None
    for index in range(head.ops):
        op = <const Op *>(held.at + sizeof(Header)) + index
        dependencies += op.dependencies
        blobs += op.blob_bytes
        statuses |= op.status
        last = op.job
        if not index:
            first = last
    if dependencies != head.dependencies or ((blobs + 7) // 8) * 8 != head.blob_bytes:
        return None
    return (head.kind, head.flags, head.sequence, head.ops, head.dependencies, head.contexts,
            head.blob_bytes, first, last, not statuses)


cdef bytes _new_frame(int kind, uint64_t sequence, uint32_t ops, Py_ssize_t contexts,
                      Py_ssize_t payload, bint whole):
    """Bytes with a frame's header; the rest is to be filled in. `whole`: with room for payload."""
    cdef Py_ssize_t size = sizeof(Header) + ops * sizeof(Op) + contexts * CONTEXT
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size + payload if whole else size)
    cdef Header *head = <Header *>PyBytes_AS_STRING(made)
    memset(head, 0, sizeof(Header) + ops * sizeof(Op))
    head.magic, head.kind, head.length, head.ops = MAGIC, kind, size + payload, ops
    head.contexts, head.payload_bytes, head.sequence = contexts, payload, sequence
    return made


def request_head(uint64_t first, list ops not None, contexts not None, Py_ssize_t payload_bytes):
    """All of a request but its payload, for ops of (kind, offset, length) with jobs from `first`."""
    cdef Held held = Held(contexts)
    cdef bytes made = _new_frame(REQUEST, first, len(ops), held.size // CONTEXT, payload_bytes, 0)
    cdef Op *op = <Op *>(PyBytes_AS_STRING(made) + sizeof(Header))
    for kind, offset, length in ops:
        op.job, op.kind, op.offset, op.length = first, kind, offset, length
        first += 1
        op += 1
    memcpy(op, held.at, held.size // CONTEXT * CONTEXT)
    return made


# ---- a region's blocks, as downstaird/core/overlay.py and region_io.py keep them

cdef class Arena:  # the buffers of one of the overlay's
    cdef Held data, contexts
    cdef int64_t start

    def __cinit__(self, arena not None, *_):
        self.data, self.contexts = Held(arena.data), Held(arena.contexts)
        self.start = arena.start


cdef class Region:  # what reads look at, for the time of one frame
    cdef object overlay, file
    cdef dict tables, fresh, cached
    cdef Arena active, frozen
    cdef Held live
    cdef Py_ssize_t chunk_blocks, size
    cdef int descriptor

    def __cinit__(self, overlay not None, chunks not None, Py_ssize_t chunk_blocks, Py_ssize_t size):
        assert chunk_blocks > 0 and size > 0
        self.overlay, self.tables = overlay, overlay.tables
        self.fresh, self.cached, self.live = chunks.fresh, chunks.cached, Held(chunks.live)
        self.file = chunks.data
        self.chunk_blocks, self.size = chunk_blocks, size
        self.active = Arena(overlay.active)
        self.frozen = None if overlay.frozen is None else Arena(overlay.frozen)

    cdef bint read(self, uint64_t offset, Py_ssize_t count, char *contexts, char *data) except -1:
        """Blocks of the region; False when a step is needed that only Python can do."""
        cdef Py_ssize_t chunk, first, here, index, run
        cdef const int64_t *places
        cdef int64_t place
        while count:
            chunk, first = offset // self.chunk_blocks, offset % self.chunk_blocks
            here = min(count, self.chunk_blocks - first)
            table = self.tables.get(chunk)
            if table is None:
                if not self.read_home(chunk, first, here, contexts, data):
                    return False
            else:
                held = Held(table)
                assert (<Held>held).size >= (first + here) * 8
                places = <const int64_t *>(<Held>held).at + first
                index = 0
                while index < here:
                    place, run = places[index], 1
                    while index + run < here and places[index + run] == (
                        place + run if place >= 0 else place
                    ):
                        run += 1
                    if not self.read_run(place, chunk, first + index, run,
                                         contexts + index * CONTEXT, data + index * self.size):
                        return False
                    index += run
            offset, count = offset + here, count - here
            contexts, data = contexts + here * CONTEXT, data + here * self.size
        return True

    cdef bint read_run(self, int64_t place, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t count,
                       char *contexts, char *data) except -1:
        cdef Arena arena = self.active
        if place < 0:
            return self.read_home(chunk if place == HOME else -1, first, count, contexts, data)
        if place < arena.start:
            arena = self.frozen
        if arena is None or place < arena.start:
            return self.read_logged(place, count, contexts, data)
        place -= arena.start
        return self.copied(arena.contexts, arena.data, place, count, contexts, data)

    cdef bint copied(self, Held contexts, Held data, Py_ssize_t first, Py_ssize_t count,
                     char *to_contexts, char *to_data) except -1:
        """Takes contexts, and data where there is some, after a look at their bounds."""
        assert 0 <= first and (first + count) * CONTEXT <= contexts.size
        memcpy(to_contexts, contexts.at + first * CONTEXT, count * CONTEXT)
        if data is not None:
            assert (first + count) * self.size <= data.size
            memcpy(to_data, data.at + first * self.size, count * self.size)
        return True

    cdef bint read_home(self, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t count,
                        char *contexts, char *data) except -1:
        """`chunk` -1: of none, blocks that are discarded."""
        assert (chunk + 1) * 4 <= self.live.size
        cdef uint32_t physical = (<const uint32_t *>self.live.at)[chunk] if chunk >= 0 else 0
        cdef const uint64_t *context
        cdef Py_ssize_t index
        if not physical:
            memset(contexts, 0, count * CONTEXT)
            memset(data, 0, count * self.size)
            return True
        home = self.fresh.get(physical) or self.cached.get(physical)
        if home is None:
            return False
        self.copied(Held(home.contexts), None, first, count, contexts, data)
        cdef int64_t at = (<int64_t>physical * self.chunk_blocks + first) * self.size
        if not self.read_file(self.file, data, count * self.size, at):
            return False
        for index in range(count):
            context = <const uint64_t *>contexts + 4 * index
            # Where a block has no context, its place holds anything.
            if not (context[0] | context[1] | context[2] | context[3]):
                memset(data + index * self.size, 0, self.size)
        return True

    cdef bint read_logged(self, int64_t place, Py_ssize_t count, char *contexts, char *data) except -1:
        epoch = self.overlay.epoch_of(place)
        cdef Py_ssize_t rank = epoch.rank(place)
        self.copied(Held(epoch.contexts), None, rank, count, contexts, data)
        return self.read_file(epoch.file, data, count * self.size,
                              epoch.data_offset + rank * self.size)

    cdef bint read_file(self, file, char *data, Py_ssize_t size, int64_t offset) except -1:
        cdef int descriptor = getattr(file, "descriptor", -1)
        cdef Py_ssize_t got
        cdef bytes read
        if descriptor >= 0:
            with nogil:
                got = pread(descriptor, data, size, offset)
            return got == size
        read = file.pread(size, offset)
        assert len(read) == size
        memcpy(data, PyBytes_AS_STRING(read), size)
        return True


cdef Py_ssize_t _blocks_of(Held frame, Header *head, int kind, uint64_t block_count):
    """The blocks of a request of ops of one kind and nothing unusual; -1 for any other frame."""
    cdef const Op *op
    cdef uint32_t index
    cdef Py_ssize_t blocks = 0
    if not _adds_up(frame.at, frame.size, head) or head.kind != REQUEST or not head.ops or (
        head.dependencies or head.blob_bytes
    ):
        return -1
    for index in range(head.ops):
        op = <const Op *>(frame.at + sizeof(Header)) + index
        if op.kind != kind or op.dependencies or op.blob_bytes or not op.length or (
            op.offset >= block_count or op.length > block_count - op.offset
        ):
            return -1
        blocks += op.length
    return blocks


def serve_reads(frame not None, overlay, chunks, Py_ssize_t chunk_blocks, Py_ssize_t size,
                uint64_t block_count):
    """The whole reply to a request of reads alone, and its blocks. A file's errors are raised."""
    cdef Held held = Held(frame)
    cdef Header head
    cdef Py_ssize_t blocks = _blocks_of(held, &head, READ, block_count), at = 0
    cdef const Op *op = <const Op *>(held.at + sizeof(Header))
    cdef uint32_t index
    if blocks < 0 or head.payload_bytes or head.contexts or blocks > PAYLOAD_MAX // size:
        return None
    cdef Region region = Region(overlay, chunks, chunk_blocks, size)
    cdef bytes made = _new_frame(REPLY, head.sequence, head.ops, blocks, blocks * size, True)
    cdef Op *told = <Op *>(PyBytes_AS_STRING(made) + sizeof(Header))
    cdef char *contexts = <char *>(told + head.ops)
    for index in range(head.ops):
        told[index].job, told[index].kind = op[index].job, READ
        told[index].offset, told[index].length = op[index].offset, op[index].length
        if not region.read(op[index].offset, op[index].length, contexts + at * CONTEXT,
                           contexts + blocks * CONTEXT + at * size):
            return None
        at += op[index].length
    return made, blocks


def serve_writes(frame not None, overlay not None, set touched not None, Py_ssize_t chunk_blocks,
                 Py_ssize_t size, uint64_t block_count, Py_ssize_t extent_blocks,
                 Py_ssize_t large_blocks, bint plain):
    """Does a request of small writes alone, as Overlay.put does each: the whole reply, and how many
    blocks were written. `plain`: what kind of blocks they have to be."""
    cdef Held held = Held(frame)
    cdef Header head
    cdef Py_ssize_t blocks = _blocks_of(held, &head, WRITE, block_count)
    cdef const Op *op = <const Op *>(held.at + sizeof(Header))
    cdef uint32_t index
    arena = overlay.active
    cdef Py_ssize_t used = arena.used, at
    if blocks < 0 or head.contexts != blocks or head.payload_bytes != blocks * size or (
        blocks > <Py_ssize_t>arena.blocks - used or overlay.discards
    ):
        return None
    cdef const char *contexts = <const char *>(op + head.ops)
    cdef const char *data = contexts + blocks * CONTEXT
    for index in range(head.ops):
        at = op[index].offset % chunk_blocks
        if op[index].length >= large_blocks or at + op[index].length > chunk_blocks:
            return None
    if not _all_as_told(data, contexts, blocks, size, plain):
        return None
    cdef list tables = [Held(overlay.table(op[index].offset // chunk_blocks))
                        for index in range(head.ops)]
    cdef Writer writer = Writer(arena, size)
    cdef bytes made = _new_frame(REPLY, head.sequence, head.ops, 0, 0, True)
    cdef Op *told = <Op *>(PyBytes_AS_STRING(made) + sizeof(Header))
    for index in range(head.ops):
        told[index].job, told[index].kind = op[index].job, WRITE
        told[index].offset, told[index].length = op[index].offset, op[index].length
        touched.add(op[index].offset // extent_blocks)
        writer.put(tables[index], op[index].offset % chunk_blocks, op[index].offset,
                   op[index].length, contexts, data)
        contexts, data = contexts + op[index].length * CONTEXT, data + op[index].length * size
    arena.used, arena.dead = writer.used, writer.dead
    return made, blocks


cdef class Writer(Arena):  # the active arena, for the time of one frame
    cdef Held addresses
    cdef Py_ssize_t used, dead, size

    def __cinit__(self, arena not None, Py_ssize_t size):
        self.addresses = Held(arena.addresses)
        self.used, self.dead, self.size = arena.used, arena.dead, size
        assert self.addresses.size == arena.blocks * 8
        assert self.data.size == arena.blocks * size and self.contexts.size == arena.blocks * CONTEXT

    cdef void put(self, Held table, Py_ssize_t first, int64_t address, Py_ssize_t count,
                  const char *contexts, const char *data) noexcept:
        """Into blocks of this epoch where they lie in one run, else behind all others. The caller
        has seen to it that there is room."""
        cdef int64_t *places = <int64_t *>table.at + first
        cdef int64_t *addresses = <int64_t *>self.addresses.at
        cdef int64_t slot = places[0] - self.start
        cdef bint together = slot >= 0
        cdef Py_ssize_t index
        for index in range(count):
            together = together and places[index] == places[0] + index
        if not together:
            slot = self.used
            self.used += count
            for index in range(count):
                if self.start <= places[index] < self.start + slot:
                    addresses[places[index] - self.start] = DEAD
                    self.dead += 1
                addresses[slot + index] = address + index
                places[index] = self.start + slot + index
        memcpy(self.contexts.at + slot * CONTEXT, contexts, count * CONTEXT)
        memcpy(self.data.at + slot * self.size, data, count * self.size)


# ---- NBD: the requests of a stretch of bytes, and their replies

cdef enum:  # of a chunk: flags DONE, type OFFSET_DATA
    REQUEST_MAGIC = 0x25609513, SIMPLE_MAGIC = 0x67446698, STRUCTURED_MAGIC = 0x668E33EF
    CHUNK_DONE_DATA = 0x00010001


cdef packed struct NbdRequest:
    uint32_t magic
    uint16_t flags, command
    uint64_t handle, offset
    uint32_t length


cdef packed struct DataChunk:  # its first 16 bytes are a simple reply's: there `kind` is the error
    uint32_t magic, kind
    uint64_t handle
    uint32_t length
    uint64_t offset


cdef struct Span:
    uint64_t handle  # as it came
    uint64_t offset  # in blocks
    uint32_t length


cdef class Spans:
    """Requests of one kind: reads, or writes with their data in `payload` one after the other."""

    cdef Span *spans
    cdef readonly Py_ssize_t requests, blocks, block_size, data_bytes
    cdef readonly uint64_t end  # behind the last block of any of them
    cdef readonly bint reads
    cdef readonly bytes payload
    cdef public list tokens

    def __dealloc__(self):
        PyMem_Free(self.spans)

    def span(self, Py_ssize_t index):
        """(handle, first block, blocks, blocks of those before it) of one of them."""
        cdef Py_ssize_t before = 0, each
        if not 0 <= index < self.requests:
            raise IndexError(index)
        for each in range(index):
            before += self.spans[each].length
        cdef Span *found = self.spans + index
        return swap64(found.handle), found.offset, found.length, before

    def ops(self):
        """(kind, first block, blocks) of each, as `request_head` takes them."""
        cdef Py_ssize_t index
        return [(READ if self.reads else WRITE, self.spans[index].offset, self.spans[index].length)
                for index in range(self.requests)]

    def tally(self, list sizes not None):
        """Adds one for each to the entry of the smallest power of two that its bytes do not pass."""
        cdef Py_ssize_t index
        for index in range(self.requests):
            size = self.spans[index].length * self.block_size - 1
            sizes[size.bit_length()] += 1

    def request(self, uint64_t first):
        """The request frame of reads, with jobs from `first` on."""
        cdef bytes made = _new_frame(REQUEST, first, self.requests, 0, 0, True)
        cdef Op *op = <Op *>(PyBytes_AS_STRING(made) + sizeof(Header))
        cdef Py_ssize_t index
        assert self.reads and self.requests <= OPS_MAX
        for index in range(self.requests):
            op[index].job, op[index].kind = first + index, READ
            op[index].offset, op[index].length = self.spans[index].offset, self.spans[index].length
        return made

    def replies(self, data, bint structured):
        """What the client is answered when all ended well; `data` is of reads."""
        cdef Held held = Held(b"" if data is None else data)
        cdef Py_ssize_t index, size
        cdef const char *source = held.at
        if held.size != (self.data_bytes if self.reads else 0):
            raise ValueError(f"{held.size} bytes for {self.blocks} blocks")
        structured = structured and self.reads
        cdef Py_ssize_t head = sizeof(DataChunk) if structured else 16
        cdef bytes made = PyBytes_FromStringAndSize(NULL, self.requests * head + held.size)
        cdef char *at = PyBytes_AS_STRING(made)
        for index in range(self.requests):
            size = self.spans[index].length * self.block_size if self.reads else 0
            if structured:
                (<DataChunk *>at).magic = swap32(STRUCTURED_MAGIC)
                (<DataChunk *>at).kind = swap32(CHUNK_DONE_DATA)
                (<DataChunk *>at).handle = self.spans[index].handle
                (<DataChunk *>at).length = swap32(8 + size)
                (<DataChunk *>at).offset = swap64(self.spans[index].offset * self.block_size)
            else:
                (<DataChunk *>at).magic, (<DataChunk *>at).kind = swap32(SIMPLE_MAGIC), 0
                (<DataChunk *>at).handle = self.spans[index].handle
            memcpy(at + head, source, size)
            at, source = at + head + size, source + size
        return made


def requests(kind not None, staging not None, Py_ssize_t start, Py_ssize_t end, Py_ssize_t size,
             uint64_t block_count, Py_ssize_t room, Py_ssize_t bytes_room, Py_ssize_t bytes_max,
             bint reads_alone):
    """(bytes used, Spans of reads or None, Spans of writes or None) of what is plain and whole in
    `staging` from `start` to `end`; it ends before the first request that is neither. They are of
    the class `kind`; `room` is for so many requests, `bytes_room` for what is still begun."""
    cdef Held held = Held(staging)
    cdef Spans reads = kind(), writes = kind()
    cdef NbdRequest head
    cdef Py_ssize_t at = start, length, taken = 0, count = 0
    cdef Spans into
    cdef char *payload
    cdef uint64_t offset
    assert 0 <= start <= end <= held.size and size > 0
    room = min(room, OPS_MAX)
    while count < room and taken < bytes_room and end - at >= <Py_ssize_t>sizeof(NbdRequest):
        memcpy(&head, held.at + at, sizeof(NbdRequest))
        length, offset = swap32(head.length), swap64(head.offset)
        if head.magic != swap32(REQUEST_MAGIC) or head.flags or not 0 < length <= bytes_max:
            break
        into = writes if head.command else reads
        if head.command and (reads_alone or head.command != swap16(1)
                             or end - at - <Py_ssize_t>sizeof(NbdRequest) < length):
            break
        if offset % size or length % size or offset // size >= block_count or (
            length // size > <Py_ssize_t>(block_count - offset // size)
        ):
            break
        if into.spans is NULL:
            into.spans = <Span *>PyMem_Malloc(room * sizeof(Span))
            if into.spans is NULL:
                raise MemoryError
            into.reads, into.block_size = into is reads, size
        into.spans[into.requests].handle = head.handle
        into.spans[into.requests].offset = offset // size
        into.spans[into.requests].length = length // size
        into.requests, into.blocks = into.requests + 1, into.blocks + length // size
        into.data_bytes += length
        into.end = max(into.end, (offset + length) // size)
        count, taken, at = count + 1, taken + length, at + sizeof(NbdRequest)
        if into is writes:
            at += length
    if writes.requests:
        writes.payload = PyBytes_FromStringAndSize(NULL, writes.data_bytes)
        payload = PyBytes_AS_STRING(writes.payload)
        end, at = at, start
        while at < end:
            memcpy(&head, held.at + at, sizeof(NbdRequest))
            at += sizeof(NbdRequest)
            if head.command:
                length = swap32(head.length)
                memcpy(payload, held.at + at, length)
                payload, at = payload + length, at + length
    return at - start, reads if reads.requests else None, writes if writes.requests else None
