"""Which stored objects a selector takes, decided on their digests: no object is decoded.

A `Digest` is what reads need of an object's value, taken out once and kept in the KeyValue's `attrs`. A `Selection` is a conjunction of
requirements (key, operator, values) over a digest's labels and fields.
"""

cimport cython
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.set cimport PySet_Contains

from fastkube._ext.tree cimport KeyValue

cdef enum:
    IN = 0  # also = and ==
    NOT_IN = 1  # also !=; an absent key is not in
    EXISTS = 2
    NOT_EXISTS = 3
    GREATER = 4
    LESS = 5

OPERATORS = {"in": IN, "notin": NOT_IN, "exists": EXISTS, "!": NOT_EXISTS, "gt": GREATER, "lt": LESS}


@cython.final
@cython.freelist(256)
cdef class Digest:
    """labels and fields: str -> str; `obj` is the decoded object while somebody keeps it decoded."""

    cdef readonly dict labels
    cdef readonly dict fields
    cdef public object obj

    def __init__(self, dict labels not None, dict fields not None, obj=None):
        self.labels = labels
        self.fields = fields
        self.obj = obj


@cython.final
cdef class Requirement:
    cdef bint on_fields
    cdef int op
    cdef str key
    cdef frozenset values
    cdef str only  # the one value of an IN or NOT_IN with one
    cdef long long bound

    def __init__(self, bint on_fields, str op, str key, values):
        self.on_fields = on_fields
        self.op = OPERATORS[op]
        self.key = key
        self.values = frozenset(values)
        self.only = next(iter(self.values)) if len(self.values) == 1 else None
        self.bound = int(next(iter(self.values))) if self.op >= GREATER else 0

    cdef bint holds(self, Digest digest) except -1:
        cdef PyObject* found = PyDict_GetItem(digest.fields if self.on_fields else digest.labels, self.key)
        cdef str value
        if found == NULL and self.on_fields:
            value = ""  # a field selector compares an absent field as the empty string
        elif found == NULL:
            return self.op == NOT_IN or self.op == NOT_EXISTS
        else:
            value = <str> found
        if self.op == IN:
            return value == self.only if self.only is not None else PySet_Contains(self.values, value)
        if self.op == NOT_IN:
            return value != self.only if self.only is not None else not PySet_Contains(self.values, value)
        if self.op == EXISTS:
            return True
        if self.op == NOT_EXISTS:
            return False
        try:
            number = int(value)
        except ValueError:
            return False
        return number > self.bound if self.op == GREATER else number < self.bound


@cython.final
cdef class Selection:
    """All of `requirements`: (on_fields, operator of OPERATORS, key, values). `digest_of(kv)` makes a digest where `attrs` is None."""

    cdef list requirements
    cdef object digest_of

    def __init__(self, requirements, digest_of):
        self.requirements = [Requirement(*r) for r in requirements]
        self.digest_of = digest_of

    cdef bint holds(self, KeyValue kv) except -1:
        cdef object attrs = kv.attrs
        cdef Digest digest = <Digest> attrs if type(attrs) is Digest else <Digest?> self.digest_of(kv)
        cdef Requirement requirement
        for requirement in self.requirements:
            if not requirement.holds(digest):
                return False
        return True

    def matches(self, KeyValue kv not None):
        """Whether the selection takes this version."""
        return self.holds(kv)

    def matches_digest(self, Digest digest not None):
        cdef Requirement requirement
        for requirement in self.requirements:
            if not requirement.holds(digest):
                return False
        return True

    def filter(self, list kvs not None):
        """Those of `kvs` that it takes, in order."""
        cdef list out = []
        cdef KeyValue kv
        for kv in kvs:
            if self.holds(kv):
                out.append(kv)
        return out
