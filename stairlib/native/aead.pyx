# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Encrypted blocks one after the other, without Python between the calls of the AEAD.

It does what seal_blocks and open_blocks of vmmd/upstairs/core/codec.py do, which serve without this
module (docs/adr/0060). All cryptography is the library's: its methods are called, with views that
are moved along in the place of a new one for each block. A context is check u32 | nonce | tag
(stairlib/model/context.py).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from stairlib.native.fast cimport Held
from xxhash import xxh3_64_intdigest as _hash

cdef enum:
    CONTEXT = 32, NONCE_AT = 4, NONCE = 12, TAG_AT = 16, TAG = 16, READ = 0x100, WRITE = 0x200


cdef bint _is_zero(const char *at, Py_ssize_t size):
    return not size or (not at[0] and memcmp(at, at + 1, size - 1) == 0)


def seal(encrypt not None, data not None, Py_ssize_t size, nonces not None, spans not None):
    """(contexts, ciphertext and room for one more tag) of blocks at `spans`, as (first, blocks);
    `encrypt` is an encrypt_into. The number of each block is authenticated with it."""
    cdef Held blocks = Held(data), given = Held(nonces)
    cdef Py_ssize_t count = blocks.size // size if size > 0 else 0, at = 0
    cdef uint64_t number = 0, left
    if blocks.size != count * size or given.size != count * NONCE:
        raise ValueError(f"{blocks.size} bytes in blocks of {size}, {given.size} of nonces")
    told = bytearray(count * CONTEXT)
    cdef char *context = told
    cdef bytes made = PyBytes_FromStringAndSize(NULL, blocks.size + TAG)
    cdef char *out = PyBytes_AS_STRING(made)
    nonce = PyMemoryView_FromMemory(given.at, NONCE, READ)
    source = PyMemoryView_FromMemory(blocks.at, size, READ)
    # Each tag comes out behind its block, where the next block goes once the tag has been taken.
    target = PyMemoryView_FromMemory(out, size + TAG, WRITE)
    block = PyMemoryView_FromMemory(out, size, READ)
    head = PyMemoryView_FromMemory(context, CONTEXT - NONCE_AT, READ)
    extra = PyMemoryView_FromMemory(<char *>&number, sizeof(number), READ)
    for first, length in spans:
        number, left = first, length
        if left > <uint64_t>(count - at):
            break
        while left:
            PyMemoryView_GET_BUFFER(nonce).buf = given.at + at * NONCE
            PyMemoryView_GET_BUFFER(source).buf = blocks.at + at * size
            PyMemoryView_GET_BUFFER(target).buf = out
            encrypt(nonce, source, extra, target)
            memcpy(context + NONCE_AT, given.at + at * NONCE, NONCE)
            memcpy(context + TAG_AT, out + size, TAG)
            PyMemoryView_GET_BUFFER(block).buf = out
            PyMemoryView_GET_BUFFER(head).buf = context + NONCE_AT
            (<uint32_t *>context)[0] = <uint64_t>_hash(block, _hash(head)) & 0xFFFFFFFF
            at, out, context, number, left = at + 1, out + size, context + CONTEXT, number + 1, left - 1
    if at != count or left:
        raise ValueError(f"spans of other than {count} blocks")
    return told, made


def unseal(decrypt not None, data not None, contexts not None, Py_ssize_t size, spans not None):
    """The blocks in clear; None when there is something in one without a context, or the sizes do
    not add up. What `decrypt`, a decrypt_into, raises is passed on."""
    cdef Held blocks = Held(data), told = Held(contexts)
    cdef Py_ssize_t count = told.size // CONTEXT, at = 0
    cdef uint64_t number = 0, left
    if size < 1 or told.size % CONTEXT or blocks.size != count * size:
        return None
    cdef const char *context = told.at
    cdef const char *block = blocks.at
    cdef bytes made = PyBytes_FromStringAndSize(NULL, blocks.size)
    cdef char *out = PyBytes_AS_STRING(made)
    sealed = bytearray(size + TAG)
    cdef char *together = sealed
    nonce = PyMemoryView_FromMemory(told.at, NONCE, READ)
    target = PyMemoryView_FromMemory(out, size, WRITE)
    extra = PyMemoryView_FromMemory(<char *>&number, sizeof(number), READ)
    for first, length in spans:
        number, left = first, length
        if left > <uint64_t>(count - at):
            return None
        while left:
            if _is_zero(context, CONTEXT):
                if not _is_zero(block, size):
                    return None
                memset(out, 0, size)
            else:
                # The library wants the tag behind the block.
                memcpy(together, block, size)
                memcpy(together + size, context + TAG_AT, TAG)
                PyMemoryView_GET_BUFFER(nonce).buf = <char *>context + NONCE_AT
                PyMemoryView_GET_BUFFER(target).buf = out
                decrypt(nonce, sealed, extra, target)
            at, number, left = at + 1, number + 1, left - 1
            block, out, context = block + size, out + size, context + CONTEXT
    return made if at == count else None
