# cython: language_level=3
"""Node columns: what every node can give and has given, one array per resource, and the kernels that go over them.

A row is a node (a small integer, reused after removal), a column a resource: 0 CPU in millicores, 1 memory in bytes, then whatever the
cluster has (bytes or whole numbers). A decision is a row of passes over all nodes, each without Python objects and with the GIL dropped: filters
write into `codes` (a byte per row, 0: still possible), `gather` takes what is left as candidates, `score_*` add each plugin's weighted score
(normalised over the candidates, as upstream does), `best` picks.
"""

from libc.math cimport log, round
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastkube._ext.topology cimport DomainCount

cdef enum:
    CPU = 0
    MEMORY = 1
    RESOURCES_MAX = 64
    SCORE_MAX = 100


cdef class Room:
    """What the columns say to one kind of request, per row: whether there is no room, and the resource scores. `NodeColumns.renew` keeps it true."""

    cdef int capacity
    cdef uint8_t* refused
    cdef int32_t* score
    cdef public Py_ssize_t seen    # the owner's mark: how far it has followed the changes
    cdef public int epoch

    def __cinit__(self):
        self.epoch = -1

    def __dealloc__(self):
        free(self.refused)
        free(self.score)

    cdef int _ensure(self, int rows) except -1:
        if rows > self.capacity:
            free(self.refused)
            free(self.score)
            self.refused = <uint8_t*>calloc(rows, 1)
            self.score = <int32_t*>calloc(rows, sizeof(int32_t))
            if self.refused == NULL or self.score == NULL:
                raise MemoryError()
            self.capacity = rows
            return 1
        return 0


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
    cdef int64_t* reserved         # [resources][capacity]: held for nominated pods; filters count it, scores do not
    cdef int64_t* reserved_pods
    cdef int candidates            # the decision under way: rows[i] has total[i], raw[i] is scratch
    cdef int32_t* rows
    cdef int64_t* total
    cdef int64_t* raw

    def __cinit__(self, int capacity=64, int resources=3):
        self.capacity = capacity
        self.resources = resources
        self.allocatable = self._column(resources)
        self.requested = self._column(resources)
        self.scoring_cpu = self._column(1)
        self.scoring_memory = self._column(1)
        self.pods = self._column(1)
        self.pods_max = self._column(1)
        self.reserved = self._column(resources)
        self.reserved_pods = self._column(1)
        self.total = self._column(1)
        self.raw = self._column(1)
        self.rows = <int32_t*>self._column(1)

    def __dealloc__(self):
        free(self.allocatable)
        free(self.requested)
        free(self.scoring_cpu)
        free(self.scoring_memory)
        free(self.pods)
        free(self.pods_max)
        free(self.reserved)
        free(self.reserved_pods)
        free(self.total)
        free(self.raw)
        free(self.rows)

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
        self.reserved = self._moved(self.reserved, old, had, resources)
        if capacity != old:
            self.scoring_cpu = self._moved(self.scoring_cpu, old, 1, 1)
            self.scoring_memory = self._moved(self.scoring_memory, old, 1, 1)
            self.pods = self._moved(self.pods, old, 1, 1)
            self.pods_max = self._moved(self.pods_max, old, 1, 1)
            self.reserved_pods = self._moved(self.reserved_pods, old, 1, 1)
            self.total = self._moved(self.total, old, 1, 1)
            self.raw = self._moved(self.raw, old, 1, 1)
            self.rows = <int32_t*>self._moved(<int64_t*>self.rows, old, 1, 1)
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
            self.reserved[r * self.capacity + row] = 0
        self.reserved_pods[row] = self.scoring_cpu[row] = self.scoring_memory[row] = self.pods[row] = self.pods_max[row] = 0

    def add(self, int row, list request, int64_t scoring_cpu, int64_t scoring_memory, int sign):
        """A pod comes (`sign` 1) or goes (-1)."""
        cdef int r
        for r in range(len(request)):
            self.requested[r * self.capacity + row] += sign * <int64_t>request[r]
        self.scoring_cpu[row] += sign * scoring_cpu
        self.scoring_memory[row] += sign * scoring_memory
        self.pods[row] += sign

    def reserve(self, int row, list request, int sign):
        """Room is held for a nominated pod (`sign` 1), or no longer (-1)."""
        cdef int r
        for r in range(len(request)):
            self.reserved[r * self.capacity + row] += sign * <int64_t>request[r]
        self.reserved_pods[row] += sign

    def row(self, int row):
        """(allocatable, requested, scoring cpu, scoring memory, pods, pods_max) of one row: for tests and the invariant checker."""
        return (
            [self.allocatable[r * self.capacity + row] for r in range(self.resources)],
            [self.requested[r * self.capacity + row] for r in range(self.resources)],
            self.scoring_cpu[row], self.scoring_memory[row], self.pods[row], self.pods_max[row],
        )

    cdef inline bint _fits(self, int row, const int64_t* request, int asked) noexcept nogil:
        cdef int r
        if self.pods[row] + self.reserved_pods[row] + 1 > self.pods_max[row]:
            return False
        for r in range(asked):
            if request[r] > 0 and request[r] > self.allocatable[r * self.capacity + row] - self.requested[r * self.capacity + row] - self.reserved[r * self.capacity + row]:
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

    # --- a decision: fit, gather, score ..., best ---

    def fit(self, list request, uint8_t[::1] codes, int first, int last, int code):
        """Sets codes[row] to `code` where nobody refused before (0) and there is no room. Room given to nominated pods (`reserve`) is taken."""
        cdef int64_t asked[RESOURCES_MAX]
        cdef int count = len(request), row, r
        for r in range(count):
            asked[r] = request[r]
        with nogil:
            for row in range(first, last):
                if not codes[row] and not self._fits(row, asked, count):
                    codes[row] = code

    def renew(self, Room room, changed, list request, int64_t cpu, int64_t memory, int64_t least, int64_t balanced):
        """`room` becomes true again for the rows `changed` (None: for all), with NodeResourcesFit and BalancedAllocation weighted so."""
        cdef int64_t asked[RESOURCES_MAX]
        cdef int count = len(request), row, r
        for r in range(count):
            asked[r] = request[r]
        if count < 2:
            asked[1] = 0
        if room._ensure(self.capacity):
            changed = None
        if changed is None:
            with nogil:
                for row in range(self.capacity):
                    self._renew(room, row, asked, count, cpu, memory, least, balanced)
        else:
            for row in changed:
                self._renew(room, row, asked, count, cpu, memory, least, balanced)

    cdef inline void _renew(self, Room room, int row, const int64_t* asked, int count, int64_t cpu, int64_t memory, int64_t least, int64_t balanced) noexcept nogil:
        room.refused[row] = not self._fits(row, asked, count)
        room.score[row] = <int32_t>((least * self._least_allocated(row, cpu, memory) if least else 0) + (balanced * self._balanced(row, asked) if balanced else 0))

    def fit_room(self, Room room, uint8_t[::1] codes, int first, int last, int code):
        """As `fit`, from what is known."""
        cdef int row
        with nogil:
            for row in range(first, last):
                if not codes[row] and room.refused[row]:
                    codes[row] = code

    def score_room(self, Room room):
        """The resource scores, from what is known."""
        cdef int i
        with nogil:
            for i in range(self.candidates):
                self.total[i] += room.score[self.rows[i]]

    def shortfall(self, list request, const uint8_t[::1] codes, int code):
        """Of the rows refused with `code`: (too many pods, [too little of resource r ...], short of more than they have at all), each a number of rows."""
        cdef int r, row, count = len(request), crowded = 0, hopeless = 0
        cdef bint never
        cdef int64_t asked, left
        cdef int64_t wanted[RESOURCES_MAX]
        cdef int64_t lacking[RESOURCES_MAX]
        memset(lacking, 0, sizeof(lacking))
        for r in range(count):
            wanted[r] = request[r]
        for row in range(<int>codes.shape[0]):
            if codes[row] != code:
                continue
            never = False
            crowded += self.pods[row] + self.reserved_pods[row] + 1 > self.pods_max[row]
            for r in range(count):
                asked = wanted[r]
                left = self.allocatable[r * self.capacity + row] - self.requested[r * self.capacity + row] - self.reserved[r * self.capacity + row]
                if asked > 0 and asked > left:
                    lacking[r] += 1
                    never = never or asked > self.allocatable[r * self.capacity + row]
            hopeless += never
        return crowded, [lacking[r] for r in range(count)], hopeless

    def gather(self, const uint8_t[::1] codes, int first, int last):
        """The rows nobody refused become the candidates, all with score 0 -> (how many, the first of them or -1)."""
        cdef int row, n = 0
        with nogil:
            for row in range(first, last):
                if not codes[row]:
                    self.rows[n] = row
                    self.total[n] = 0
                    n += 1
        self.candidates = n
        return n, (self.rows[0] if n else -1)

    def score_least(self, int64_t cpu, int64_t memory, int64_t weight):
        """NodeResourcesFit, strategy LeastAllocated, over CPU and memory."""
        cdef int i
        with nogil:
            for i in range(self.candidates):
                self.total[i] += weight * self._least_allocated(self.rows[i], cpu, memory)

    def score_balanced(self, list request, int64_t weight):
        """NodeResourcesBalancedAllocation over CPU and memory."""
        cdef int i
        cdef int64_t asked[2]
        asked[0], asked[1] = request[0], request[1]
        with nogil:
            for i in range(self.candidates):
                self.total[i] += weight * self._balanced(self.rows[i], asked)

    def score_shares(self, list request, list strategy, bint most, list shape, int64_t weight):
        """NodeResourcesFit by `strategy`: [(resource, weight, use scoring defaults amount or -1)]: MostAllocated, or a `shape` [(utilization, score)]."""
        cdef int i, row, r, k
        cdef int64_t have, used, share, total, weights, w, points = len(shape)
        cdef double exact
        cdef list xs = [x for x, _ in shape], ys = [y for _, y in shape]
        for i in range(self.candidates):
            row = self.rows[i]
            total = weights = 0
            exact = 0
            for resource, rw, defaulted in strategy:
                r, w = resource, rw
                have = self.allocatable[r * self.capacity + row]
                if have <= 0:
                    continue
                if r == CPU:
                    used = self.scoring_cpu[row] + <int64_t>defaulted
                elif r == MEMORY:
                    used = self.scoring_memory[row] + <int64_t>defaulted
                else:
                    used = self.requested[r * self.capacity + row] + <int64_t>request[r]
                if most:
                    share = min(used, have) * SCORE_MAX // have
                elif not points:
                    share = (have - used) * SCORE_MAX // have if used <= have else 0
                else:
                    share = _shaped(xs, ys, SCORE_MAX if used > have else used * SCORE_MAX // have)
                if points:
                    if share > 0:
                        total += share * w
                        weights += w
                else:
                    total += share * w
                    weights += w
            if weights:
                self.total[i] += weight * (<int64_t>(total / <double>weights + 0.5) if points else total // weights)

    def score_normalized(self, const int64_t[::1] column, int64_t weight, bint reverse):
        """`column[row]` spread to 0..100 by the candidates' maximum; `reverse`: the less the better."""
        cdef int i
        cdef int64_t top = 0, score
        with nogil:
            for i in range(self.candidates):
                top = max(top, column[self.rows[i]])
            for i in range(self.candidates):
                score = SCORE_MAX * column[self.rows[i]] // top if top > 0 else 0
                self.total[i] += weight * (SCORE_MAX - score if reverse else score)

    def score_plain(self, const int64_t[::1] column, int64_t weight):
        """`column[row]` as it is (0..100)."""
        cdef int i
        with nogil:
            for i in range(self.candidates):
                self.total[i] += weight * column[self.rows[i]]

    def score_affinity(self, list terms, int64_t weight):
        """InterPodAffinity: `terms` are (DomainCount, weight of each pod in the row's domain); spread to 0..100 between the least and the most."""
        cdef int i
        cdef int64_t low = 0, high = 0, w
        cdef DomainCount view
        cdef int64_t* raw = self.raw
        memset(raw, 0, self.candidates * sizeof(int64_t))
        for view, each in terms:
            w = each
            with nogil:
                for i in range(self.candidates):
                    raw[i] += w * view.at(self.rows[i])
        with nogil:
            for i in range(self.candidates):
                low = raw[i] if i == 0 else min(low, raw[i])
                high = raw[i] if i == 0 else max(high, raw[i])
            if high > low:
                for i in range(self.candidates):
                    self.total[i] += weight * <int64_t>(SCORE_MAX * (<double>(raw[i] - low) / <double>(high - low)))

    def score_spread(self, list constraints, bint all_keys, int64_t weight):
        """PodTopologySpread: `constraints` are (DomainCount, max_skew, whether each node is a domain). `all_keys`: a node without one of the keys scores 0."""
        cdef int i, row, domains, kept = 0
        cdef int32_t d
        cdef int64_t low = -1, high = 0, score
        cdef double factor, skew
        cdef bint single
        cdef DomainCount view
        cdef int64_t* raw = self.raw
        cdef double* sums = <double*>calloc(self.candidates + 1, sizeof(double))
        cdef uint8_t* seen
        if sums == NULL:
            raise MemoryError()
        try:
            memset(raw, 0, self.candidates * sizeof(int64_t))  # 1: ignored
            if all_keys:
                for view, _, _ in constraints:
                    for i in range(self.candidates):
                        if view.domains.at(self.rows[i]) < 0:
                            raw[i] = 1
            for i in range(self.candidates):
                kept += not raw[i]
            for view, max_skew, by_node in constraints:
                single, skew, domains = by_node, max_skew - 1, 0
                if single:
                    domains = kept
                else:
                    seen = <uint8_t*>calloc(view.domains.size + 1, 1)
                    if seen == NULL:
                        raise MemoryError()
                    for i in range(self.candidates):
                        d = view.domains.at(self.rows[i])
                        if not raw[i] and d >= 0 and not seen[d]:
                            seen[d] = 1
                            domains += 1
                    free(seen)
                factor = log(domains + 2)
                with nogil:
                    for i in range(self.candidates):
                        row = self.rows[i]
                        if raw[i] or view.domains.at(row) < 0:
                            continue
                        if single:
                            sums[i] += (view.pods.rows[row] if row < view.pods.capacity else 0) * factor + skew
                        else:
                            sums[i] += view.at(row) * factor + skew
            with nogil:
                for i in range(self.candidates):
                    if not raw[i]:
                        score = <int64_t>round(sums[i])
                        sums[i] = <double>score
                        low = score if low < 0 else min(low, score)
                        high = max(high, score)
                for i in range(self.candidates):
                    if not raw[i]:
                        self.total[i] += weight * (SCORE_MAX if high == 0 else SCORE_MAX * (high + low - <int64_t>sums[i]) // high)
        finally:
            free(sums)

    def best(self, uint64_t seed):
        """The candidate of the highest score, -1 of none; among equals one is drawn evenly from `seed`."""
        cdef int i, best = -1
        cdef int64_t top = 0
        cdef uint64_t equals = 0
        seed |= 1
        with nogil:
            for i in range(self.candidates):
                if best < 0 or self.total[i] > top:
                    top, best, equals = self.total[i], self.rows[i], 1
                elif self.total[i] == top:
                    equals += 1
                    seed ^= seed << 13
                    seed ^= seed >> 7
                    seed ^= seed << 17
                    if seed % equals == 0:
                        best = self.rows[i]
        return best

    def scores(self):
        """{row: score} of the candidates: for tests and explanations."""
        cdef int i
        return {self.rows[i]: self.total[i] for i in range(self.candidates)}

    def short(self, int row, list request):
        """Whether `row` lacks room for `request`, reserved room taken: for the search for victims."""
        cdef int64_t asked[RESOURCES_MAX]
        cdef int r, count = len(request)
        for r in range(count):
            asked[r] = request[r]
        return not self._fits(row, asked, count)


cdef int64_t _shaped(list xs, list ys, int64_t x):
    # linear between the points of a shape, flat outside
    cdef int k
    cdef int64_t x0, x1, y0, y1
    for k in range(len(xs)):
        if x <= <int64_t>xs[k]:
            if k == 0:
                return ys[0]
            x0, x1, y0, y1 = xs[k - 1], xs[k], ys[k - 1], ys[k]
            return y0 + <int64_t>((y1 - y0) * (x - x0) / <double>(x1 - x0))
    return ys[len(ys) - 1]
