# cython: language_level=3
"""Counts of pods per topology domain, kept up to date by each pod's coming and going, and the filters that read them.

`Domains` says in which domain of one topology key each row (node) lies; a `PodSet` counts, per row, the pods that some selector takes in (or that
carry some term); a `DomainCount` is the sum of one over the domains of the other, over those rows that count. A pod that comes costs one addition
per set and key it belongs to; a node that changes costs one step per count. Nothing here ever goes over pods.

Filters write their `code` into `codes[row]` for each row in [first, last) that they refuse and nobody refused before (0).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset


cdef void* grown(void* block, size_t had, size_t wanted) except NULL:
    # `block` of `had` bytes made `wanted` bytes long, the new ones zero
    cdef char* fresh = <char*>realloc(block, wanted)
    if fresh == NULL:
        raise MemoryError()
    memset(fresh + had, 0, wanted - had)
    return fresh


cdef int fitting(int had, int wanted) noexcept nogil:
    had = max(had, 16)
    while had < wanted:
        had *= 2
    return had


cdef class Domains:
    """The domain of each row under one topology key. A domain lives as long as a node lies in it; its id is used again."""

    def __cinit__(self, str key):
        self.key = key
        self.ids = {}
        self.nodes = []
        self.free_ids = []
        self.views = []

    def __dealloc__(self):
        free(self.of)

    def set(self, int row, str value):
        """The node of `row` lies in domain `value` (None: in none). Counts follow."""
        cdef int32_t d = -1, old
        cdef int i, capacity
        cdef DomainCount view
        if row >= self.capacity:
            if value is None:
                return
            capacity = fitting(self.capacity, row + 1)
            self.of = <int32_t*>grown(self.of, self.capacity * sizeof(int32_t), capacity * sizeof(int32_t))
            for i in range(self.capacity, capacity):
                self.of[i] = -1
            self.capacity = capacity
        old = self.of[row]
        if value is not None:
            known = self.ids.get(value)
            if known is not None:
                d = known
                if d == old:
                    return
        elif old < 0:
            return
        for view in self.views:
            view._shift(row, -1)
        if old >= 0:
            self.nodes[old][1] -= 1
            if not self.nodes[old][1]:
                del self.ids[self.nodes[old][0]]
                self.free_ids.append(old)
        if value is not None:
            if d < 0:
                if self.free_ids:
                    d = self.free_ids.pop()
                    self.nodes[d] = [value, 0]
                else:
                    d = self.size
                    self.size += 1
                    self.nodes.append([value, 0])
                self.ids[value] = d
            self.nodes[d][1] += 1
        self.of[row] = d
        for view in self.views:
            view._shift(row, 1)

    def value(self, int row):
        """The domain of `row`, None when it has none."""
        cdef int32_t d = self.at(row)
        return self.nodes[d][0] if d >= 0 else None

    def refuse_missing(self, uint8_t[::1] codes, int first, int last, int code):
        """Rows without the label."""
        cdef int row
        with nogil:
            for row in range(first, last):
                if not codes[row] and self.at(row) < 0:
                    codes[row] = code


cdef class PodSet:
    """How many pods of a set each row has."""

    def __cinit__(self):
        self.views = []

    def __dealloc__(self):
        free(self.rows)

    def add(self, int row, int delta):
        cdef DomainCount view
        cdef int32_t d
        cdef int capacity
        if row >= self.capacity:
            capacity = fitting(self.capacity, row + 1)
            self.rows = <int32_t*>grown(self.rows, self.capacity * sizeof(int32_t), capacity * sizeof(int32_t))
            self.capacity = capacity
        self.rows[row] += delta
        self.total += delta
        for view in self.views:
            if view.counted(row):
                d = view.domains.at(row)
                if d >= 0:
                    if d >= view.capacity:
                        view._grow(d + 1)
                    view.counts[d] += delta

    def at(self, int row):
        return self.rows[row] if row < self.capacity else 0


cdef class DomainCount:
    """Pods of a set per domain of a key. With `everywhere`, all rows count; else those that `admit` says."""

    def __cinit__(self, Domains domains, PodSet pods, bint everywhere=True):
        cdef int row
        self.domains = domains
        self.pods = pods
        self.everywhere = everywhere
        domains.views.append(self)
        pods.views.append(self)
        if everywhere:
            for row in range(domains.capacity):
                self._shift(row, 1)

    def __dealloc__(self):
        free(self.counts)
        free(self.nodes)
        free(self.eligible)

    def close(self):
        """Counted no longer."""
        self.domains.views.remove(self)
        self.pods.views.remove(self)

    cdef int _grow(self, int domains) except -1:
        cdef int capacity = fitting(self.capacity, domains)
        self.counts = <int64_t*>grown(self.counts, self.capacity * sizeof(int64_t), capacity * sizeof(int64_t))
        self.nodes = <int32_t*>grown(self.nodes, self.capacity * sizeof(int32_t), capacity * sizeof(int32_t))
        self.capacity = capacity
        return 0

    cdef int _grow_rows(self, int rows) except -1:
        cdef int capacity = fitting(self.row_capacity, rows)
        self.eligible = <uint8_t*>grown(self.eligible, self.row_capacity, capacity)
        self.row_capacity = capacity
        return 0

    cdef int _shift(self, int row, int sign) except -1:
        cdef int32_t d = self.domains.at(row)
        if d < 0 or not self.counted(row):
            return 0
        if d >= self.capacity:
            self._grow(d + 1)
        self.nodes[d] += sign
        if row < self.pods.capacity:
            self.counts[d] += sign * self.pods.rows[row]
        return 0

    def admit(self, int row, bint counts):
        """Whether the node of `row` counts."""
        if row >= self.row_capacity:
            self._grow_rows(row + 1)
        if self.eligible[row] != counts:
            self._shift(row, -1)
            self.eligible[row] = counts
            self._shift(row, 1)

    def count(self, int row):
        """Pods in the domain of `row`."""
        return self.at(row)

    def occupied(self):
        """Whether any domain has a pod of the set."""
        cdef int d
        for d in range(min(self.domains.size, self.capacity)):
            if self.counts[d]:
                return True
        return False

    def least(self):
        """(fewest pods in a domain that has nodes that count, such domains); 0 of none."""
        cdef int d, domains = 0
        cdef int64_t least = -1
        for d in range(min(self.domains.size, self.capacity)):
            if self.nodes[d] > 0:
                domains += 1
                if least < 0 or self.counts[d] < least:
                    least = self.counts[d]
        return max(least, 0), domains

    def refuse_empty(self, uint8_t[::1] codes, int first, int last, int code):
        """Rows whose domain has no pod of the set, or that are in no domain."""
        cdef int row
        with nogil:
            for row in range(first, last):
                if not codes[row] and self.at(row) <= 0:
                    codes[row] = code

    def refuse_occupied(self, uint8_t[::1] codes, int first, int last, int code):
        """Rows whose domain has a pod of the set."""
        cdef int row
        with nogil:
            for row in range(first, last):
                if not codes[row] and self.at(row) > 0:
                    codes[row] = code

    def refuse_over(self, uint8_t[::1] codes, int first, int last, int64_t limit, int code, int missing):
        """Rows whose domain has more than `limit` pods; rows in no domain are refused as `missing`."""
        cdef int row
        with nogil:
            for row in range(first, last):
                if not codes[row]:
                    if self.domains.at(row) < 0:
                        codes[row] = missing
                    elif self.at(row) > limit:
                        codes[row] = code
