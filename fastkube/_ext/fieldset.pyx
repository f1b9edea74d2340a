"""Sets of fields (structured-merge-diff's FieldsV1) from objects: what an object holds, and what differs between two.

A set is the nested dict that FieldsV1 is in JSON: `{"f:spec": {"f:ports": {"k:{\\"port\\":80,\\"protocol\\":\\"TCP\\"}": {".": {}, "f:port": {}}}}}`.
A path is a member when its dict is empty or holds "."; the dict's other keys are its children. Sets are values: nothing here changes one in
place, results share parts with arguments. Path elements: `f:NAME` field or map key, `k:{...}` item of a list map (keys sorted), `v:VALUE` item of
a set. Every write of the API server runs `compare`; hence the kernel. `fastkube.api.managedfields` says what the sets are for.
"""

from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.object cimport PyObject, PyObject_RichCompareBool, Py_EQ

from fastkube._ext.schema cimport Node

import orjson

cdef dict MEMBER = {}
cdef dict field_names = {}  # of structs' fields only, so as many as the schemas name
cdef int SORTED = orjson.OPT_SORT_KEYS
cdef object dumps = orjson.dumps

# Keys of list maps that upstream's schema gives a default.
cdef dict KEY_DEFAULTS = {"protocol": "TCP"}

# What every write sets and nobody owns.
cdef frozenset ROOT_UNOWNED = frozenset(["apiVersion", "kind"])
cdef frozenset METADATA_UNOWNED = frozenset(
    ["name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"]
)


cdef enum Form:
    LEAF = 0
    FIELDS = 1
    KEYED = 2
    SET = 3


cdef Form form_of(Node node, object value):
    """How `value` is owned: as a whole, by field, by item with a key, or by value."""
    if isinstance(value, dict):
        if node is None:
            return FIELDS
        if node.map_type == "atomic":
            return LEAF
        if node.properties is not None or node.additional is not None or (node.preserve_unknown and node.raw is not None):
            return FIELDS  # what a custom schema leaves open is owned field by field, as its values happen to be
        return LEAF
    if isinstance(value, list) and node is not None:
        if node.list_type == "map":
            return KEYED
        if node.list_type == "set":
            return SET
    return LEAF


def form(Node node, value):
    """How a value is owned and merged: "leaf", "fields" (by name), "keyed" (items by key) or "set" (items by value)."""
    return ("leaf", "fields", "keyed", "set")[<int>form_of(node, value)]


cdef inline str field_name(object key, bint named):
    cdef PyObject* known
    if named:
        known = PyDict_GetItem(field_names, key)
        if known != NULL:
            return <str>known
        name = "f:" + <str>key
        field_names[key] = name
        return name
    return "f:" + <str>key


cdef object key_default(Node node, str key):
    cdef Node field
    if node.items.raw is None:
        return KEY_DEFAULTS.get(key)
    field = (node.items.properties or {}).get(key)
    return None if field is None else field.raw.get("default")


cdef str item_name(Node node, object item):
    """The path element of an item of a list map or set; ValueError when it has none."""
    cdef dict keys
    cdef object value
    if node.list_type == "set":
        return "v:" + (<bytes>dumps(item, None, SORTED)).decode()
    if not isinstance(item, dict):
        raise ValueError("associative list with keys may not have non-map elements")
    keys = {}
    for key in node.map_keys:
        value = (<dict>item).get(key)
        if value is None:
            value = key_default(node, key)
            if value is None:
                continue
        keys[key] = value
    if not keys:
        raise ValueError(f"associative list with keys has an element that omits all key fields {list(node.map_keys)}")
    return "k:" + (<bytes>dumps(keys, None, SORTED)).decode()


def printed(str name):
    """A path element as error messages show it: `.replicas`, `[name="c",protocol="TCP"]`, `[="v"]`."""
    cdef str rest = name[2:]
    if name.startswith("f:"):
        return "." + rest
    if name.startswith("k:"):
        return "[" + ",".join([f"{k}={dumps(v).decode()}" for k, v in orjson.loads(rest).items()]) + "]"
    return f"[={rest}]"


def element(Node node not None, item):
    """The path element of `item` in the list map or set that `node` describes; ValueError when its keys are missing."""
    return item_name(node, item)


cdef inline Node child_of(Node node, dict fields, object key):
    cdef PyObject* found
    if fields is not None:
        found = PyDict_GetItem(fields, key)
        if found != NULL:
            return <Node>found
    return None if node is None else node.additional


# What an object holds: the set of an applied configuration.

cdef dict fields_of(Node node, dict value, frozenset skip, bint strict):
    cdef dict out = {}
    cdef dict fields = None if node is None else node.properties
    cdef dict inner
    cdef PyObject* key
    cdef PyObject* held
    cdef Py_ssize_t pos = 0
    cdef bint named
    cdef Form form
    cdef Node child
    while PyDict_Next(value, &pos, &key, &held):
        if skip is not None and <object>key in skip:
            continue
        named = fields is not None and PyDict_GetItem(fields, <object>key) != NULL
        item = <object>held
        child = child_of(node, fields, <object>key)
        if item is None or (isinstance(item, dict) and PyDict_Size(item) == 0):
            out[field_name(<object>key, named)] = MEMBER
            continue
        form = form_of(child, item)
        if form == LEAF:
            inner = MEMBER
        else:
            inner = fields_of(child, <dict>item, None, strict) if form == FIELDS else items_of(child, <list>item, strict)
            if not inner:
                if named:
                    continue
            elif not named:
                inner["."] = MEMBER
        out[field_name(<object>key, named)] = inner
    return out


cdef dict items_of(Node node, list value, bint strict):
    cdef dict out = {}
    cdef dict inner
    for item in value:
        name = item_name(node, item)
        if strict and name in out:
            raise ValueError(f"duplicate entries for key {printed(name)}")
        inner = MEMBER
        if isinstance(item, dict) and node.list_type == "map" and form_of(node.items, item) == FIELDS:
            inner = fields_of(node.items, <dict>item, None, strict)
            if inner:
                inner["."] = MEMBER
        out[name] = inner
    return out


def of(dict obj not None, Node node, bint strict=True, bint owned=True):
    """The set of fields that `obj`, a configuration to apply, holds. `owned`: without those that nobody owns (apiVersion, names, uid ...).

    ValueError for a list map whose items lack their keys or, when `strict`, share them.
    """
    cdef dict out
    cdef dict fields
    if not owned:
        return fields_of(node, obj, None, strict)
    out = fields_of(node, obj, ROOT_UNOWNED | {"metadata"}, strict)
    fields = None if node is None else node.properties
    meta = obj.get("metadata")
    if isinstance(meta, dict):
        inner = fields_of(child_of(node, fields, "metadata"), <dict>meta, METADATA_UNOWNED, strict)
        if inner:
            out["f:metadata"] = inner
    return out


# What differs between two objects.



cdef int compare_value(Node node, PyObject* old, PyObject* new, str name, dict changed, dict removed) except -1:
    """Enter what differs under `name` into its parent's sets. NULL: the field is absent (None: there, and null)."""
    cdef Form form
    cdef dict inner_changed, inner_removed
    cdef object value
    if old != NULL and new != NULL:
        if old == new or PyObject_RichCompareBool(<object>old, <object>new, Py_EQ):
            return 0
    value = <object>new if new != NULL and <object>new is not None else (<object>old if old != NULL else None)
    form = form_of(node, value)
    if form != LEAF and empty(old) and empty(new):
        form = LEAF
    if form == FIELDS and not ((old == NULL or <object>old is None or isinstance(<object>old, dict))):
        form = LEAF
    if (form == KEYED or form == SET) and not ((old == NULL or <object>old is None or isinstance(<object>old, list))):
        form = LEAF
    if form == LEAF:
        if new == NULL:
            PyDict_SetItem(removed, name, MEMBER)
        else:
            PyDict_SetItem(changed, name, MEMBER)
        return 0
    inner_changed = {}
    inner_removed = {}
    if form == FIELDS:
        compare_fields(
            node,
            <dict>old if old != NULL and <object>old is not None else {},
            <dict>new if new != NULL and <object>new is not None else {},
            inner_changed, inner_removed, None,
        )
    else:
        compare_items(
            node,
            <list>old if old != NULL and <object>old is not None else [],
            <list>new if new != NULL and <object>new is not None else [],
            inner_changed, inner_removed,
        )
    if old == NULL:
        PyDict_SetItem(inner_changed, ".", MEMBER)
    elif new == NULL:
        PyDict_SetItem(inner_removed, ".", MEMBER)
    if inner_changed:
        PyDict_SetItem(changed, name, inner_changed)
    if inner_removed:
        PyDict_SetItem(removed, name, inner_removed)
    return 0


cdef inline bint empty(PyObject* value):
    if value == NULL or <object>value is None:
        return True
    if isinstance(<object>value, dict):
        return PyDict_Size(<object>value) == 0
    return isinstance(<object>value, list) and len(<list>value) == 0


cdef int compare_fields(Node node, dict old, dict new, dict changed, dict removed, frozenset skip) except -1:
    cdef dict fields = None if node is None else node.properties
    cdef PyObject* key
    cdef PyObject* item
    cdef PyObject* before
    cdef Py_ssize_t pos = 0
    cdef bint named
    while PyDict_Next(new, &pos, &key, &item):
        if skip is not None and <object>key in skip:
            continue
        before = PyDict_GetItem(old, <object>key)
        if before == item:
            continue
        named = fields is not None and PyDict_GetItem(fields, <object>key) != NULL
        compare_value(child_of(node, fields, <object>key), before, item, field_name(<object>key, named), changed, removed)
    pos = 0
    while PyDict_Next(old, &pos, &key, &item):
        if PyDict_GetItem(new, <object>key) == NULL:
            if skip is not None and <object>key in skip:
                continue
            named = fields is not None and PyDict_GetItem(fields, <object>key) != NULL
            compare_value(child_of(node, fields, <object>key), item, NULL, field_name(<object>key, named), changed, removed)
    return 0


cdef dict index_items(Node node, list value):
    """Path element -> item; items that share one, which a stored object may hold, as the list of them."""
    cdef dict out = {}
    for item in value:
        try:
            name = item_name(node, item)
        except ValueError:
            continue
        if name in out:
            before = out[name]
            out[name] = [*before, item] if isinstance(before, list) else [before, item]
        else:
            out[name] = item
    return out


cdef int compare_items(Node node, list old, list new, dict changed, dict removed) except -1:
    cdef dict before = index_items(node, old)
    cdef dict after = index_items(node, new)
    cdef PyObject* name
    cdef PyObject* item
    cdef Py_ssize_t pos = 0
    cdef Node items = node.items if node.list_type == "map" else None
    while PyDict_Next(after, &pos, &name, &item):
        if node.list_type == "set":
            if PyDict_GetItem(before, <object>name) == NULL:
                changed[<object>name] = MEMBER
        else:
            compare_value(items, PyDict_GetItem(before, <object>name), item, <str>name, changed, removed)
    pos = 0
    while PyDict_Next(before, &pos, &name, &item):
        if PyDict_GetItem(after, <object>name) == NULL:
            if node.list_type == "set":
                removed[<object>name] = MEMBER
            else:
                compare_value(items, item, NULL, <str>name, changed, removed)
    return 0


def compare(dict old not None, dict new not None, Node node):
    """-> (fields that `new` adds or changes, fields that it no longer has), of two objects of one kind; unowned ones left out."""
    cdef dict changed = {}
    cdef dict removed = {}
    cdef dict fields = None if node is None else node.properties
    cdef dict inner_changed = {}
    cdef dict inner_removed = {}
    compare_fields(node, old, new, changed, removed, ROOT_UNOWNED | {"metadata"})
    old_meta = old.get("metadata")
    new_meta = new.get("metadata")
    compare_fields(
        child_of(node, fields, "metadata"),
        <dict>old_meta if isinstance(old_meta, dict) else {}, <dict>new_meta if isinstance(new_meta, dict) else {},
        inner_changed, inner_removed, METADATA_UNOWNED,
    )
    if inner_changed:
        changed["f:metadata"] = inner_changed
    if inner_removed:
        removed["f:metadata"] = inner_removed
    return changed, removed


# The algebra.

cdef inline bint is_member(dict entry):
    return PyDict_Size(entry) == 0 or PyDict_GetItem(entry, ".") != NULL


def union(dict a not None, dict b not None):
    """Members of either."""
    cdef PyObject* key
    cdef PyObject* theirs
    cdef PyObject* ours
    cdef Py_ssize_t pos = 0
    cdef dict out, merged
    if not a:
        return b
    if not b:
        return a
    out = dict(a)
    while PyDict_Next(b, &pos, &key, &theirs):
        ours = PyDict_GetItem(out, <object>key)
        if ours == NULL:
            out[<object>key] = <object>theirs
        elif ours != theirs and <object>key != ".":
            merged = union(<dict>ours, <dict>theirs)
            if PyDict_GetItem(merged, ".") == NULL and PyDict_Size(merged) and (is_member(<dict>ours) or is_member(<dict>theirs)):
                merged = dict(merged)
                merged["."] = MEMBER
            out[<object>key] = merged
    return out


def difference(dict a not None, dict b not None):
    """Members of `a` that are none of `b`."""
    return without(a, b, False)


def recursive_difference(dict a not None, dict b not None):
    """Members of `a` that neither are members of `b` nor lie below one."""
    return without(a, b, True)


cdef dict without(dict a, dict b, bint recursive):
    cdef PyObject* key
    cdef PyObject* ours
    cdef PyObject* theirs
    cdef Py_ssize_t pos = 0
    cdef dict out, inner
    cdef bint member
    if not a or not b:
        return a
    out = {}
    while PyDict_Next(a, &pos, &key, &ours):
        if <object>key == ".":
            continue
        theirs = PyDict_GetItem(b, <object>key)
        if theirs == NULL:
            out[<object>key] = <object>ours
            continue
        if recursive and is_member(<dict>theirs):
            continue
        member = is_member(<dict>ours) and not is_member(<dict>theirs)
        inner = children(without(<dict>ours, <dict>theirs, recursive))
        if inner:
            if member:
                inner["."] = MEMBER
            out[<object>key] = inner
        elif member:
            out[<object>key] = MEMBER
    return out


cdef inline dict children(dict entry):
    """A copy without its own membership."""
    cdef dict out = dict(entry)
    out.pop(".", None)
    return out


def intersection(dict a not None, dict b not None):
    """Members of both."""
    cdef PyObject* key
    cdef PyObject* ours
    cdef PyObject* theirs
    cdef Py_ssize_t pos = 0
    cdef dict out = {}
    cdef dict inner
    while PyDict_Next(a, &pos, &key, &ours):
        theirs = PyDict_GetItem(b, <object>key)
        if theirs == NULL or <object>key == ".":
            continue
        inner = intersection(<dict>ours, <dict>theirs)
        if is_member(<dict>ours) and is_member(<dict>theirs):
            if inner:
                inner["."] = MEMBER
            out[<object>key] = inner
        elif inner:
            out[<object>key] = inner
    return out
