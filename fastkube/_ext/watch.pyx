"""Watch fan-out: which watchers does an event concern? Those that it does not concern cost nothing.

Watchers of one key and of a prefix that ends with a slash (all of the API server's) are found in dicts, by the event's key and by its
prefixes at slashes; other ranges stand in a list that is gone through. A group of commits is handed to each watcher as one batch, after all batches
were made: so a callback may watch, close and write as it likes.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from fastkube._ext.tree cimport Event, KeyValue, Tree, event_at, in_range


@cython.final
cdef class Subscription:
    """One watcher's place in the fan-out."""

    cdef readonly bytes key
    cdef readonly bytes end
    cdef readonly int64_t start
    cdef readonly object on_events
    cdef list batch
    cdef readonly bint closed
    cdef readonly bint live
    cdef public int64_t position  # in the tree's log, while it is catching up

    def __init__(self, bytes key not None, bytes end not None, int64_t start, on_events):
        self.key = key
        self.end = end
        self.start = start
        self.on_events = on_events


cdef object prefix_of(Subscription s):
    """The prefix when the range is all keys under one that ends with a slash, else None."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(s.key)
    if n and s.key[n - 1] == 47 and s.end == s.key[: n - 1] + b"0":  # b"0" follows b"/"
        return s.key
    return None


@cython.final
cdef class Hub:
    """`on_error(subscription)` is told, inside an except block, of a callback that raised, and ends its subscription."""

    cdef dict exact
    cdef dict prefixes
    cdef list ranges
    cdef object on_error
    cdef readonly Py_ssize_t count

    def __init__(self, on_error):
        self.exact = {}
        self.prefixes = {}
        self.ranges = []
        self.on_error = on_error

    def add(self, Subscription s not None):
        """From now on `feed` serves it."""
        if s.closed or s.live:
            return
        s.live = True
        self.count += 1
        if not s.end:
            self.exact.setdefault(s.key, []).append(s)
        elif prefix_of(s) is not None:
            self.prefixes.setdefault(s.key, []).append(s)
        else:
            self.ranges.append(s)

    def remove(self, Subscription s not None):
        s.closed = True
        s.batch = None
        if not s.live:
            return
        s.live = False
        self.count -= 1
        cdef dict table
        if not s.end:
            table = self.exact
        elif prefix_of(s) is not None:
            table = self.prefixes
        else:
            self.ranges.remove(s)
            return
        (<list> table[s.key]).remove(s)
        if not table[s.key]:
            del table[s.key]

    def feed(self, Tree tree not None, int64_t start, int64_t end):
        """Hand the events at log positions [start, end) to whom they concern."""
        cdef list touched = []
        cdef Event event
        cdef Subscription s
        cdef bytes key
        cdef const char* p
        cdef Py_ssize_t n, i
        cdef PyObject* found
        cdef int64_t at
        cdef list batch
        if self.count == 0:
            return
        for at in range(start, end):
            event = <Event> event_at(tree, at)
            key = event.kv.key
            if self.exact:
                found = PyDict_GetItem(self.exact, key)
                if found != NULL:
                    self._collect(<list> found, event, touched)
            if self.prefixes:
                p = PyBytes_AS_STRING(key)
                n = PyBytes_GET_SIZE(key)
                for i in range(n):
                    if p[i] == 47:
                        found = PyDict_GetItem(self.prefixes, PyBytes_FromStringAndSize(p, i + 1))
                        if found != NULL:
                            self._collect(<list> found, event, touched)
            for s in self.ranges:
                if in_range(key, s.key, s.end):
                    self._offer(s, event, touched)
        for s in touched:
            batch = s.batch
            s.batch = None
            if batch is not None and not s.closed:
                try:
                    s.on_events(batch)
                except Exception:
                    self.on_error(s)

    cdef int _collect(self, list watchers, Event event, list touched) except -1:
        cdef Subscription s
        for s in watchers:
            self._offer(s, event, touched)
        return 0

    cdef int _offer(self, Subscription s, Event event, list touched) except -1:
        if event.kv.mod_revision < s.start:
            return 0
        if s.batch is None:
            s.batch = [event]
            touched.append(s)
        else:
            s.batch.append(event)
        return 0

    def history(self, Tree tree not None, Subscription s not None, Py_ssize_t limit):
        """The events that a subscription has to catch up with, from its position on, looking at `limit` of the log at most.

        Moves the position, always to the end of a revision."""
        cdef list batch = []
        cdef Event event
        cdef int64_t at = s.position, revision = -1
        while at < tree.visible_at:
            event = <Event> event_at(tree, at)
            if limit <= 0 and event.kv.mod_revision != revision:
                break
            revision = event.kv.mod_revision
            limit -= 1
            at += 1
            if in_range(event.kv.key, s.key, s.end):
                batch.append(event)
        s.position = at
        return batch
