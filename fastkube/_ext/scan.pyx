"""The JSON scanner: finds a value in stored bytes by its path without decoding what lies around it.

Meant for bytes that this project encoded (valid JSON, no space outside strings is assumed not to be there, but allowed). On a stored object, whose metadata
stands in front, taking out the metadata costs a fraction of a full decode.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp

ctypedef const unsigned char* Bytes


cdef inline Bytes blank(Bytes at, Bytes end) noexcept nogil:
    while at < end and (at[0] == 32 or at[0] == 10 or at[0] == 13 or at[0] == 9):
        at += 1
    return at


cdef inline Bytes string_end(Bytes at, Bytes end) noexcept nogil:
    """`at` behind the opening quote -> behind the closing one; NULL when there is none."""
    while True:
        while at < end and at[0] != 34 and at[0] != 92:
            at += 1
        if at >= end:
            return NULL
        if at[0] == 34:
            return at + 1
        at += 2


cdef Bytes value_end(Bytes at, Bytes end) noexcept nogil:
    """Behind the value that begins at `at`; NULL when it is cut off."""
    cdef Py_ssize_t depth = 0
    cdef unsigned char c
    while at < end:
        c = at[0]
        if c == 34:
            at = string_end(at + 1, end)
            if at == NULL:
                return NULL
            if depth == 0:
                return at
            continue
        if c == 123 or c == 91:
            depth += 1
        elif c == 125 or c == 93:
            if depth == 0:
                return at  # the end of a bare value inside its container
            depth -= 1
            if depth == 0:
                return at + 1
        elif depth == 0 and (c == 44 or c == 32 or c == 10 or c == 13 or c == 9):
            return at
        at += 1
    return at if depth == 0 else NULL


cdef Bytes member(Bytes at, Bytes end, Bytes name, Py_ssize_t size) noexcept nogil:
    """`at` on an object's brace -> on the value of its member `name`; NULL when there is none."""
    cdef Bytes key
    cdef Bytes after
    cdef bint same
    at = blank(at, end)
    if at >= end or at[0] != 123:
        return NULL
    at += 1
    while True:
        at = blank(at, end)
        if at >= end or at[0] != 34:
            return NULL
        key = at + 1
        after = string_end(key, end)
        if after == NULL:
            return NULL
        same = after - key - 1 == size and memcmp(key, name, size) == 0
        at = blank(after, end)
        if at >= end or at[0] != 58:
            return NULL
        at = blank(at + 1, end)
        if same:
            return at
        at = value_end(at, end)
        if at == NULL:
            return NULL
        at = blank(at, end)
        if at >= end or at[0] != 44:
            return NULL
        at += 1


def find(bytes data not None, tuple path not None):
    """The raw JSON of the value at `path` (member names as ASCII bytes without escapes); None when there is no such value."""
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(data)
    cdef Bytes end = at + PyBytes_GET_SIZE(data)
    cdef Bytes stop
    cdef bytes name
    for name in path:
        at = member(at, end, <Bytes>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if at == NULL:
            return None
    stop = value_end(at, end)
    if stop == NULL:
        return None
    return PyBytes_FromStringAndSize(<const char*>at, stop - at)
