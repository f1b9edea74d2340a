cdef class Node:
    cdef public int code
    cdef public str type, go, format, list_type, map_type, merge_key, patch_strategy, embedded, definition
    cdef public tuple map_keys, always
    cdef public Node items, additional
    cdef public bint pointer, omit_empty, explicit_null, nullable, int_or_string, preserve_unknown, embedded_resource
    cdef public object raw, extra
    cdef public dict _properties
    cdef public object _loader
    cdef _load(self)


cdef class Walker:
    cdef object quantity, time, microtime, bytes_
    cdef dict quantities
    cpdef list walk(self, Node node, dict obj, bint strict=*)
