# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint8_t

cdef class Domains:
    cdef readonly str key
    cdef readonly int size         # domain ids given out so far; some may be free
    cdef int capacity
    cdef int32_t* of               # [row] -> domain id, -1: the node has no such label
    cdef dict ids
    cdef list nodes, free_ids, views
    cdef inline int32_t at(self, int row) noexcept nogil:
        return self.of[row] if row < self.capacity else -1

cdef class PodSet:
    cdef readonly int64_t total
    cdef int capacity
    cdef int32_t* rows             # [row] -> pods of the set there
    cdef list views

cdef class DomainCount:
    cdef readonly Domains domains
    cdef readonly PodSet pods
    cdef bint everywhere
    cdef int capacity, row_capacity
    cdef int64_t* counts           # [domain] -> pods of the set on nodes that count
    cdef int32_t* nodes            # [domain] -> nodes that count
    cdef uint8_t* eligible         # [row]
    cdef int _shift(self, int row, int sign) except -1
    cdef int _grow(self, int domains) except -1
    cdef int _grow_rows(self, int rows) except -1
    cdef inline bint counted(self, int row) noexcept nogil:
        return self.everywhere or (row < self.row_capacity and self.eligible[row])
    cdef inline int64_t at(self, int row) noexcept nogil:
        # pods in the row's domain; 0 where it has none
        cdef int32_t d = self.domains.at(row)
        return self.counts[d] if 0 <= d < self.capacity else 0
