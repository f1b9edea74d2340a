"""What etcd's answers are made of, encoded straight from the tree's objects: one allocation and one copy per answer.

The wire format is protobuf's (fields of mvccpb.KeyValue, mvccpb.Event and etcdserverpb.ResponseHeader; zero values are left out). A `tag` is a
field number and wire type as they stand on the wire, one byte.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastkube._ext.tree cimport Event, KeyValue


cdef inline Py_ssize_t size_of(uint64_t value) noexcept:
    cdef Py_ssize_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline char* put_varint(char* p, uint64_t value) noexcept:
    while value >= 0x80:
        p[0] = <char> (value | 0x80)
        value >>= 7
        p += 1
    p[0] = <char> value
    return p + 1


cdef inline Py_ssize_t int_size(uint64_t value) noexcept:
    return 1 + size_of(value) if value else 0


cdef inline char* put_int(char* p, int tag, uint64_t value) noexcept:
    if value:
        p[0] = <char> tag
        p = put_varint(p + 1, value)
    return p


cdef inline Py_ssize_t bytes_size(bytes value) noexcept:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    return 1 + size_of(n) + n if n else 0


cdef inline char* put_bytes(char* p, int tag, bytes value) noexcept:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    if n:
        p[0] = <char> tag
        p = put_varint(p + 1, n)
        memcpy(p, PyBytes_AS_STRING(value), n)
        p += n
    return p


cdef inline Py_ssize_t kv_size(KeyValue kv, bint keys_only) noexcept:
    return (
        bytes_size(kv.key) + int_size(kv.create_revision) + int_size(kv.mod_revision) + int_size(kv.version)
        + (0 if keys_only else bytes_size(kv.value)) + int_size(kv.lease)
    )


cdef inline char* put_kv(char* p, KeyValue kv, bint keys_only) noexcept:
    p = put_bytes(p, 0x0a, kv.key)
    p = put_int(p, 0x10, kv.create_revision)
    p = put_int(p, 0x18, kv.mod_revision)
    p = put_int(p, 0x20, kv.version)
    if not keys_only:
        p = put_bytes(p, 0x2a, kv.value)
    return put_int(p, 0x30, kv.lease)


cdef class Header:
    cdef readonly uint64_t cluster
    cdef readonly uint64_t member
    cdef readonly uint64_t term

    def __init__(self, uint64_t cluster, uint64_t member, uint64_t term):
        self.cluster = cluster
        self.member = member
        self.term = term

    def encode(self, int64_t revision):
        """The header as field 1 of a response."""
        cdef char buffer[64]
        cdef char* p = buffer
        p[0] = 0x0a
        p = put_int(p + 2, 0x08, self.cluster)
        p = put_int(p, 0x10, self.member)
        p = put_int(p, 0x18, <uint64_t> revision)
        p = put_int(p, 0x20, self.term)
        buffer[1] = <char> (p - buffer - 2)
        return PyBytes_FromStringAndSize(buffer, p - buffer)


def nested(int tag, bytes payload not None):
    """A message as a field, empty ones too."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(payload)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 1 + size_of(n) + n)
    cdef char* p = PyBytes_AS_STRING(out)
    p[0] = <char> tag
    p = put_varint(p + 1, n)
    memcpy(p, PyBytes_AS_STRING(payload), n)
    return out


def varint(int tag, int64_t value):
    """An integer field; nothing for 0."""
    cdef char buffer[16]
    return PyBytes_FromStringAndSize(buffer, put_int(buffer, tag, <uint64_t> value) - buffer)


def key_values(int tag, list kvs not None, bint keys_only=False):
    """mvccpb.KeyValue messages as a repeated field."""
    cdef Py_ssize_t total = 0, n
    cdef KeyValue kv
    for kv in kvs:
        n = kv_size(kv, keys_only)
        total += 1 + size_of(n) + n
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char* p = PyBytes_AS_STRING(out)
    for kv in kvs:
        p[0] = <char> tag
        p = put_varint(p + 1, kv_size(kv, keys_only))
        p = put_kv(p, kv, keys_only)
    return out


cdef inline bint with_prev(Event event, bint prev_kv, int64_t compacted) noexcept:
    """What stood before is told unless it is compacted."""
    return prev_kv and event.prev is not None and event.kv.mod_revision > compacted


cdef inline Py_ssize_t event_size(Event event, bint prev_kv, int64_t compacted) noexcept:
    cdef Py_ssize_t n = kv_size(event.kv, False)
    cdef Py_ssize_t total = (2 if event.deleted else 0) + 1 + size_of(n) + n
    if with_prev(event, prev_kv, compacted):
        n = kv_size(event.prev, False)
        total += 1 + size_of(n) + n
    return total


def events(events not None, bint prev_kv, int64_t compacted):
    """mvccpb.Event messages as field 11 of a WatchResponse."""
    cdef Py_ssize_t total = 0, n
    cdef Event event
    for event in events:
        n = event_size(event, prev_kv, compacted)
        total += 1 + size_of(n) + n
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char* p = PyBytes_AS_STRING(out)
    for event in events:
        p[0] = 0x5a
        p = put_varint(p + 1, event_size(event, prev_kv, compacted))
        if event.deleted:
            p[0] = 0x08
            p[1] = 1
            p += 2
        p[0] = 0x12
        p = put_varint(p + 1, kv_size(event.kv, False))
        p = put_kv(p, event.kv, False)
        if with_prev(event, prev_kv, compacted):
            p[0] = 0x1a
            p = put_varint(p + 1, kv_size(event.prev, False))
            p = put_kv(p, event.prev, False)
    return out
