# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The ordinary record of a region's log: made, written and synced without the interpreter.

Layout and meaning are those of downstaird/core/log_record.py, which serves without this module
(docs/adr/0058).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from stairlib.native.fast cimport Held
from xxhash import xxh3_64_intdigest as _hash


cdef extern from *:
    """
    #include <sys/eventfd.h>
    #include <sys/uio.h>
    #include <unistd.h>
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int, int)
    int close(int) nogil
    int fdatasync(int) nogil
    ssize_t pwritev(int, const iovec *, int, int64_t) nogil
    ssize_t read(int, void *, size_t) nogil
    ssize_t write(int, const void *, size_t) nogil


cdef packed struct Header:
    uint32_t magic
    uint16_t version, flags
    uint64_t tag, sequence, previous, flush, generation
    uint32_t extents, remaps, discards, blocks, remap_contexts, snapshots
    uint64_t table_bytes, data_bytes, data_hash, checksum


cdef enum:
    MAGIC = 0x524C5753, VERSION = 1, HEADER_BYTES = 128, ALIGN = 4096
    EXTENT_BYTES = 24, ADDRESS_BYTES = 8, CONTEXT_BYTES = 32, PARTS = 3


def record_front(uint64_t tag, uint64_t sequence, uint64_t previous, uint64_t flush,
                 uint64_t generation, extents not None, addresses not None, contexts not None,
                 data not None, Py_ssize_t block_size):
    """(the bytes before the data, checksum) of a record of extents and blocks."""
    cdef Held marks = Held(extents), places = Held(addresses), told = Held(contexts)
    cdef Held blocks = Held(data)
    cdef Py_ssize_t count = places.size // ADDRESS_BYTES
    cdef Py_ssize_t table = marks.size + places.size + told.size
    cdef Py_ssize_t align = min(block_size, ALIGN)
    assert marks.size % EXTENT_BYTES == 0 and places.size % ADDRESS_BYTES == 0 and align > 0
    assert told.size == count * CONTEXT_BYTES and blocks.size == count * block_size
    cdef Py_ssize_t size = (HEADER_BYTES + table + align - 1) // align * align
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(made)
    memset(at, 0, HEADER_BYTES)
    cdef Header *head = <Header *>at
    head.magic, head.version, head.tag, head.sequence = MAGIC, VERSION, tag, sequence
    head.previous, head.flush, head.generation = previous, flush, generation
    head.extents, head.blocks = marks.size // EXTENT_BYTES, count
    head.table_bytes, head.data_bytes, head.data_hash = table, blocks.size, _hash(data)
    cdef char *to = at + HEADER_BYTES
    memcpy(to, marks.at, marks.size)
    memcpy(to + marks.size, places.at, places.size)
    memcpy(to + marks.size + places.size, told.at, told.size)
    memset(to + table, 0, size - HEADER_BYTES - table)
    # What the checksum covers does not lie together: the header's end is left out.
    cdef Py_ssize_t covered = sizeof(Header) - 8
    cdef bytes both = PyBytes_FromStringAndSize(NULL, covered + table)
    memcpy(PyBytes_AS_STRING(both), at, covered)
    memcpy(PyBytes_AS_STRING(both) + covered, to, table)
    head.checksum = _hash(both)
    return made, head.checksum


# ---- entries of extents, as downstaird/core/extent_table.py keeps them

cdef packed struct Entry:
    uint32_t extent, flags
    uint64_t generation, flush


def stamped(table not None, list extents not None, uint64_t generation, uint64_t flush):
    """Copies of those entries of a table of all, with that stamp."""
    cdef Held held = Held(table)
    cdef Py_ssize_t extent, count = held.size // EXTENT_BYTES
    cdef bytearray made = bytearray(len(extents) * EXTENT_BYTES)
    cdef Entry *to = <Entry *><char *>made
    for extent in extents:
        if not 0 <= extent < count:
            raise IndexError(extent)
        to[0] = (<Entry *>held.at)[extent]
        to.generation, to.flush = generation, flush
        to += 1
    return made


def stored(table not None, entries not None):
    """Puts entries in their places in a table of all."""
    cdef Held held = Held(table), told = Held(entries)
    cdef Entry *entry = <Entry *>told.at
    cdef Py_ssize_t index, count = held.size // EXTENT_BYTES
    for index in range(told.size // EXTENT_BYTES):
        if entry[index].extent >= count:
            raise IndexError(entry[index].extent)
    for index in range(told.size // EXTENT_BYTES):
        (<Entry *>held.at)[entry[index].extent] = entry[index]


# ---- writing and syncing

cdef class Appender:
    """Writes and syncs, one work at a time, on the thread that is in `serve`. Everything else is
    called on the thread of the loop, which looks at `descriptor` to know when a work has ended."""

    cdef int wake, ended, file, failure
    cdef bint begun, syncing, closing
    cdef iovec parts[PARTS]
    cdef int64_t offset
    cdef object held

    def __cinit__(self):
        self.wake, self.ended = eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.begun = self.closing = False
        self.held = None
        if self.wake < 0 or self.ended < 0:
            raise OSError(errno, "no descriptor for a thread that syncs")

    def __dealloc__(self):
        _shut(&self.wake)
        _shut(&self.ended)

    @property
    def descriptor(self):
        """Readable when a work has ended."""
        return self.ended

    def begin(self, int file, front not None, data not None, end not None, int64_t offset):
        """Writes these one after the other, and syncs the file. They must not change meanwhile."""
        cdef list held = [Held(front), Held(data), Held(end)]
        cdef Py_ssize_t index
        assert self.held is None and not self.closing and self.wake >= 0
        for index in range(PARTS):
            self.parts[index].iov_base = (<Held>held[index]).at
            self.parts[index].iov_len = (<Held>held[index]).size
        self.held, self.file, self.offset, self.begun = held, file, offset, True
        _tell(self.wake)

    def has_ended(self):
        """Whether the work that was begun has ended; told once, and then `outcome` is its own."""
        cdef uint64_t count
        if self.held is None or read(self.ended, &count, sizeof(count)) != sizeof(count):
            return False
        self.held = None
        return True

    @property
    def outcome(self):
        """(error number, whether it was the sync that failed) of what ended last; 0: all well."""
        return self.failure, self.syncing

    def serve(self):
        """Does what is begun, until `close`."""
        cdef uint64_t count
        with nogil:
            while True:
                if read(self.wake, &count, sizeof(count)) != sizeof(count):
                    continue
                if self.begun:
                    self.begun = False
                    self.failure = self.append()
                    _tell(self.ended)
                if self.closing:
                    break

    def close(self):
        """Has `serve` return, behind the work that was begun last."""
        self.closing = True
        _tell(self.wake)

    def release(self):
        """Closes its descriptors. Only where nobody is in `serve`, or looks at `descriptor`."""
        _shut(&self.wake)
        _shut(&self.ended)

    cdef int append(self) noexcept nogil:
        cdef int first = 0
        cdef ssize_t done
        self.syncing = False
        while first < PARTS:
            done = pwritev(self.file, self.parts + first, PARTS - first, self.offset)
            if done < 0 and errno == EINTR:
                continue
            if done <= 0:
                return errno if done < 0 else EIO
            self.offset += done
            while first < PARTS and done >= <ssize_t>self.parts[first].iov_len:
                done -= self.parts[first].iov_len
                first += 1
            if first < PARTS:
                self.parts[first].iov_base = <char *>self.parts[first].iov_base + done
                self.parts[first].iov_len -= done
        self.syncing = True
        while fdatasync(self.file) < 0:
            if errno != EINTR:
                return errno
        return 0


cdef void _tell(int descriptor) noexcept nogil:
    cdef uint64_t one = 1
    while write(descriptor, &one, sizeof(one)) < 0 and errno == EINTR:
        pass


cdef void _shut(int *descriptor) noexcept nogil:
    if descriptor[0] >= 0:
        close(descriptor[0])
    descriptor[0] = -1
