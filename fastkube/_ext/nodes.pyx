# cython: language_level=3
"""Node columns: what every node can give and has given, one array per resource, and the kernels that go over them.

A row is a node (a small integer, reused after removal), a column a resource: 0 CPU in millicores, 1 memory in bytes, then whatever the
cluster has (bytes or whole numbers). `select` filters by room and scores the rest (LeastAllocated and BalancedAllocation of upstream's
NodeResources plugins) without touching a Python object, GIL dropped.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef enum:
    CPU = 0
    MEMORY = 1
    RESOURCES_MAX = 64
    SCORE_MAX = 100


cdef class NodeColumns:
    """Columns over `capacity` rows; grows by doubling. All numbers are int64."""

    cdef readonly int capacity
    cdef readonly int resources
    cdef int64_t* allocatable      # [resources][capacity]
    cdef int64_t* requested        # [resources][capacity]
    cdef int64_t* scoring_cpu      # requested with upstream's defaults for pods that ask nothing (100m, 200Mi)
    cdef int64_t* scoring_memory
    cdef int64_t* pods
    cdef int64_t* pods_max

    def __cinit__(self, int capacity=64, int resources=3):
        self.capacity = capacity
        self.resources = resources
        self.allocatable = self._column(resources)
        self.requested = self._column(resources)
        self.scoring_cpu = self._column(1)
        self.scoring_memory = self._column(1)
        self.pods = self._column(1)
        self.pods_max = self._column(1)

    def __dealloc__(self):
        free(self.allocatable)
        free(self.requested)
        free(self.scoring_cpu)
        free(self.scoring_memory)
        free(self.pods)
        free(self.pods_max)

    cdef int64_t* _column(self, int count) except NULL:
        cdef int64_t* column = <int64_t*>calloc(<size_t>count * self.capacity, sizeof(int64_t))
        if column == NULL:
            raise MemoryError()
        return column

    cdef int64_t* _moved(self, int64_t* column, int old, int had, int count) except NULL:
        # `column` ([had][old]) copied into a fresh one of [count][capacity]; the old one is freed
        cdef int64_t* fresh = self._column(count)
        cdef int r
        for r in range(had):
            memcpy(fresh + r * self.capacity, column + r * old, old * sizeof(int64_t))
        free(column)
        return fresh

    cdef int _resize(self, int capacity, int resources) except -1:
        cdef int old = self.capacity, had = self.resources
        self.capacity = capacity
        self.resources = resources
        self.allocatable = self._moved(self.allocatable, old, had, resources)
        self.requested = self._moved(self.requested, old, had, resources)
        if capacity != old:
            self.scoring_cpu = self._moved(self.scoring_cpu, old, 1, 1)
            self.scoring_memory = self._moved(self.scoring_memory, old, 1, 1)
            self.pods = self._moved(self.pods, old, 1, 1)
            self.pods_max = self._moved(self.pods_max, old, 1, 1)
        return 0

    def ensure(self, int rows, int resources):
        """Room for `rows` rows and `resources` columns. ValueError over the bound of 64 resources."""
        if resources > RESOURCES_MAX:
            raise ValueError(f"more than {RESOURCES_MAX} kinds of resources")
        cdef int capacity = self.capacity
        while capacity < rows:
            capacity *= 2
        if capacity != self.capacity or resources > self.resources:
            self._resize(capacity, max(resources, self.resources))

    def set_allocatable(self, int row, list amounts, int64_t pods_max):
        """`amounts[r]` for each resource, shorter lists are filled with 0."""
        cdef int r, given = len(amounts)
        for r in range(self.resources):
            self.allocatable[r * self.capacity + row] = amounts[r] if r < given else 0
        self.pods_max[row] = pods_max

    def clear(self, int row):
        cdef int r
        for r in range(self.resources):
            self.allocatable[r * self.capacity + row] = 0
            self.requested[r * self.capacity + row] = 0
        self.scoring_cpu[row] = self.scoring_memory[row] = self.pods[row] = self.pods_max[row] = 0

    def add(self, int row, list request, int64_t scoring_cpu, int64_t scoring_memory, int sign):
        """A pod comes (`sign` 1) or goes (-1)."""
        cdef int r
        for r in range(len(request)):
            self.requested[r * self.capacity + row] += sign * <int64_t>request[r]
        self.scoring_cpu[row] += sign * scoring_cpu
        self.scoring_memory[row] += sign * scoring_memory
        self.pods[row] += sign

    def row(self, int row):
        """(allocatable, requested, scoring cpu, scoring memory, pods, pods_max) of one row: for tests and the invariant checker."""
        return (
            [self.allocatable[r * self.capacity + row] for r in range(self.resources)],
            [self.requested[r * self.capacity + row] for r in range(self.resources)],
            self.scoring_cpu[row], self.scoring_memory[row], self.pods[row], self.pods_max[row],
        )

    cdef inline bint _fits(self, int row, const int64_t* request, int asked) noexcept nogil:
        cdef int r
        if self.pods[row] + 1 > self.pods_max[row]:
            return False
        for r in range(asked):
            if request[r] > 0 and request[r] > self.allocatable[r * self.capacity + row] - self.requested[r * self.capacity + row]:
                return False
        return True

    cdef inline int64_t _least_allocated(self, int row, int64_t cpu, int64_t memory) noexcept nogil:
        # mean over CPU and memory of the free share in percent; a resource the node has not does not count
        cdef int64_t total = 0, weight = 0, have, used
        have = self.allocatable[CPU * self.capacity + row]
        if have > 0:
            used = self.scoring_cpu[row] + cpu
            total += (have - used) * SCORE_MAX // have if used <= have else 0
            weight += 1
        have = self.allocatable[MEMORY * self.capacity + row]
        if have > 0:
            used = self.scoring_memory[row] + memory
            total += (have - used) * SCORE_MAX // have if used <= have else 0
            weight += 1
        return total // weight if weight else 0

    cdef inline int64_t _balanced(self, int row, const int64_t* request) noexcept nogil:
        # 100 less the standard deviation of the used shares of CPU and memory
        cdef double cpu = 0, memory = 0, half
        cdef int64_t have = self.allocatable[CPU * self.capacity + row]
        if have <= 0:
            return SCORE_MAX
        cpu = <double>(self.requested[CPU * self.capacity + row] + request[CPU]) / have
        have = self.allocatable[MEMORY * self.capacity + row]
        if have <= 0:
            return SCORE_MAX
        memory = <double>(self.requested[MEMORY * self.capacity + row] + request[MEMORY]) / have
        if cpu > 1: cpu = 1
        if memory > 1: memory = 1
        half = (cpu - memory) / 2
        if half < 0: half = -half
        return <int64_t>((1 - half) * SCORE_MAX)

    def select(self, list request, int64_t scoring_cpu, int64_t scoring_memory, const uint8_t[::1] mask, const int64_t[::1] scores, bint balance, uint64_t seed):
        """The best row among those with `mask[row]` set that have room -> (row or -1, how many have room).

        `scores` (may be None) are added to the resource scores. Among equals one is drawn evenly from `seed`.
        """
        cdef int64_t asked[RESOURCES_MAX]
        cdef int count = len(request), row, best = -1, feasible = 0, r
        cdef int rows = <int>mask.shape[0]
        cdef int64_t score, top = -1
        cdef uint64_t equals = 0
        cdef bint scored = scores is not None
        memset(asked, 0, sizeof(asked))
        for r in range(count):
            asked[r] = request[r]
        seed |= 1
        with nogil:
            for row in range(rows):
                if not mask[row] or not self._fits(row, asked, count):
                    continue
                feasible += 1
                score = self._least_allocated(row, scoring_cpu, scoring_memory)
                if balance:
                    score += self._balanced(row, asked)
                if scored:
                    score += scores[row]
                if score > top:
                    top, best, equals = score, row, 1
                elif score == top:
                    equals += 1
                    seed ^= seed << 13
                    seed ^= seed >> 7
                    seed ^= seed << 17
                    if seed % equals == 0:
                        best = row
        return best, feasible

    def room(self, list request, const uint8_t[::1] mask, uint8_t[::1] out):
        """Which rows of `mask` have room: sets out[row] to 1, else 0."""
        cdef int64_t asked[RESOURCES_MAX]
        cdef int count = len(request), row, r
        for r in range(count):
            asked[r] = request[r]
        for row in range(<int>mask.shape[0]):
            out[row] = mask[row] and self._fits(row, asked, count)

    def shortages(self, int row, list request):
        """What row has too little of -> (too many pods, [(resource, more than it has at all) ...])."""
        short = []
        for r in range(len(request)):
            if request[r] > 0 and <int64_t>request[r] > self.allocatable[r * self.capacity + row] - self.requested[r * self.capacity + row]:
                short.append((r, <int64_t>request[r] > self.allocatable[r * self.capacity + row]))
        return self.pods[row] + 1 > self.pods_max[row], short
