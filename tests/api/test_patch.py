"""The three patch formats: the RFCs' own examples, strategic merge directives, and recorded answers of upstream."""

import gzip
import json as stdjson
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.api import schema
from fastkube.api.errors import ApiError
from fastkube.api.patch import json, merge, strategic

ORACLE = Path(__file__).parents[2] / "../shared/reference/oracle.jsonl.gz"

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), v, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc~/", max_size=2), values, max_size=4)


def patch_json(obj, *operations):
    return json.apply(obj, orjson.dumps(list(operations)))


@pytest.mark.parametrize(
    "obj, operation, want",
    [
        ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar", "baz"]}, {"op": "add", "path": "/foo/1", "value": "qux"}, {"foo": ["bar", "qux", "baz"]}),
        ({"foo": ["bar"]}, {"op": "add", "path": "/foo/-", "value": ["abc", "def"]}, {"foo": ["bar", ["abc", "def"]]}),
        ({"foo": ["a", "b"]}, {"op": "add", "path": "/foo/-1", "value": "c"}, {"foo": ["a", "b", "c"]}),
        ({"baz": "qux", "foo": "bar"}, {"op": "remove", "path": "/baz"}, {"foo": "bar"}),
        ({"foo": ["bar", "qux", "baz"]}, {"op": "remove", "path": "/foo/1"}, {"foo": ["bar", "baz"]}),
        ({"foo": ["bar", "qux"]}, {"op": "remove", "path": "/foo/-1"}, {"foo": ["bar"]}),
        ({"baz": "qux", "foo": "bar"}, {"op": "replace", "path": "/baz", "value": "boo"}, {"baz": "boo", "foo": "bar"}),
        ({"foo": None}, {"op": "replace", "path": "/foo", "value": "truthy"}, {"foo": "truthy"}),
        (
            {"foo": {"bar": "baz", "w": "f"}, "q": {"c": "g"}},
            {"op": "move", "from": "/foo/w", "path": "/q/t"},
            {"foo": {"bar": "baz"}, "q": {"c": "g", "t": "f"}},
        ),
        ({"foo": ["all", "grass", "cows", "eat"]}, {"op": "move", "from": "/foo/1", "path": "/foo/3"}, {"foo": ["all", "cows", "eat", "grass"]}),
        ({"a": {"b": 1}}, {"op": "copy", "from": "/a", "path": "/c"}, {"a": {"b": 1}, "c": {"b": 1}}),
        ({"/": 9, "~1": 10}, {"op": "test", "path": "/~01", "value": 10}, {"/": 9, "~1": 10}),
        ({"a": 1}, {"op": "test", "path": "/b", "value": None}, {"a": 1}),
        ({"a": 1}, {"op": "add", "path": "", "value": {"b": 2}}, {"b": 2}),
        ({"foo": 1}, {"op": "add", "path": "/", "value": 2}, {"foo": 1, "": 2}),
    ],
)
def test_json_patch(obj, operation, want):
    assert patch_json(obj, operation) == want


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": True},
        {"op": "test", "path": "/a", "value": 1.0},
        {"op": "test", "path": "/missing", "value": "x"},
        {"op": "add", "path": "/x/y", "value": 1},
        {"op": "add", "path": "/l/4", "value": 1},
        {"op": "add", "path": "/l/01x", "value": 1},
        {"op": "add", "path": "/l/99999999999999", "value": 1},
        {"op": "add", "path": "/b"},
        {"op": "add", "path": "no-slash", "value": 1},
        {"op": "add", "path": "", "value": 3},
        {"op": "remove", "path": "/x"},
        {"op": "remove", "path": "/l/-"},
        {"op": "replace", "path": "/x", "value": 1},
        {"op": "move", "path": "/b"},
        {"op": "copy", "from": "/x", "path": "/b"},
        {"op": "add", "path": "/a/b", "value": 1},
        {"op": "spoil", "path": "/a"},
        {"path": "/a"},
    ],
)
def test_json_patch_that_does_not_apply_says_only_422(operation):
    with pytest.raises(ApiError) as e:
        patch_json({"a": 1, "l": [1, 2]}, operation)
    assert (e.value.code, e.value.reason, e.value.message) == (422, "Invalid", "the server rejected our request due to an error in our request")


@pytest.mark.parametrize(
    "body, message",
    [
        (b'{"op":"add"}', "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
        (b'["x"]', "error decoding patch: json: cannot unmarshal string into Go value of type handlers.jsonPatchOp"),
        (b'[{"op":1}]', "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"),
    ],
)
def test_json_patch_that_cannot_be_read(body, message):
    with pytest.raises(ApiError) as e:
        json.apply({}, body)
    assert (e.value.code, e.value.message) == (400, message)


def test_json_patch_is_bounded():
    with pytest.raises(ApiError) as e:
        json.apply({}, orjson.dumps([{"op": "test", "path": "/a"}] * 10_001))
    assert e.value.code == 413
    with pytest.raises(ApiError):
        patch_json({"a": "x" * 2_000_000}, {"op": "copy", "from": "/a", "path": "/b"}, {"op": "copy", "from": "/a", "path": "/c"})


@given(objects, objects)
def test_json_patch_replace_of_all_members_gives_the_other_object(a, b):
    escaped = lambda k: "/" + k.replace("~", "~0").replace("/", "~1")  # noqa: E731
    operations = [{"op": "remove", "path": escaped(k)} for k in a] + [{"op": "add", "path": escaped(k), "value": v} for k, v in b.items()]
    assert json.apply(orjson.loads(orjson.dumps(a)), orjson.dumps(operations)) == b


@pytest.mark.parametrize(
    "target, patch, want",
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target, patch, want):
    assert merge.apply(target, orjson.dumps(patch)) == want


@pytest.mark.parametrize("apply", [merge.apply, lambda o, p: strategic.apply(o, p, schema.of("", "v1", "Pod"))])
@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b"{", b""])
def test_patch_that_is_no_object_is_a_bad_request(apply, body):
    with pytest.raises(ApiError) as e:
        apply({}, body)
    assert e.value.code == 400


def nested(depth, leaf=b"1"):
    return b'{"a":' * depth + leaf + b"}" * depth


@pytest.mark.parametrize(
    "apply",
    [merge.apply, lambda o, p: strategic.apply(o, p, schema.of("", "v1", "Pod")), lambda o, p: json.apply(o, b'[{"op":"test","path":"","value":' + p + b"}]")],
)
def test_nesting_beyond_reason_is_the_clients_mistake(apply):
    with pytest.raises(ApiError) as e:
        apply(orjson.loads(nested(1000)), nested(1000, b"2"))
    assert e.value.code in (400, 422)


def deployment(*containers, **spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {**spec, "template": {"spec": {"containers": list(containers)}}}}


def strategically(obj, patch):
    group, _, version = obj["apiVersion"].rpartition("/")
    return strategic.apply(obj, orjson.dumps(patch), schema.of(group, version, obj["kind"]))


def containers(obj):
    return obj["spec"]["template"]["spec"]["containers"]


def in_pod(**spec):
    return {"spec": {"template": {"spec": spec}}}


A, B = {"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}


def test_strategic_lists_merge_by_key():
    got = strategically(deployment(dict(A), dict(B)), in_pod(containers=[{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]))
    assert containers(got) == [A, {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]


def test_strategic_patch_delete_and_replace_items():
    got = strategically(deployment(dict(A), dict(B)), in_pod(containers=[{"name": "a", "$patch": "delete"}]))
    assert containers(got) == [B]
    got = strategically(deployment(dict(A), dict(B)), in_pod(containers=[{"name": "c", "image": "c"}, {"$patch": "replace"}]))
    assert containers(got) == [{"name": "c", "image": "c"}]


def test_strategic_service_ports_by_port():
    service = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "name": "http"}, {"port": 443}]}}
    assert strategically(service, {"spec": {"ports": [{"port": 443, "name": "https"}]}})["spec"]["ports"] == [
        {"port": 80, "name": "http"},
        {"port": 443, "name": "https"},
    ]


def test_strategic_order_directive():
    order = [{"name": "b"}, {"name": "c"}, {"name": "a"}]
    got = strategically(deployment(dict(A), dict(B)), in_pod(**{"$setElementOrder/containers": order, "containers": [{"name": "c", "image": "c"}]}))
    assert [c["name"] for c in containers(got)] == ["b", "c", "a"]
    got = strategically(deployment(dict(A), dict(B)), in_pod(**{"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}))
    assert containers(got) == [B, A]
    with pytest.raises(ApiError):
        strategically(deployment(dict(A)), in_pod(**{"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "c", "image": "c"}]}))


def test_strategic_scalar_lists():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"finalizers": ["x/a", "x/b"]}}
    assert strategically(pod, {"metadata": {"finalizers": ["x/b", "x/c"]}})["metadata"]["finalizers"] == ["x/a", "x/b", "x/c"]
    assert strategically(pod, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/b", "x/z"]}})["metadata"]["finalizers"] == ["x/a", "x/c"]
    assert strategically(pod, {"metadata": {"$setElementOrder/finalizers": ["x/c", "x/a"]}})["metadata"]["finalizers"] == ["x/c", "x/a"]


def test_strategic_retain_keys():
    obj = deployment(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}})
    assert strategically(obj, {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})["spec"]["strategy"] == {"type": "Recreate"}
    with pytest.raises(ApiError) as e:
        strategically(obj, {"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}})
    assert e.value.code == 400


def test_strategic_maps():
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "2"}}
    assert strategically(obj, {"data": {"a": None, "c": "3"}})["data"] == {"b": "2", "c": "3"}
    assert strategically(obj, {"data": {"$patch": "replace", "z": "1"}})["data"] == {"z": "1"}
    assert strategically(obj, {"data": {"$patch": "delete"}})["data"] == {}


def test_strategic_atomic_list_and_unknown_field_are_replaced():
    obj = deployment({"name": "a", "args": ["1", "2"], "odd": {"k": [1]}})
    got = strategically(obj, in_pod(containers=[{"name": "a", "args": ["3"], "odd": {"k": [2]}}]))
    assert containers(got) == [{"name": "a", "args": ["3"], "odd": {"k": [2]}}]


@pytest.mark.parametrize(
    "patch",
    [
        in_pod(containers=[{"image": "no-name"}]),
        in_pod(containers=["scalar"]),
        in_pod(containers=[["list"]]),
        in_pod(containers=[{"name": "a", "$patch": "spoil"}]),
        {"spec": {"$patch": "spoil"}},
        {"spec": {"$retainKeys": "x"}},
        in_pod(**{"$setElementOrder/containers": "x"}),
        {"metadata": {"$deleteFromPrimitiveList/finalizers": 1}},
    ],
)
def test_strategic_nonsense_is_the_clients_mistake(patch):
    with pytest.raises(ApiError) as e:
        strategically(deployment(dict(A)), patch)
    assert e.value.code in (400, 422)


@given(objects, objects)
def test_strategic_without_schema_is_a_merge_patch(a, b):
    target = orjson.loads(orjson.dumps(a))
    got = strategic.apply(target, orjson.dumps(b), schema.from_openapi({"type": "object", "x-kubernetes-preserve-unknown-fields": True}))
    drop = lambda v: {k: drop(x) for k, x in v.items() if x is not None} if isinstance(v, dict) else [drop(x) for x in v] if isinstance(v, list) else v  # noqa: E731
    assert drop(got) == drop(merge.apply(orjson.loads(orjson.dumps(a)), orjson.dumps(b)))


@pytest.mark.skipif(not ORACLE.exists(), reason="no reference data beside the checkout")
def test_upstreams_recorded_patches():
    """Every patch that upstream accepted on an object we know: its answer holds what our patch says (defaults and identities aside)."""
    checked = 0
    for line in gzip.decompress(ORACLE.read_bytes()).splitlines():
        case = stdjson.loads(line)
        last = None
        for step in case.get("steps", ()):
            if step["method"] == "PATCH" and step["code"] == 200 and last and "apply-patch" not in step["ctype"] and "/status" not in step["path"]:
                got = apply_any(step["ctype"], orjson.loads(orjson.dumps(last)), step["body"])
                want = step["answer"]
                for part in ("spec", "data"):
                    assert holds(want.get(part), got.get(part)), (case["id"], step["body"])
                assert (got["metadata"].get("labels") or {}) == (want["metadata"].get("labels") or {})
                assert got["metadata"].get("finalizers") == want["metadata"].get("finalizers")
                checked += 1
            if isinstance(step["answer"], dict) and step["code"] < 300 and "metadata" in step["answer"] and step["answer"].get("kind") != "Status":
                last = step["answer"]
    assert checked > 10


def apply_any(content_type, obj, patch):
    if "json-patch" in content_type:
        return json.apply(obj, orjson.dumps(patch))
    return strategically(obj, patch) if "strategic" in content_type else merge.apply(obj, orjson.dumps(patch))


def holds(want, got):
    """Everything in `got` stands in `want`, which may hold more (defaults), lists item by item."""
    if isinstance(got, dict):
        return isinstance(want, dict) and all(holds(want.get(k), v) for k, v in got.items())
    if isinstance(got, list):
        return isinstance(want, list) and len(want) == len(got) and all(map(holds, want, got))
    return want == got
