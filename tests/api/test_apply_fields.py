"""FieldsV1 sets: the kernel's algebra against sets of paths, tracking of ordinary writes, and upstream's recorded managedFields."""

import copy
import gzip
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext import fieldset
from fastkube.api import managedfields, schema

ORACLE = Path(__file__).parents[2] / "../shared/reference/oracle.jsonl.gz"
POD = schema.of("", "v1", "Pod")
DEPLOYMENT = schema.of("apps", "v1", "Deployment")
T1, T2, T3 = "2026-11-20T00:00:01Z", "2026-11-20T00:00:02Z", "2026-11-20T00:00:03Z"

names = st.sampled_from(["f:a", "f:b", 'k:{"name":"c"}', 'v:"d"'])
path_sets = st.sets(st.lists(names, min_size=1, max_size=3).map(tuple), max_size=8)


def build(paths):
    out = {}
    for path in paths:
        node = out
        for name in path:
            node = node.setdefault(name, {})
        node["."] = {}
    return thin(out)


def thin(node):
    """A member without children is written {}."""
    inner = {k: thin(v) for k, v in node.items() if k != "."}
    return inner if not inner or "." not in node else {".": {}, **inner}


def members(fields, prefix=()):
    out = set()
    for name, entry in fields.items():
        if name != ".":
            if not entry or "." in entry:
                out.add((*prefix, name))
            out |= members(entry, (*prefix, name))
    return out


@given(path_sets, path_sets)
def test_algebra_is_that_of_sets_of_paths(a, b):
    left, right = build(a), build(b)
    kept = copy.deepcopy((left, right))
    assert members(left) == a
    assert fieldset.union(left, right) == build(a | b)
    assert fieldset.difference(left, right) == build(a - b)
    assert fieldset.intersection(left, right) == build(a & b)
    assert fieldset.recursive_difference(left, right) == build({p for p in a if not any(p[:i] in b for i in range(1, len(p) + 1))})
    assert (left, right) == kept


def test_create_owns_what_the_object_holds():
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}], "args": ["x"], "resources": {"limits": {"cpu": "1"}}}], "nodeSelector": {"a": "b"}},
    }  # fmt: skip
    [entry] = managedfields.update(None, pod, "me", "Update", "v1", "", T1, POD)
    assert entry == {
        "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "me", "operation": "Update", "time": T1,
        "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {".": {}, 'v:"x/y"': {}}},
            "f:spec": {
                "f:containers": {'k:{"name":"c"}': {
                    ".": {}, "f:name": {}, "f:args": {}, "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}}},
                    "f:ports": {".": {}, 'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                }},
                "f:nodeSelector": {},
            },
        },
    }  # fmt: skip


def track(old, new, manager, time, subresource="", ignore=None):
    new = copy.deepcopy(new)
    new["metadata"]["managedFields"] = managedfields.update(old, new, manager, "Update", "apps/v1", subresource, time, DEPLOYMENT, ignore=ignore)
    return new


def deployment(**spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec, "status": {}}


def owners(obj):
    return {(e["manager"], e.get("subresource", "")): e["fieldsV1"] for e in obj["metadata"]["managedFields"]}


def test_an_update_takes_fields_over_and_removed_ones_leave_everybody():
    first = track(None, deployment(replicas=1, paused=True), "a", T1)
    second = track(first, deployment(replicas=2, paused=True), "b", T2)
    assert owners(second) == {("a", ""): {"f:spec": {"f:paused": {}}}, ("b", ""): {"f:spec": {"f:replicas": {}}}}
    third = track(second, deployment(replicas=2), "b", T3)
    assert owners(third) == {("b", ""): {"f:spec": {"f:replicas": {}}}}
    assert third["metadata"]["managedFields"][0]["time"] == T2, "who takes nothing keeps its time"


def test_a_write_that_changes_nothing_changes_no_time():
    first = track(None, deployment(replicas=1), "a", T1)
    assert track(first, first, "a", T2) == first


def test_status_writes_own_status_only():
    first = track(None, deployment(replicas=1), "a", T1, ignore=managedfields.ignored("apps", "deployments", "", True))
    new = copy.deepcopy(first)
    new["status"] = {"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]}
    new["spec"]["replicas"] = 7
    second = track(first, new, "kcm", T2, "status", managedfields.ignored("apps", "deployments", "status", True))
    assert owners(second) == {
        ("a", ""): {"f:spec": {"f:replicas": {}}},
        ("kcm", "status"): {"f:status": {"f:replicas": {}, "f:conditions": {".": {}, 'k:{"type":"Available"}': {".": {}, "f:type": {}, "f:status": {}}}}},
    }


@pytest.mark.parametrize("reset", [[], [{}]])
def test_an_empty_list_gives_tracking_up_for_good(reset):
    first = track(None, deployment(replicas=1), "a", T1)
    new = deployment(replicas=1)
    new["metadata"]["managedFields"] = reset
    second = track(first, new, "a", T2)
    assert second["metadata"]["managedFields"] == []
    assert track(second, deployment(replicas=2), "a", T3)["metadata"]["managedFields"] == []


def test_what_a_client_sends_replaces_what_stands_unless_it_cannot_be_read():
    first = track(None, deployment(replicas=1), "a", T1)
    sent = deployment(replicas=1)
    sent["metadata"]["managedFields"] = [
        {"manager": "z", "operation": "Update", "apiVersion": "apps/v1", "time": T1, "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    assert owners(track(first, {**sent, "spec": {"replicas": 2}}, "b", T2)) == {("b", ""): {"f:spec": {"f:replicas": {}}}}
    sent["metadata"]["managedFields"][0]["fieldsV1"] = {"spoilt": {}}
    assert owners(track(first, sent, "b", T2)) == owners(first)


def test_keys_that_a_client_sends_are_made_canonical():
    assert managedfields.canonical({'k:{"protocol": "TCP", "containerPort":80}': {".": {}}, 'v: "x"': {}}) == {
        'k:{"containerPort":80,"protocol":"TCP"}': {".": {}},
        'v:"x"': {},
    }


def test_the_number_of_updaters_is_bounded():
    obj = track(None, deployment(replicas=1), "m00", T1)
    for i in range(1, 16):
        labels = {**obj["metadata"].get("labels", {}), f"l{i:02}": "x"}
        new = copy.deepcopy(obj)
        new["metadata"]["labels"] = labels
        obj = track(obj, new, f"m{i:02}", f"2026-11-20T00:00:{i:02}Z")
    entries = obj["metadata"]["managedFields"]
    assert len(entries) == managedfields.UPDATE_MANAGERS_MAX
    [folded] = [e for e in entries if e["manager"] == "ancient-changes"]
    assert {"f:l01", "f:l02"} <= folded["fieldsV1"]["f:metadata"]["f:labels"].keys()
    owned = set().union(*(members(e["fieldsV1"]) for e in entries))
    assert {("f:metadata", "f:labels", f"f:l{i:02}") for i in range(1, 16)} <= owned


def test_managers_are_named_by_option_or_agent():
    assert managedfields.manager_of("x", "kubectl/v1.36 (linux)") == "x"
    assert managedfields.manager_of("", "kubectl/v1.36 (linux)") == "kubectl"
    assert len(managedfields.manager_of("", "ä" * 100).encode()) <= managedfields.MANAGER_BYTES_MAX


def test_fields_of_an_open_custom_schema_are_owned_one_by_one():
    node = schema.from_openapi({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}})
    new = {"apiVersion": "e/v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"a": {"b": 1}, "l": [{"n": 1}], "e": {}}}
    [entry] = managedfields.update(None, new, "m", "Update", "e/v1", "", T1, node)
    assert entry["fieldsV1"] == {"f:spec": {".": {}, "f:a": {".": {}, "f:b": {}}, "f:l": {}, "f:e": {}}}


@given(st.integers(0, 2**32))
def test_comparing_an_object_with_itself_finds_nothing(seed):
    import random

    obj = random_pod(random.Random(seed))
    assert fieldset.compare(obj, orjson.loads(orjson.dumps(obj)), POD) == ({}, {})


@given(st.integers(0, 2**32))
def test_what_one_way_adds_the_other_removes(seed):
    import random

    r = random.Random(seed)
    a, b = random_pod(r), random_pod(r)
    changed, removed = fieldset.compare(a, b, POD)
    back_changed, back_removed = fieldset.compare(b, a, POD)
    assert members(removed) <= members(back_changed)
    assert members(back_removed) <= members(changed)
    assert members(changed) - members(back_removed) == members(back_changed) - members(removed), "what is modified is so both ways"


def leaves(node, value, path=(), field=True):
    """The model: every path a value owns -> what is compared there (a marker for what is owned by its parts)."""
    atomic = node is None or not isinstance(value, (dict, list))
    if isinstance(value, dict) and node is not None:
        atomic = node.map_type == "atomic" or (node.properties is None and node.additional is None)
    if isinstance(value, list) and node is not None:
        atomic = node.list_type not in ("map", "set")
    if atomic or not value:
        return {path: value}
    out = {path: "parts"} if path else {}
    if isinstance(value, dict):
        for key, item in value.items():
            out |= leaves((node.properties or {}).get(key) or node.additional, item, (*path, f"f:{key}"))
    elif node.list_type == "set":
        out |= {(*path, f"v:{json.dumps(item)}"): item for item in value}
    else:
        for item in value:
            out |= leaves(node.items, item, (*path, fieldset.element(node, item)))
    return out


@given(st.integers(0, 2**32))
def test_compare_is_the_difference_of_what_is_owned(seed):
    import random

    r = random.Random(seed)
    a, b = random_pod(r), random_pod(r)
    for obj in (a, b):
        del obj["metadata"]["name"]
    before, after = leaves(POD, a), leaves(POD, b)
    changed, removed = fieldset.compare(a, b, POD)

    def emptied(path, one, other):  # a container that becomes empty, or stops being so, is not itself modified: its parts are
        return path in other and "parts" in (one[path], other[path]) and not [v for v in (one[path], other[path]) if v != "parts" and v]

    want = {p for p in after if (p not in before or before[p] != after[p]) and not emptied(p, after, before)}
    assert {p for p in members(changed) if p not in {("f:metadata",), ("f:spec",)}} == {p for p in want if p not in {("f:metadata",), ("f:spec",)}}
    assert members(removed) == {p for p in before if p not in after}


def random_pod(r):
    def container(name):
        c = {"name": name, "image": r.choice("xy")}
        if r.random() < 0.5:
            c["ports"] = [{"containerPort": p} for p in r.sample([80, 81, 82], r.randint(0, 2))]
        if r.random() < 0.5:
            c["env"] = [{"name": n, "value": r.choice("12")} for n in r.sample("AB", r.randint(0, 2))]
        if r.random() < 0.3:
            c["args"] = [r.choice("12")]
        return c

    spec = {"containers": [container(n) for n in r.sample("cde", r.randint(1, 3))]}
    if r.random() < 0.5:
        spec["nodeSelector"] = {"a": r.choice("12")}
    meta = {"name": "p", "labels": {k: r.choice("12") for k in r.sample("abc", r.randint(0, 3))}, "finalizers": r.sample(["x/a", "x/b"], r.randint(0, 2))}
    return {"metadata": meta, "spec": spec}


# What admission and the kinds' strategies fill in after tracking, so that nobody owns it.
LATER = {"Pod", "Service", "Job", "PersistentVolume", "PersistentVolumeClaim", "VolumeAttributesClass", "Namespace"}


@pytest.mark.skipif(not ORACLE.exists(), reason="no reference data beside the checkout")
def test_upstreams_recorded_creates():
    checked = 0
    for line in gzip.decompress(ORACLE.read_bytes()).splitlines():
        case = json.loads(line)
        if case.get("method") != "POST" or case["code"] != 201 or not (case["answer"].get("metadata") or {}).get("managedFields"):
            continue
        obj = copy.deepcopy(case["answer"])
        [want] = obj["metadata"].pop("managedFields")
        group, _, version = obj["apiVersion"].rpartition("/")
        try:
            node = schema.of(group, version, obj["kind"])
        except KeyError:
            continue
        ignore = managedfields.ignored(group, "", "", "status" in (node.properties or {}))
        got = managedfields.update(None, obj, want["manager"], "Update", obj["apiVersion"], "", "<free>", node, ignore=ignore)
        fields = got[0]["fieldsV1"] if got else {}
        missing = members(want["fieldsV1"]) - members(fields)
        assert all(holds_null(obj, path) for path in missing), (case["id"], missing)
        if obj["kind"] not in LATER and not missing and (obj["kind"] != "Node" or case["body"].get("spec", {}).get("taints")):
            assert got == [want], case["id"]
            checked += 1
    assert checked > 300


def holds_null(obj, path):
    """An empty list was sent and owned, and is stored as null (what stands there cannot show it)."""
    for name in path:
        obj = (obj or {}).get(name[2:]) if isinstance(obj, dict) else None
    return obj is None
