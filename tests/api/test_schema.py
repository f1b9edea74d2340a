"""The schema walker: every definition round-trips, and the kernel does what a plain model of Go's decoding does."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube._ext.schema import Code
from fastkube.api import quantity, schema, times
from fastkube.api.schema import DecodeError

NAMES = sorted(schema._tables()["definitions"])
DEPTH_MAX = 6

_SAMPLES = {
    Code.STRING: "text", Code.INT32: 7, Code.INT64: 2**40, Code.BOOL: True, Code.DOUBLE: 1.5, Code.BYTES: "aGVsbG8=", Code.QUANTITY: "1500m", Code.TIME: "2026-01-02T03:04:05Z",
    Code.MICROTIME: "2026-01-02T03:04:05.000006Z", Code.INTSTR: "25%", Code.ANY: {"any": [1, None]}, Code.SCHEMA_OR: True,
}  # fmt: skip


def full(node, depth=0):
    """A value of the node's type with every field set."""
    if node.code == Code.STRUCT:
        if depth > DEPTH_MAX:
            return None
        out = {k: full(f, depth + 1) for k, f in node.properties.items()}
        out = {k: v for k, v in out.items() if v is not None}
        # A struct that Go always writes stands there even where the sample ends.
        return {**{k: v for k, v in schema.empty(node).items() if k not in out}, **out} if not node.pointer else {**_always(node), **out}
    if node.code == Code.ARRAY:
        item = full(node.items, depth + 1)
        return None if item is None else [item, copy.deepcopy(item)]
    if node.code == Code.MAP:
        item = full(node.additional, depth + 1)
        return None if item is None else {"key": item, "other": copy.deepcopy(item)}
    return copy.deepcopy(_SAMPLES[node.code])


def _always(node):
    return {k: schema.empty(f) for k, f in node.always}


@pytest.mark.parametrize("name", NAMES)
def test_every_definition_round_trips_with_all_fields_set(name):
    node = schema.definition(name)
    obj = full(node)
    seen = copy.deepcopy(obj)
    assert schema.decode(node, seen) == []
    assert seen == obj


def test_every_kind_is_there():
    for key, name in schema._tables()["kinds"].items():
        group, version, kind = key.split("/")
        assert schema.of(group, version, kind).definition == name
    with pytest.raises(KeyError):
        schema.of("", "v1", "Nothing")


def test_what_patches_and_apply_need():
    spec = schema.of("", "v1", "Pod").properties["spec"]
    containers = spec.properties["containers"]
    assert (containers.merge_key, containers.patch_strategy, containers.list_type, containers.map_keys) == ("name", "merge", "map", ("name",))
    ports = containers.items.properties["ports"]
    assert ports.map_keys == ("containerPort", "protocol") and ports.merge_key == "containerPort"
    assert spec.properties["volumes"].patch_strategy == "merge,retainKeys"
    assert spec.properties["nodeSelector"].map_type == "atomic"
    assert spec.properties["tolerations"].list_type == "atomic"
    assert schema.object_meta().properties["finalizers"].list_type == "set"
    assert schema.of("", "v1", "Service").properties["spec"].properties["ports"].items.properties["targetPort"].int_or_string


class Model:
    """What Go's decoding into a type and encoding from it does to a document, said plainly."""

    def __init__(self):
        self.unknown = []
        self.saved = None

    def mismatch(self):
        self.saved = self.saved or True

    def struct(self, node, value, path):
        out = {}
        for key, item in value.items():
            field = node.properties.get(key)
            if field is None:
                self.unknown.append(".".join([*path, key]).replace(".[", "["))
                continue
            if item is None:
                if field.explicit_null:
                    out[key] = None
                continue
            made = self.value(field, item, [*path, key])
            if made is None:
                if field.explicit_null:
                    out[key] = None
            elif not (field.omit_empty and made in ("", 0, [], {}, False) and field.code != Code.STRUCT and field.code != Code.INTSTR):
                out[key] = made
        for key, field in node.always:
            if key not in out and not (key in value and value[key] is not None and self.saved):
                out[key] = schema.empty(field)
        return out

    def value(self, node, value, path):
        match node.code:
            case Code.STRING if isinstance(value, str):
                return value
            case Code.BOOL if isinstance(value, bool):
                return value
            case Code.INT32 | Code.INT64 if type(value) is int and abs(value) < 2**31:
                return value
            case Code.STRUCT if isinstance(value, dict):
                return self.struct(node, value, path)
            case Code.ARRAY if isinstance(value, list):
                return [schema.empty(node.items) if x is None else self.value(node.items, x, [*path, f"[{i}]"]) for i, x in enumerate(value)]
            case Code.MAP if isinstance(value, dict):
                return {k: schema.empty(node.additional) if x is None else self.value(node.additional, x, [*path, k]) for k, x in value.items()}
            case Code.QUANTITY:
                if not isinstance(value, (str, int)) or isinstance(value, bool):
                    raise DecodeError
                return quantity.canonical(str(value))
            case Code.INTSTR:
                if isinstance(value, str) or (type(value) is int):
                    return value
                raise DecodeError
            case Code.TIME:
                if not isinstance(value, str):
                    raise DecodeError
                return times.canonical(value)
        self.mismatch()
        return None


def _values(node, depth=0):
    """Random values of a type, with nulls, wrong types and unknown fields strewn in."""
    odd = st.sampled_from([None, 0, "", "x", [], {}, True, 3])
    if node.code == Code.STRUCT:
        if depth > 3:
            return st.just({})
        fields = {k: _values(f, depth + 1) for k, f in node.properties.items()}
        return st.fixed_dictionaries({}, optional=fields | {"unknownField": odd}) | odd
    if node.code == Code.ARRAY:
        return st.lists(_values(node.items, depth + 1), max_size=2) | odd
    if node.code == Code.MAP:
        return st.dictionaries(st.sampled_from(["a", "b"]), _values(node.additional, depth + 1), max_size=2) | odd
    plain = {
        Code.STRING: st.sampled_from(["", "a", "b"]), Code.BOOL: st.booleans(), Code.INT32: st.integers(-3, 3), Code.INT64: st.integers(-3, 3),
        Code.QUANTITY: st.sampled_from(["1", "500m", "0.5", "1024Mi", 2, ""]), Code.TIME: st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00", "x"]),
        Code.INTSTR: st.sampled_from(["", "5%", 0, 7]),
    }  # fmt: skip
    return st.one_of(plain.get(node.code, st.none()), plain.get(node.code, st.none()), plain.get(node.code, st.none()), odd)


@pytest.mark.parametrize("name", ["core.v1.ContainerPort", "core.v1.ResourceRequirements", "core.v1.Toleration", "core.v1.ServicePort", "apps.v1.DeploymentStrategy", "core.v1.EnvVar", "core.v1.KeyToPath", "meta.v1.LabelSelector", "core.v1.NodeCondition"])  # fmt: skip
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_kernel_is_the_model(name, data):
    node = schema.definition(name)
    value = data.draw(_values(node).filter(lambda v: isinstance(v, dict)))
    model = Model()
    try:
        expected = model.struct(node, copy.deepcopy(value), [])
        refused = model.saved
    except (DecodeError, quantity.QuantityError):
        refused = True
    seen = copy.deepcopy(value)
    if refused:
        with pytest.raises(DecodeError):
            schema.decode(node, seen)
        return
    assert schema.decode(node, seen) == model.unknown
    assert seen == expected


CUSTOM = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "replicas": {"type": "integer", "nullable": True},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"known": {"type": "object"}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "list": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                },
                "pod": {"type": "object", "x-kubernetes-embedded-resource": True},
                "port": {"x-kubernetes-int-or-string": True},
            },
        }
    },
}


def test_custom_schema():
    node = schema.from_openapi(CUSTOM)
    spec = node.properties["spec"]
    assert spec.properties["replicas"].nullable and spec.properties["port"].int_or_string
    assert spec.properties["list"].list_type == "map" and spec.properties["list"].map_keys == ("k",)
    assert spec.properties["list"].raw["type"] == "array"


def test_pruning():
    obj = {
        "apiVersion": "g/v1",
        "spec": {
            "replicas": None,
            "x": 1,
            "free": {"anything": {"b": 1}, "known": {"c": 1}},
            "map": {"one": {"a": "1", "b": 2}},
            "list": [{"k": "v", "z": 0}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}},
            "port": 3,
        },
    }
    pruned = schema.prune(schema.from_openapi(CUSTOM).properties["spec"], obj["spec"])
    assert sorted(pruned) == ["free.known.c", "list[0].z", "map.one.b", "pod.spec", "x"]
    assert obj["spec"] == {
        "replicas": None,
        "free": {"anything": {"b": 1}, "known": {}},
        "map": {"one": {"a": "1"}},
        "list": [{"k": "v"}],
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}},
        "port": 3,
    }
