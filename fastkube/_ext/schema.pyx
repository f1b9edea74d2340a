"""The schema walker: one pass over a decoded object that type-checks it, finds unknown fields, drops what Go's decoding drops
(nulls, zero values that `omitempty` leaves out) and puts quantities, times and bytes into the form upstream answers with.

It does to a dict what upstream's decode into a typed struct and encode from it does to a document. `fastkube.api.schema` builds the nodes
and says what the fields mean; this module only walks them.
"""

from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_SetItem, PyDict_DelItem, PyDict_Size
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_GET_LENGTH
from libc.string cimport memchr

cpdef enum Code:
    ANY = 0
    STRING = 1
    INT32 = 2
    INT64 = 3
    BOOL = 4
    DOUBLE = 5
    BYTES = 6
    STRUCT = 7
    ARRAY = 8
    MAP = 9
    QUANTITY = 10
    TIME = 11
    MICROTIME = 12
    INTSTR = 13
    SCHEMA_OR = 14  # JSONSchemaPropsOrBool, OrArray, OrStringArray: walked as a schema where it is one


class DecodeError(ValueError):
    """The object does not fit its type; the text is upstream's, without the object's kind before it."""


cdef class Node:
    """One place in a type: what may stand there and how it is merged. Public meaning of the attributes: `fastkube.api.schema`."""

    def __init__(self, Code code, str type="", str go=""):
        self.code = code
        self.type = type
        self.go = go
        self.extra = None
        self._properties = None
        self._loader = None
        self.items = None
        self.additional = None
        self.format = ""
        self.list_type = ""
        self.map_type = ""
        self.map_keys = ()
        self.merge_key = ""
        self.patch_strategy = ""
        self.embedded = ""
        self.definition = ""
        self.raw = None
        self.always = ()

    @property
    def properties(self):
        if self._properties is None and self._loader is not None:
            self._load()
        return self._properties

    cdef _load(self):
        self._properties, self.always = self._loader()

    def __repr__(self):
        return f"<Node {self.go or self.type}>"


cdef struct Frame:
    Frame* up
    PyObject* key  # a str for a field or map key, NULL for an index
    Py_ssize_t index
    PyObject* node  # of the field (to know what Go calls it)
    PyObject* owner  # the struct's node, NULL for map keys and indexes


cdef class Walk:
    """What one walk carries with it."""

    cdef list unknown  # paths of unknown fields, None when nobody asks
    cdef str saved  # the first type error; later custom decoders may still overrule it
    cdef object quantity, time, microtime, bytes_
    cdef dict quantities


cdef str path_of(Frame* frame, object last):
    """`spec.containers[0].name`, as upstream's strict errors name it."""
    cdef list parts = []
    if last is not None:
        parts.append(last)
    while frame != NULL:
        if frame.key != NULL:
            if parts and not (<str>parts[len(parts) - 1]).startswith("["):
                parts.append(".")
            parts.append(<str>frame.key)
        else:
            if parts and not (<str>parts[len(parts) - 1]).startswith("["):
                parts.append(".")
            parts.append(f"[{frame.index}]")
        frame = frame.up
    parts.reverse()
    return "".join(parts)


cdef str where_of(Frame* frame):
    """`Container.spec.containers.name`: the innermost struct and the field names on the way, as Go's json names a place."""
    cdef list parts = []
    cdef str struct = ""
    cdef Node node
    while frame != NULL:
        if frame.owner != NULL:
            node = <Node>frame.node
            parts.append(<str>frame.key)
            if node.embedded:
                parts.append(node.embedded)
            if not struct:
                struct = (<Node>frame.owner).go.rpartition(".")[2]
        frame = frame.up
    parts.reverse()
    if not struct:
        return ""
    return struct + "." + ".".join(parts)


cdef str kind_of(object value):
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "array"


cdef str mismatch_text(Frame* frame, str what, str go):
    cdef str where = where_of(frame)
    if where:
        return f"json: cannot unmarshal {what} into Go struct field {where} of type {go}"
    return f"json: cannot unmarshal {what} into Go value of type {go}"


cdef int mismatch(Walk walk, Frame* frame, str what, str go) except -1:
    """Go remembers the first mismatch and goes on."""
    if walk.saved is None:
        walk.saved = mismatch_text(frame, what, go)
    return 0


cdef int walk_struct(Walk walk, Node node, dict value, Frame* up) except -1:
    cdef dict fields = node._properties
    cdef PyObject* key
    cdef PyObject* item
    cdef PyObject* found
    cdef Py_ssize_t pos = 0
    cdef Frame frame
    cdef list dead = None
    cdef list changed = None
    cdef object result
    cdef Node field
    if fields is None:
        if node._loader is not None:
            node._load()
        fields = node._properties
        if fields is None:
            fields = {}
    frame.up = up
    frame.index = 0
    frame.owner = <PyObject*>node
    while PyDict_Next(value, &pos, &key, &item):
        found = PyDict_GetItem(fields, <object>key)
        if found == NULL:
            if walk.unknown is not None:
                walk.unknown.append(path_of(up, <object>key))
            if dead is None:
                dead = []
            dead.append(<object>key)
            continue
        field = <Node>found
        if <object>item is None:
            if not field.explicit_null:
                if dead is None:
                    dead = []
                dead.append(<object>key)
            continue
        frame.key = key
        frame.node = found
        result = walk_value(walk, field, <object>item, &frame)
        if <PyObject*>result == item:
            if field.omit_empty and is_zero(field, <object>item):
                if dead is None:
                    dead = []
                dead.append(<object>key)
        elif result is None and not field.explicit_null:
            if dead is None:
                dead = []
            dead.append(<object>key)
        else:
            if changed is None:
                changed = []
            changed.append((<object>key, result))
    if dead is not None:
        for k in dead:
            PyDict_DelItem(value, k)
    if changed is not None:
        for k, v in changed:
            PyDict_SetItem(value, k, v)
    if node.always:
        for k, f in <tuple>node.always:
            if k not in value:
                PyDict_SetItem(value, k, zero_of(<Node>f))
    return 0


cdef bint is_zero(Node field, object value) except -1:
    """Whether Go's omitempty leaves `value` out (never called for pointers and structs)."""
    cdef int code = field.code
    if code == STRING or code == BYTES:
        return isinstance(value, str) and PyUnicode_GET_LENGTH(value) == 0
    if code == BOOL:
        return value is False
    if code == INT32 or code == INT64 or code == DOUBLE:
        return value == 0
    if code == ARRAY:
        return PyList_GET_SIZE(value) == 0
    if code == MAP:
        return PyDict_Size(value) == 0
    return False


cdef object zero_of(Node field):
    """What Go writes for a field that was not given and has no omitempty."""
    cdef int code = field.code
    cdef dict fresh
    if field.pointer or field.explicit_null:
        return None
    if code == STRUCT:
        fresh = {}
        if field._properties is None and field._loader is not None:
            field._load()
        for k, f in <tuple>field.always:
            fresh[k] = zero_of(<Node>f)
        return fresh
    if code == STRING:
        return ""
    if code == BOOL:
        return False
    if code == INT32 or code == INT64 or code == DOUBLE or code == INTSTR:
        return 0
    if code == QUANTITY:
        return "0"
    return None


cdef object element_zero(Node node):
    """A null among the elements of a list or map."""
    if node.pointer or node.code == ANY or node.code == ARRAY or node.code == MAP or node.code == BYTES:
        return None
    return zero_of(node)


cdef object walk_value(Walk walk, Node node, object value, Frame* up):
    """-> `value` itself where it stands as it is, another object to put in its place, or None to drop it."""
    cdef int code = node.code
    cdef Py_ssize_t i, n
    cdef Frame frame
    cdef object item, result
    cdef PyObject* key
    cdef PyObject* held
    cdef Py_ssize_t pos
    cdef list changed
    if code == STRING:
        if isinstance(value, str):
            return value
    elif code == STRUCT:
        if isinstance(value, dict):
            walk_struct(walk, node, <dict>value, up)
            return value
    elif code == INT32 or code == INT64:
        if isinstance(value, int) and not isinstance(value, bool):
            if code == INT32:
                if -2147483648 <= value <= 2147483647:
                    return value
            elif -9223372036854775808 <= value <= 9223372036854775807:
                return value
            mismatch(walk, up, f"number {value}", node.go)
            return None
        if isinstance(value, float):
            mismatch(walk, up, f"number {value!r}", node.go)
            return None
    elif code == BOOL:
        if isinstance(value, bool):
            return value
    elif code == ARRAY:
        if isinstance(value, list):
            n = PyList_GET_SIZE(value)
            frame.up = up
            frame.key = NULL
            frame.owner = NULL
            frame.node = NULL
            for i in range(n):
                item = <object>PyList_GET_ITEM(value, i)
                frame.index = i
                if item is None:
                    result = element_zero(node.items)
                else:
                    result = walk_value(walk, node.items, item, &frame)
                if result is not item:
                    (<list>value)[i] = result
            return value
    elif code == MAP:
        if isinstance(value, dict):
            pos = 0
            changed = None
            frame.up = up
            frame.index = 0
            frame.owner = NULL
            frame.node = NULL
            while PyDict_Next(value, &pos, &key, &held):
                item = <object>held
                frame.key = key
                if item is None:
                    result = element_zero(node.additional)
                else:
                    result = walk_value(walk, node.additional, item, &frame)
                if result is not item:
                    if changed is None:
                        changed = []
                    changed.append((<object>key, result))
            if changed is not None:
                for k, v in changed:
                    (<dict>value)[k] = v
            return value
    elif code == ANY:
        return value
    elif code == QUANTITY:
        return walk_quantity(walk, value)
    elif code == INTSTR:
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            if -2147483648 <= value <= 2147483647:
                return value
            raise DecodeError(mismatch_text(up, f"number {value}", "int32"))
        raise DecodeError(mismatch_text(up, f"number {number_text(value)}" if isinstance(value, float) else kind_of(value), "int32"))
    elif code == TIME or code == MICROTIME:
        if isinstance(value, str):
            return walk.time(value) if code == TIME else walk.microtime(value)
        raise DecodeError(mismatch_text(up, kind_of(value), "string"))
    elif code == BYTES:
        if isinstance(value, str):
            try:
                return walk.bytes_(value)
            except ValueError as e:
                if walk.saved is None:
                    walk.saved = str(e)
                return None
    elif code == DOUBLE:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    elif code == SCHEMA_OR:
        if isinstance(value, dict):
            held_unknown = walk.unknown
            walk.unknown = None
            try:
                walk_struct(walk, node.additional, <dict>value, up)
            finally:
                walk.unknown = held_unknown
        elif isinstance(value, list):
            held_unknown = walk.unknown
            walk.unknown = None
            try:
                for item in <list>value:
                    if isinstance(item, dict):
                        walk_struct(walk, node.additional, <dict>item, up)
            finally:
                walk.unknown = held_unknown
        return value
    mismatch(walk, up, kind_of(value), node.go)
    return None


cdef object walk_quantity(Walk walk, object value):
    cdef PyObject* known
    if isinstance(value, str):
        known = PyDict_GetItem(walk.quantities, value)
        if known != NULL:
            return <object>known
        return walk.quantity(value)
    if isinstance(value, bool):
        return walk.quantity("true" if value else "false")
    if isinstance(value, (int, float)):
        return walk.quantity(number_text(value))
    return walk.quantity("{" if isinstance(value, dict) else "[")


cdef str number_text(object value):
    """A number as it stood in the document (a float's shortest form, for want of the text)."""
    cdef str text = repr(value)
    if isinstance(value, float) and text.endswith(".0"):
        return text[:-2] if abs(value) < 1e15 else text
    return text


cdef class Walker:
    """Walks objects; holds the decoders of the special types, and the cache of canonical quantities."""

    def __init__(self, quantity, dict quantities, time, microtime, bytes_):
        self.quantity = quantity
        self.quantities = quantities
        self.time = time
        self.microtime = microtime
        self.bytes_ = bytes_

    cpdef list walk(self, Node node, dict obj, bint strict=True):
        """Bring `obj` into its type's form, in place -> paths of unknown fields, in document order (always dropped; listed when `strict`)."""
        cdef Walk walk = Walk()
        walk.unknown = [] if strict else None
        walk.saved = None
        walk.quantity = self.quantity
        walk.quantities = self.quantities
        walk.time = self.time
        walk.microtime = self.microtime
        walk.bytes_ = self.bytes_
        walk_struct(walk, node, obj, NULL)
        if walk.saved is not None:
            raise DecodeError(walk.saved)
        return walk.unknown if strict else []

    def zero(self, Node node):
        """What Go writes for a place of this type that nobody has set."""
        return zero_of(node)


cdef int prune_value(list unknown, Node node, object value, Frame* up) except -1:
    cdef dict fields
    cdef PyObject* key
    cdef PyObject* item
    cdef PyObject* found
    cdef Py_ssize_t pos = 0, i
    cdef Frame frame
    cdef list dead = None
    frame.up = up
    frame.index = 0
    frame.owner = NULL
    frame.node = NULL
    if isinstance(value, dict):
        fields = node.properties
        while PyDict_Next(value, &pos, &key, &item):
            found = PyDict_GetItem(fields, <object>key) if fields is not None else NULL
            frame.key = key
            if found != NULL:
                prune_value(unknown, <Node>found, <object>item, &frame)
            elif node.additional is not None:
                prune_value(unknown, node.additional, <object>item, &frame)
            elif node.embedded_resource and <object>key in ("apiVersion", "kind", "metadata"):
                pass
            elif not node.preserve_unknown:
                unknown.append(path_of(up, <object>key))
                if dead is None:
                    dead = []
                dead.append(<object>key)
        if dead is not None:
            for k in dead:
                del (<dict>value)[k]
    elif isinstance(value, list) and node.items is not None:
        frame.key = NULL
        for i in range(PyList_GET_SIZE(value)):
            frame.index = i
            prune_value(unknown, node.items, <object>PyList_GET_ITEM(value, i), &frame)
    return 0


def prune(Node node not None, value):
    """Drop the fields of `value` that its structural schema does not name, in place -> their paths, in document order."""
    cdef list unknown = []
    prune_value(unknown, node, value, NULL)
    return unknown


def members(bytes text):
    """How many members the objects of a JSON document have: more than its decoded form holds means that some stand twice."""
    cdef const char* at = text
    cdef const char* end = at + len(text)
    cdef const char* mark
    cdef Py_ssize_t count = 0
    with nogil:
        while True:
            at = <const char*>memchr(at, 34, end - at)
            if at == NULL:
                break
            while True:  # to the closing quote: one with an even number of backslashes before it
                at = <const char*>memchr(at + 1, 34, end - at - 1)
                if at == NULL:
                    break
                mark = at - 1
                while mark[0] == 92:
                    mark -= 1
                if (at - mark) & 1:
                    break
            if at == NULL:
                break
            at += 1
            while at < end and (at[0] == 32 or at[0] == 10 or at[0] == 13 or at[0] == 9):
                at += 1
            if at < end and at[0] == 58:
                count += 1
    return count


cdef Py_ssize_t count_members(object value) except -1:
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t pos = 0
    cdef PyObject* item
    if isinstance(value, dict):
        n = PyDict_Size(value)
        while PyDict_Next(value, &pos, NULL, &item):
            if isinstance(<object>item, dict) or isinstance(<object>item, list):
                n += count_members(<object>item)
    else:
        for pos in range(PyList_GET_SIZE(value)):
            item = <PyObject*>PyList_GET_ITEM(value, pos)
            if isinstance(<object>item, dict) or isinstance(<object>item, list):
                n += count_members(<object>item)
    return n


def held(value):
    """How many members the objects of a decoded document have."""
    if isinstance(value, (dict, list)):
        return count_members(value)
    return 0
