"""The revision tree: every key's versions, in key order and in revision order, in memory.

What it guarantees: a read at any revision from `compacted` to `visible` sees exactly what stood then; `head` may be ahead of
`visible` by writes that are evaluated but not yet on disk, and no read but `newest` sees those. Three views of the same versions:

- dicts from key to `Entry`, whose `newest` version links to older ones (a point read is one lookup and, mostly, no step);
- sorted blocks of up to 128 entries (a range is two binary searches and a walk over arrays); each block's number of live keys stands in an
  array of its own, so that counting a prefix adds up integers;
- the log: a ring of Events in revision order, which feeds watches and tells compaction what to drop.

Memory is bounded by compaction: `prune` cuts versions that only reads below the compacted revision could see, a slice at a time.
KeyValue, Event and Entry are hidden from Python's cycle collector (a million of them would make its passes slow): `attrs` must not refer
back to them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_SetItem
from cpython.object cimport PyObject_Hash
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

cdef enum:
    EVENT_ATTRS_MAX = 512  # the newest events that keep their `attrs`; older ones are encoded again when somebody asks
    VERSION_BYTES = 256  # what a version costs beside its key and value
    EVENT_BYTES = 64
    DUMP_HEADER = 40

cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class KeyValue:
    """One version of one key; a deletion is a version with `version` 0."""

    def __repr__(self):
        return f"KeyValue({self.key!r}, mod={self.mod_revision}, create={self.create_revision}, version={self.version}, lease={self.lease}, {len(self.value)} bytes)"


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Event:
    """One change of one key."""

    def __repr__(self):
        return f"Event({'DELETE' if self.deleted else 'PUT'}, {self.kv!r})"


@cython.final
@cython.no_gc
cdef class Entry:
    """A key and its newest version."""


cdef inline int compare(bytes a, const char* b, Py_ssize_t bn) noexcept:
    cdef Py_ssize_t an = PyBytes_GET_SIZE(a)
    cdef int r = memcmp(PyBytes_AS_STRING(a), b, an if an < bn else bn)
    if r:
        return r
    return -1 if an < bn else (1 if an > bn else 0)


cdef inline bytes key_at(Block* block, int i):
    return (<Entry> block.entries[i]).key


cdef bint in_range(bytes key, bytes start, bytes end) noexcept:
    """Whether `key` lies in [start, end); `end` b"": just `start`, b"\\0": no end."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(end)
    if n == 0:
        return compare(key, PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start)) == 0
    if compare(key, PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start)) < 0:
        return False
    return (n == 1 and PyBytes_AS_STRING(end)[0] == 0) or compare(key, PyBytes_AS_STRING(end), n) < 0


cdef inline PyObject* version_at(PyObject* entry, int64_t revision) noexcept:
    """The version that stood at `revision` (borrowed), NULL when the key did not exist then."""
    cdef PyObject* kv = <PyObject*> (<Entry> entry).newest
    while kv != <PyObject*> None and (<KeyValue> kv).mod_revision > revision:
        kv = <PyObject*> (<KeyValue> kv).older
    if kv == <PyObject*> None or (<KeyValue> kv).version == 0:
        return NULL
    return kv


cdef inline int64_t size_of(KeyValue kv) noexcept:
    return PyBytes_GET_SIZE(kv.value) + PyBytes_GET_SIZE(kv.key) + VERSION_BYTES


cdef bytes splice(bytes value, Py_ssize_t at, int64_t revision):
    """`value` with the decimal `revision` inserted at offset `at`."""
    cdef char digits[24]
    cdef int n = snprintf(digits, sizeof(digits), b"%lld", <long long> revision)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    if at > size:
        raise ValueError(f"revision_at {at} is past the end of a value of {size} bytes")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size + n)
    cdef char* p = PyBytes_AS_STRING(out)
    cdef const char* q = PyBytes_AS_STRING(value)
    memcpy(p, q, at)
    memcpy(p + at, digits, n)
    memcpy(p + at + n, q + at, size - at)
    return out


cdef class Tree:
    """See the module. `compacted_error(revision)` and `future_error()` make what reads outside of history raise."""

    def __cinit__(self, compacted_error=ValueError, future_error=ValueError):
        self.compacted_error = compacted_error
        self.future_error = future_error
        self.head = self.visible = 1
        self.compacted = 0
        self.blocks_cap = 16
        self.blocks = <Block**> malloc(self.blocks_cap * sizeof(Block*))
        self.live = <int32_t*> malloc(self.blocks_cap * sizeof(int32_t))
        self.chunks_mask = 15
        self.chunks = <PyObject***> calloc(self.chunks_mask + 1, sizeof(PyObject**))
        if self.blocks == NULL or self.live == NULL or self.chunks == NULL:
            raise MemoryError()
        cdef dict shard
        for i in range(SHARDS):
            shard = {}
            Py_INCREF(shard)
            self.shards[i] = <PyObject*> shard

    def __dealloc__(self):
        cdef int64_t i
        # Cut the chains first: freeing a long one from its newest end would recurse once per version.
        for i in range(self.log_start, self.log_end):
            (<Event> event_at(self, i)).kv.older = None
        for i in range(self.log_start, self.log_end):
            Py_DECREF(<Event> event_at(self, i))
        if self.chunks != NULL:
            for i in range(self.chunks_mask + 1):
                free(self.chunks[i])
        for i in range(SHARDS):
            if self.shards[i] != NULL:
                Py_DECREF(<object> self.shards[i])
        for i in range(self.blocks_n):
            free(self.blocks[i])
        free(self.blocks)
        free(self.live)
        free(self.chunks)

    # The keys by name

    cdef PyObject* _find(self, bytes key) noexcept:
        """The Entry of a key (borrowed) or NULL."""
        return PyDict_GetItem(<dict> self.shards[(PyObject_Hash(key) >> 40) & (SHARDS - 1)], key)

    cdef int _add(self, Entry entry) except -1:
        self._insert(entry)
        PyDict_SetItem(<dict> self.shards[(PyObject_Hash(entry.key) >> 40) & (SHARDS - 1)], entry.key, entry)
        self.keys_n += 1
        return 0

    cdef int _discard(self, bytes key) except -1:
        """Take a key, none of whose versions are live, out."""
        self._remove(key)
        del (<dict> self.shards[(PyObject_Hash(key) >> 40) & (SHARDS - 1)])[key]
        self.keys_n -= 1
        return 0

    # The sorted blocks

    cdef void _locate(self, const char* key, Py_ssize_t n, Cursor* at) noexcept:
        """The first entry that is not below `key`, as a place inside the block where `key` belongs."""
        cdef Py_ssize_t low = 0, high = self.blocks_n, mid
        while low < high:  # the last block whose first key is <= key
            mid = (low + high) >> 1
            if compare((<Entry> self.blocks[mid].entries[0]).key, key, n) <= 0:
                low = mid + 1
            else:
                high = mid
        at.block = low - 1 if low > 0 else 0
        at.at = 0
        if self.blocks_n == 0:
            return
        cdef Block* block = self.blocks[at.block]
        cdef int l = 0, h = block.n, m
        while l < h:
            m = (l + h) >> 1
            if compare((<Entry> block.entries[m]).key, key, n) < 0:
                l = m + 1
            else:
                h = m
        at.at = l

    cdef void _bounds(self, bytes key, bytes end, Cursor* low, Cursor* high) noexcept:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(end)
        self._locate(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), low)
        if n == 0:
            high[0] = low[0]
            if self.blocks_n and low.at < self.blocks[low.block].n and (<Entry> self.blocks[low.block].entries[low.at]).key == key:
                high.at += 1
        elif n == 1 and PyBytes_AS_STRING(end)[0] == 0:
            high.block = self.blocks_n - 1 if self.blocks_n else 0
            high.at = self.blocks[high.block].n if self.blocks_n else 0
        else:
            self._locate(PyBytes_AS_STRING(end), n, high)

    cdef int _insert_block(self, Py_ssize_t index) except -1:
        if self.blocks_n == self.blocks_cap:
            self.blocks = <Block**> realloc(self.blocks, 2 * self.blocks_cap * sizeof(Block*))
            self.live = <int32_t*> realloc(self.live, 2 * self.blocks_cap * sizeof(int32_t))
            if self.blocks == NULL or self.live == NULL:
                raise MemoryError()
            self.blocks_cap *= 2
        cdef Block* block = <Block*> malloc(sizeof(Block))
        if block == NULL:
            raise MemoryError()
        block.n = 0
        memmove(self.blocks + index + 1, self.blocks + index, (self.blocks_n - index) * sizeof(Block*))
        memmove(self.live + index + 1, self.live + index, (self.blocks_n - index) * sizeof(int32_t))
        self.blocks[index] = block
        self.live[index] = 0
        self.blocks_n += 1
        return 0

    cdef void _drop_block(self, Py_ssize_t index) noexcept:
        free(self.blocks[index])
        self.blocks_n -= 1
        memmove(self.blocks + index, self.blocks + index + 1, (self.blocks_n - index) * sizeof(Block*))
        memmove(self.live + index, self.live + index + 1, (self.blocks_n - index) * sizeof(int32_t))

    cdef int _insert(self, Entry entry) except -1:
        cdef Cursor at
        cdef Block* block
        cdef Block* right
        cdef int half = BLOCK // 2
        cdef Py_ssize_t n = self.blocks_n
        # Keys mostly come in order at recovery: look at the very end first.
        if n and compare(entry.key, PyBytes_AS_STRING((<Entry> self.blocks[n - 1].entries[self.blocks[n - 1].n - 1]).key),
                         PyBytes_GET_SIZE((<Entry> self.blocks[n - 1].entries[self.blocks[n - 1].n - 1]).key)) > 0:
            at.block = n - 1
            at.at = self.blocks[n - 1].n
        else:
            self._locate(PyBytes_AS_STRING(entry.key), PyBytes_GET_SIZE(entry.key), &at)
        if n == 0:
            self._insert_block(0)
        block = self.blocks[at.block]
        if block.n == BLOCK:
            if at.at == BLOCK:  # behind a full block: what grows in order fills its blocks
                at.block += 1
                at.at = 0
                if at.block == self.blocks_n or self.blocks[at.block].n == BLOCK:
                    self._insert_block(at.block)
            else:
                self._insert_block(at.block + 1)
                right = self.blocks[at.block + 1]
                memcpy(right.entries, block.entries + half, (BLOCK - half) * sizeof(PyObject*))
                right.n = BLOCK - half
                block.n = half
                self.live[at.block + 1] = self._count_live(right, 0, right.n, self.visible)
                self.live[at.block] -= self.live[at.block + 1]
                if at.at > half:
                    at.block += 1
                    at.at -= half
            block = self.blocks[at.block]
        memmove(block.entries + at.at + 1, block.entries + at.at, (block.n - at.at) * sizeof(PyObject*))
        block.entries[at.at] = <PyObject*> entry
        block.n += 1
        return 0

    cdef void _remove(self, bytes key) noexcept:
        cdef Cursor at
        self._locate(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &at)
        cdef Block* block = self.blocks[at.block]
        cdef Block* right
        block.n -= 1
        memmove(block.entries + at.at, block.entries + at.at + 1, (block.n - at.at) * sizeof(PyObject*))
        if block.n == 0:
            self._drop_block(at.block)
        elif at.block + 1 < self.blocks_n and block.n + self.blocks[at.block + 1].n <= BLOCK // 2:
            right = self.blocks[at.block + 1]
            memcpy(block.entries + block.n, right.entries, right.n * sizeof(PyObject*))
            block.n += right.n
            self.live[at.block] += self.live[at.block + 1]
            self._drop_block(at.block + 1)

    cdef int _count_live(self, Block* block, int start, int stop, int64_t revision) noexcept:
        cdef int i, n = 0
        for i in range(start, stop):
            if version_at(block.entries[i], revision) != NULL:
                n += 1
        return n

    cdef Py_ssize_t _count(self, Cursor low, Cursor high) noexcept:
        """Keys between two places that are live at the visible revision."""
        cdef Py_ssize_t b, n = 0
        if self.blocks_n == 0 or low.block > high.block:
            return 0
        if low.block == high.block:
            return self._count_live(self.blocks[low.block], low.at, high.at, self.visible)
        n = self._count_live(self.blocks[low.block], low.at, self.blocks[low.block].n, self.visible)
        for b in range(low.block + 1, high.block):
            n += self.live[b]
        return n + self._count_live(self.blocks[high.block], 0, high.at, self.visible)

    cdef Py_ssize_t _count_at(self, bytes key, bytes end, Cursor low, Cursor high, int64_t revision) noexcept:
        """The same at any revision: from the events since then when they are fewer than the keys, else by a walk."""
        cdef int64_t i, since
        cdef Py_ssize_t b, n
        cdef Event event
        if revision == self.visible:
            return self._count(low, high)
        if revision < self.visible:
            since = self._position(revision + 1)
            if self.visible_at - since <= (high.block - low.block) * (BLOCK // 2):
                n = self._count(low, high)
                for i in range(since, self.visible_at):
                    event = <Event> event_at(self, i)
                    if (event.deleted or event.prev is None) and in_range(event.kv.key, key, end):
                        n += 1 if event.deleted else -1
                return n
        n = 0
        if self.blocks_n:
            for b in range(low.block, high.block + 1):
                n += self._count_live(self.blocks[b], low.at if b == low.block else 0, high.at if b == high.block else self.blocks[b].n, revision)
        return n

    # The log

    cdef int _append(self, Event event) except -1:
        cdef int64_t first = self.log_start // CHUNK, chunk = self.log_end // CHUNK, i, mask
        cdef PyObject*** grown
        if chunk - first > self.chunks_mask:
            mask = 2 * self.chunks_mask + 1
            grown = <PyObject***> calloc(mask + 1, sizeof(PyObject**))
            if grown == NULL:
                raise MemoryError()
            for i in range(first, chunk):
                grown[i & mask] = self.chunks[i & self.chunks_mask]
            free(self.chunks)
            self.chunks = grown
            self.chunks_mask = mask
        if self.chunks[chunk & self.chunks_mask] == NULL:
            self.chunks[chunk & self.chunks_mask] = <PyObject**> malloc(CHUNK * sizeof(PyObject*))
            if self.chunks[chunk & self.chunks_mask] == NULL:
                raise MemoryError()
        Py_INCREF(event)
        slot(self, self.log_end)[0] = <PyObject*> event
        self.log_end += 1
        self.history_bytes += EVENT_BYTES
        return 0

    cdef void _free_chunk(self, int64_t position) noexcept:
        """Give the piece of the log back that ends before `position`."""
        cdef int64_t i = (position // CHUNK - 1) & self.chunks_mask
        free(self.chunks[i])
        self.chunks[i] = NULL

    cdef int64_t _position(self, int64_t revision) noexcept:
        """Where in the log the first event with at least `revision` stands."""
        cdef int64_t low = self.log_start, high = self.log_end, mid
        while low < high:
            mid = (low + high) >> 1
            if (<Event> event_at(self, mid)).kv.mod_revision < revision:
                low = mid + 1
            else:
                high = mid
        return low

    def position(self, int64_t revision):
        return self._position(revision)

    def event(self, int64_t position):
        """The event at a log position between `log_start` and `log_end`."""
        if not self.log_start <= position < self.log_end:
            raise IndexError(position)
        return <Event> event_at(self, position)

    # Writes

    cpdef Event put(self, bytes key, bytes value, int64_t revision, int64_t expect=-1, int64_t lease=0, Py_ssize_t revision_at=-1, object attrs=None):
        """Write at the head, as part of `revision` (head + 1, or head for a further operation of the same transaction).

        None, and nothing done, when `expect` (>= 0) is not the key's mod_revision (0: the key must not exist).
        """
        if key is None or value is None:
            raise TypeError("a key and a value are bytes")
        cdef PyObject* found = self._find(key)
        cdef Entry entry
        cdef KeyValue prev = None, kv
        if found != NULL:
            entry = <Entry> found
            if entry.newest.version:
                prev = entry.newest
        if expect >= 0 and expect != (0 if prev is None else prev.mod_revision):
            return None
        if revision_at >= 0:
            value = splice(value, revision_at, revision)
        kv = KeyValue.__new__(KeyValue)
        kv.value = value
        kv.mod_revision = revision
        kv.lease = lease
        kv.attrs = attrs
        if prev is None:
            kv.create_revision = revision
            kv.version = 1
        else:
            kv.create_revision = prev.create_revision
            kv.version = prev.version + 1
            self.live_bytes -= size_of(prev)
        if found == NULL:
            entry = Entry.__new__(Entry)
            entry.key = key
            entry.newest = kv
            self._add(entry)
        else:
            kv.older = entry.newest
            self.history_bytes += size_of(entry.newest)
            entry.newest = kv
        kv.key = entry.key
        self.live_bytes += size_of(kv)
        self.head = revision
        cdef Event event = Event.__new__(Event)
        event.kv = kv
        event.prev = prev
        self._append(event)
        return event

    cpdef Event delete(self, bytes key, int64_t revision):
        """Delete at the head, as part of `revision`. None, and nothing done, when the key does not exist."""
        if key is None:
            raise TypeError("a key is bytes")
        cdef PyObject* found = self._find(key)
        if found == NULL or (<Entry> found).newest.version == 0:
            return None
        cdef Entry entry = <Entry> found
        cdef KeyValue kv = KeyValue.__new__(KeyValue)
        cdef Event event = Event.__new__(Event)
        kv.key = entry.key
        kv.value = b""
        kv.mod_revision = revision
        kv.older = entry.newest
        event.deleted = True
        event.kv = kv
        event.prev = entry.newest
        self.history_bytes += size_of(entry.newest)
        self.live_bytes -= size_of(entry.newest)
        entry.newest = kv
        self.head = revision
        self._append(event)
        return event

    def newest(self, bytes key not None):
        """What stands at the head: for the evaluation of writes only."""
        cdef PyObject* found = self._find(key)
        if found == NULL or (<Entry> found).newest.version == 0:
            return None
        return (<Entry> found).newest

    cpdef publish(self, int64_t revision):
        """Make everything up to `revision` visible."""
        cdef Event event
        cdef Cursor at
        cdef int64_t i
        self.visible = revision
        while self.visible_at < self.log_end:
            event = <Event> event_at(self, self.visible_at)
            if event.kv.mod_revision > revision:
                break
            if event.deleted or event.prev is None:
                self._locate(PyBytes_AS_STRING(event.kv.key), PyBytes_GET_SIZE(event.kv.key), &at)
                self.live[at.block] += -1 if event.deleted else 1
            i = self.visible_at - EVENT_ATTRS_MAX
            if i >= self.log_start:
                (<Event> event_at(self, i)).attrs = None
            self.visible_at += 1

    def rollback(self):
        """Take everything back that is not visible; returns those events, newest first."""
        cdef list taken = []
        cdef Event event
        cdef Entry entry
        while self.log_end > self.visible_at:
            self.log_end -= 1
            event = <Event> event_at(self, self.log_end)
            taken.append(event)
            Py_DECREF(event)
            self.history_bytes -= EVENT_BYTES
            entry = <Entry> self._find(event.kv.key)
            if not event.deleted:
                self.live_bytes -= size_of(event.kv)
            if event.prev is not None:
                self.live_bytes += size_of(event.prev)
            if event.kv.older is None:
                self._discard(entry.key)
            else:
                self.history_bytes -= size_of(event.kv.older)
                entry.newest = event.kv.older
                event.kv.older = None
        self.head = self.visible
        return taken

    # Reads

    cdef int64_t _check(self, int64_t revision) except -1:
        if revision <= 0:
            return self.visible
        if revision < self.compacted:
            raise self.compacted_error(self.compacted)
        if revision > self.visible:
            raise self.future_error(f"required revision {revision} is a future revision (the store is at {self.visible})")
        return revision

    def get(self, bytes key not None, int64_t revision=0):
        cdef PyObject* found
        if revision:
            revision = self._check(revision)
        else:
            revision = self.visible
        found = self._find(key)
        if found == NULL:
            return None
        found = version_at(found, revision)
        return None if found == NULL else <KeyValue> found

    def range(self, bytes key not None, bytes end not None, int64_t revision=0, Py_ssize_t limit=0, bint count_only=False, bint head=False):
        """-> (KeyValues of [key, end) in order, how many keys the whole range holds, the revision read at)."""
        cdef Cursor low, high
        cdef Py_ssize_t b, count, left = limit if limit > 0 else FOREVER
        cdef int i, stop
        cdef PyObject* kv
        cdef Block* block
        cdef list kvs = []
        revision = FOREVER if head else self._check(revision)
        self._bounds(key, end, &low, &high)
        if count_only:
            return kvs, self._count_at(key, end, low, high, revision), self.head if head else revision
        b = low.block
        i = low.at
        while b <= high.block and b < self.blocks_n and left > 0:
            block = self.blocks[b]
            stop = high.at if b == high.block else block.n
            while i < stop:
                kv = version_at(block.entries[i], revision)
                i += 1
                if kv != NULL:
                    kvs.append(<KeyValue> kv)
                    left -= 1
                    if left == 0:
                        break
            else:
                b += 1
                i = 0
        if left > 0:
            count = len(kvs)
        else:
            count = self._count_at(key, end, low, high, revision)
        return kvs, count, self.head if head else revision

    # Compaction

    def compact(self, int64_t revision):
        """From now on reads below `revision` are refused; `prune` frees what they needed."""
        if revision > self.compacted:
            self.compacted = revision

    def prune(self, int64_t revision, Py_ssize_t limit):
        """Free what only reads below `revision` need, at most `limit` events' worth. True when nothing is left to free."""
        cdef Event event
        cdef KeyValue kv
        if revision > self.compacted:
            revision = self.compacted
        while self.prune_at < self.visible_at and limit > 0:
            event = <Event> event_at(self, self.prune_at)
            kv = event.kv
            if kv.mod_revision > revision:
                break
            limit -= 1
            self.prune_at += 1
            if kv.older is not None:
                self.history_bytes -= size_of(kv.older)
                kv.older = None
            if event.deleted and (<Entry> self._find(kv.key)).newest is kv:
                self._discard(kv.key)
        while self.log_start < self.prune_at:
            event = <Event> event_at(self, self.log_start)
            if event.kv.mod_revision >= revision:
                break  # a watch may still start at the compacted revision itself
            Py_DECREF(event)
            self.log_start += 1
            self.history_bytes -= EVENT_BYTES
            if self.log_start % CHUNK == 0:
                self._free_chunk(self.log_start)
        return limit > 0

    # Snapshots

    def dump(self, bytes after, int64_t revision, Py_ssize_t size):
        """Encode keys above `after` (None: from the first) as they stood at `revision` until there are `size` bytes -> (bytes, last key or None at the end, number of keys)."""
        cdef Cursor at
        cdef Py_ssize_t need, used = 0, cap = size + (1 << 16), kn, vn
        cdef char* buf
        cdef char* p
        cdef PyObject* found
        cdef KeyValue kv
        cdef bytes last = None
        cdef int visited = 0, n = 0
        buf = <char*> malloc(cap)
        if buf == NULL:
            raise MemoryError()
        at.block = at.at = 0
        if after is not None:
            self._locate(PyBytes_AS_STRING(after), PyBytes_GET_SIZE(after), &at)
        try:
            while at.block < self.blocks_n:
                if at.at >= self.blocks[at.block].n:
                    at.block += 1
                    at.at = 0
                    continue
                if used >= size or visited >= 20000:
                    return PyBytes_FromStringAndSize(buf, used), last, n
                found = self.blocks[at.block].entries[at.at]
                at.at += 1
                if after is not None and (<Entry> found).key == after:
                    continue
                visited += 1
                last = (<Entry> found).key
                found = version_at(found, revision)
                if found == NULL:
                    continue
                kv = <KeyValue> found
                kn = PyBytes_GET_SIZE(kv.key)
                vn = PyBytes_GET_SIZE(kv.value)
                need = used + DUMP_HEADER + kn + vn
                if need > cap:
                    cap = need + (1 << 16)
                    buf = <char*> realloc(buf, cap)
                    if buf == NULL:
                        raise MemoryError()
                p = buf + used
                (<uint32_t*> p)[0] = <uint32_t> kn
                (<uint32_t*> (p + 4))[0] = <uint32_t> vn
                memcpy(p + 8, &kv.create_revision, 8)
                memcpy(p + 16, &kv.mod_revision, 8)
                memcpy(p + 24, &kv.version, 8)
                memcpy(p + 32, &kv.lease, 8)
                memcpy(p + DUMP_HEADER, PyBytes_AS_STRING(kv.key), kn)
                memcpy(p + DUMP_HEADER + kn, PyBytes_AS_STRING(kv.value), vn)
                used = need
                n += 1
            return PyBytes_FromStringAndSize(buf, used), None, n
        finally:
            free(buf)

    def load(self, const unsigned char[::1] data, int64_t revision):
        """Take in what `dump` gave at `revision`, in order, into a tree without history; returns the number of keys. ValueError when it makes no sense.

        What was put at `revision` itself becomes an event again: a watch may start there."""
        cdef Py_ssize_t at = 0, size = data.shape[0]
        cdef uint32_t kn, vn
        cdef const char* p
        cdef Entry entry
        cdef KeyValue kv
        cdef Event event
        cdef bytes last = None
        cdef int n = 0
        if self.blocks_n:
            last = (<Entry> self.blocks[self.blocks_n - 1].entries[self.blocks[self.blocks_n - 1].n - 1]).key
        while at < size:
            if size - at < DUMP_HEADER:
                raise ValueError("a key's header is cut")
            p = <const char*> &data[at]
            memcpy(&kn, p, 4)
            memcpy(&vn, p + 4, 4)
            if size - at - DUMP_HEADER < <Py_ssize_t> kn + <Py_ssize_t> vn:
                raise ValueError("a key is cut")
            kv = KeyValue.__new__(KeyValue)
            kv.key = PyBytes_FromStringAndSize(p + DUMP_HEADER, kn)
            kv.value = PyBytes_FromStringAndSize(p + DUMP_HEADER + kn, vn)
            memcpy(&kv.create_revision, p + 8, 8)
            memcpy(&kv.mod_revision, p + 16, 8)
            memcpy(&kv.version, p + 24, 8)
            memcpy(&kv.lease, p + 32, 8)
            if last is not None and compare(last, PyBytes_AS_STRING(kv.key), kn) >= 0:
                raise ValueError(f"key {kv.key!r} is out of order")
            last = kv.key
            entry = Entry.__new__(Entry)
            entry.key = kv.key
            entry.newest = kv
            self._add(entry)
            self.live[self.blocks_n - 1] += 1
            self.live_bytes += size_of(kv)
            if kv.mod_revision == revision:
                event = Event.__new__(Event)
                event.kv = kv
                self._append(event)
                self.visible_at = self.prune_at = self.log_end
            at += DUMP_HEADER + kn + vn
            n += 1
        return n

    def restore(self, int64_t revision):
        """Where a snapshot stood: the head, the visible and the compacted revision."""
        self.head = self.visible = self.compacted = revision

    def leased(self):
        """Every key that hangs on a lease at the head, as (lease, key): for recovery."""
        cdef list found = []
        cdef Entry entry
        cdef Py_ssize_t b
        cdef int i
        for b in range(self.blocks_n):
            for i in range(self.blocks[b].n):
                entry = <Entry> self.blocks[b].entries[i]
                if entry.newest.lease:
                    found.append((entry.newest.lease, entry.key))
        return found

    def __len__(self):
        """Keys that have any version in history."""
        return self.keys_n
