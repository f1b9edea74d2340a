from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

cdef enum:
    BLOCK = 128  # entries of one sorted block
    CHUNK = 4096  # events of one piece of the log
    SHARDS = 256  # dicts that the keys are spread over, so that none grows for more than a moment


cdef class KeyValue:
    cdef readonly bytes key
    cdef readonly bytes value
    cdef readonly int64_t create_revision
    cdef readonly int64_t mod_revision
    cdef readonly int64_t version
    cdef readonly int64_t lease
    cdef public object attrs
    cdef KeyValue older


cdef class Event:
    cdef readonly bint deleted
    cdef readonly KeyValue kv
    cdef readonly KeyValue prev
    cdef public object attrs


cdef class Entry:
    cdef bytes key
    cdef KeyValue newest


cdef struct Block:
    int n
    PyObject* entries[BLOCK]


cdef struct Cursor:
    Py_ssize_t block
    int at


cdef class Tree:
    cdef readonly int64_t head
    cdef readonly int64_t visible
    cdef readonly int64_t compacted
    cdef readonly int64_t live_bytes
    cdef readonly int64_t history_bytes
    cdef object compacted_error
    cdef object future_error
    cdef PyObject* shards[SHARDS]
    cdef Py_ssize_t keys_n
    cdef Block** blocks
    cdef int32_t* live
    cdef Py_ssize_t blocks_n
    cdef Py_ssize_t blocks_cap
    cdef PyObject*** chunks  # a ring; the one of log position p is chunks[p / CHUNK & chunks_mask]
    cdef int64_t chunks_mask
    cdef readonly int64_t log_start
    cdef readonly int64_t log_end
    cdef int64_t prune_at
    cdef readonly int64_t visible_at

    cdef PyObject* _find(self, bytes key) noexcept
    cdef int _add(self, Entry entry) except -1
    cdef int _discard(self, bytes key) except -1
    cdef void _locate(self, const char* key, Py_ssize_t n, Cursor* at) noexcept
    cdef void _bounds(self, bytes key, bytes end, Cursor* low, Cursor* high) noexcept
    cdef int _insert(self, Entry entry) except -1
    cdef int _insert_block(self, Py_ssize_t index) except -1
    cdef void _drop_block(self, Py_ssize_t index) noexcept
    cdef void _remove(self, bytes key) noexcept
    cdef int _count_live(self, Block* block, int start, int stop, int64_t revision) noexcept
    cdef Py_ssize_t _count(self, Cursor low, Cursor high) noexcept
    cdef Py_ssize_t _count_at(self, bytes key, bytes end, Cursor low, Cursor high, int64_t revision) noexcept
    cdef void _free_chunk(self, int64_t position) noexcept
    cdef int _append(self, Event event) except -1
    cdef int64_t _position(self, int64_t revision) noexcept
    cdef int64_t _check(self, int64_t revision) except -1
    cpdef Event put(self, bytes key, bytes value, int64_t revision, int64_t expect=*, int64_t lease=*, Py_ssize_t revision_at=*, object attrs=*)
    cpdef Event delete(self, bytes key, int64_t revision)
    cpdef publish(self, int64_t revision)


cdef inline PyObject** slot(Tree tree, int64_t position) noexcept:
    """Where the event of a log position stands."""
    return tree.chunks[(position // CHUNK) & tree.chunks_mask] + position % CHUNK


cdef inline PyObject* event_at(Tree tree, int64_t position) noexcept:
    return slot(tree, position)[0]


cdef bint in_range(bytes key, bytes start, bytes end) noexcept
