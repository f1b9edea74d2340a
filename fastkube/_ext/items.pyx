"""The items of a list answer, copied once from the stored values into pieces of bounded size.

Stored objects open with apiVersion and kind, which the items of a list do not repeat: `skip` leaves that opening out. Where a value does not
begin with `skip` it is copied whole.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp, memcpy

from fastkube._ext.tree cimport KeyValue


cdef inline bint opens(bytes value, bytes skip) noexcept:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(skip)
    return n > 0 and PyBytes_GET_SIZE(value) > n and memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(skip), n) == 0


def length(list kvs not None, bytes skip not None):
    """How many bytes `pieces` gives: the values without their opening, with a comma between two."""
    cdef Py_ssize_t total = 0, n = PyBytes_GET_SIZE(skip)
    cdef KeyValue kv
    for kv in kvs:
        total += PyBytes_GET_SIZE(kv.value) - (n - 1 if opens(kv.value, skip) else 0)
    return total + (len(kvs) - 1 if kvs else 0)


def piece(list kvs not None, bytes skip not None, Py_ssize_t start, Py_ssize_t bytes_max):
    """(bytes of the items from `start` on, index of the first one not in it); at least one item, commas included."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(skip), count = len(kvs), stop = start, total = 0, size
    cdef KeyValue kv
    cdef bytes value
    while stop < count:
        kv = kvs[stop]
        size = PyBytes_GET_SIZE(kv.value) - (n - 1 if opens(kv.value, skip) else 0) + (1 if stop else 0)
        if stop > start and total + size > bytes_max:
            break
        total += size
        stop += 1
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char* p = PyBytes_AS_STRING(out)
    cdef Py_ssize_t i
    for i in range(start, stop):
        kv = kvs[i]
        value = kv.value
        size = PyBytes_GET_SIZE(value)
        if i:
            p[0] = b","
            p += 1
        if opens(value, skip):
            p[0] = b"{"
            memcpy(p + 1, PyBytes_AS_STRING(value) + n, size - n)
            p += size - n + 1
        else:
            memcpy(p, PyBytes_AS_STRING(value), size)
            p += size
    return out, stop
