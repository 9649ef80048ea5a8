"""What the other compiled module uses of this one."""


cdef class Held:  # a buffer, for as long as this is
    cdef Py_buffer view
    cdef char *at
    cdef Py_ssize_t size
