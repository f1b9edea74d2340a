"""Matching of label selectors: a compiled list of requirements held against a labels dict, without Python frames."""

from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject


cdef struct Term:
    PyObject* key
    PyObject* values
    PyObject* single  # the one value of an equality, NULL otherwise
    int operator


cdef enum:
    IN = 0
    NOT_IN = 1
    EXISTS = 2
    NOT_EXISTS = 3
    GREATER = 4
    LESS = 5
    TERMS_MAX = 64  # kept in place; a longer selector is legal and goes through the spare list


cdef dict OPERATORS = {"in": IN, "notin": NOT_IN, "exists": EXISTS, "!": NOT_EXISTS, "gt": GREATER, "lt": LESS}


cdef class Match:
    """`Match([(key, operator, frozenset of values)], nothing)`: all terms hold; `nothing` matches no object."""

    cdef Term terms[TERMS_MAX]
    cdef int count
    cdef bint nothing
    cdef list kept  # owns what the terms point at
    cdef Match rest

    def __init__(self, list requirements, bint nothing=False):
        cdef int i
        self.nothing = nothing
        self.kept = []
        self.count = min(len(requirements), TERMS_MAX)
        self.rest = Match(requirements[TERMS_MAX:]) if len(requirements) > TERMS_MAX else None
        for i in range(self.count):
            key, operator, values = requirements[i]
            if operator in ("gt", "lt"):
                values = int(next(iter(values)))
            self.kept.append((key, values))
            self.terms[i].key = <PyObject*>key
            self.terms[i].values = <PyObject*>values
            self.terms[i].operator = OPERATORS[operator]
            self.terms[i].single = NULL
            if operator in ("in", "notin") and len(values) == 1:
                one = next(iter(values))
                self.kept.append(one)
                self.terms[i].single = <PyObject*>one

    cpdef bint matches(self, labels) except -1:
        """Whether an object with these labels (a dict or None) is selected."""
        cdef int i
        cdef Term* term
        cdef PyObject* value
        cdef bint held
        if self.nothing:
            return False
        for i in range(self.count):
            term = &self.terms[i]
            value = PyDict_GetItem(labels, <object>term.key) if labels is not None else NULL
            if term.operator == EXISTS:
                held = value != NULL
            elif term.operator == NOT_EXISTS:
                held = value == NULL
            elif term.operator >= GREATER:
                held = value != NULL and compare(<object>value, <object>term.values, term.operator)
            else:
                if value == NULL:
                    held = False
                elif term.single != NULL:
                    held = value == term.single or <str>value == <str>term.single
                else:
                    held = <object>value in <frozenset>term.values
                if term.operator == NOT_IN:
                    held = not held
            if not held:
                return False
        return self.rest is None or self.rest.matches(labels)


cdef bint compare(object text, object bound, int operator) except -1:
    try:
        number = int(text)
    except ValueError:
        return False
    return number > bound if operator == GREATER else number < bound
