"""Server-side apply: upstream's recorded conversations step by step, and its laws one by one."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext import fieldset
from fastkube.api import apply as ssa
from fastkube.api import managedfields, schema
from fastkube.api.errors import ApiError

ORACLE = Path(__file__).parents[2] / "../shared/reference/oracle.jsonl.gz"
DEPLOYMENT = schema.of("apps", "v1", "Deployment")
T1, T2 = "2026-11-20T00:00:01Z", "2026-11-20T00:00:02Z"


def apply(live, applied, manager, *, force=False, time=T1, node=DEPLOYMENT, **more):
    kept = json.dumps((live, applied))
    out = ssa.apply(live, applied, manager, force, node, api_version=applied["apiVersion"], time=time, **more)
    assert json.dumps((live, applied)) == kept, "arguments stay as they are"
    return out


def deployment(replicas=None, containers=None, labels=None, **spec):
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": dict(spec)}
    if labels is not None:
        obj["metadata"]["labels"] = labels
    if replicas is not None:
        obj["spec"]["replicas"] = replicas
    if containers is not None:
        obj["spec"]["template"] = {"spec": {"containers": containers}}
    return obj


def owners(obj):
    return {(e["manager"], e["operation"]): e["fieldsV1"] for e in obj["metadata"].get("managedFields", [])}


def containers(obj):
    return obj["spec"]["template"]["spec"]["containers"]


def test_conflict_names_field_and_owner_and_force_takes_over():
    live = apply(None, deployment(1), "a")
    with pytest.raises(ApiError) as e:
        apply(live, deployment(2), "b")
    assert (e.value.code, e.value.reason) == (409, "Conflict")
    assert e.value.message == 'Apply failed with 1 conflict: conflict with "a": .spec.replicas'
    assert e.value.details == {"causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "a"', "field": ".spec.replicas"}]}
    forced = apply(live, deployment(2), "b", force=True, time=T2)
    assert forced["spec"]["replicas"] == 2
    assert owners(forced) == {("b", "Apply"): {"f:spec": {"f:replicas": {}}}}


def test_several_conflicts_are_listed_by_owner():
    live = apply(None, deployment(1, [{"name": "c", "image": "x"}]), "a")
    with pytest.raises(ApiError) as e:
        apply(live, deployment(2, [{"name": "c", "image": "y"}]), "b")
    assert e.value.message == 'Apply failed with 2 conflicts: conflicts with "a":\n- .spec.replicas\n- .spec.template.spec.containers[name="c"].image'


def test_the_same_value_is_shared_and_stays_until_the_last_applier_leaves():
    live = apply(None, deployment(1), "a")
    shared = apply(live, deployment(1), "b", time=T2)
    assert owners(shared).keys() == {("a", "Apply"), ("b", "Apply")}
    assert {e["manager"]: e.get("time") for e in shared["metadata"]["managedFields"]} == {"a": T1, "b": None}, "nothing changed, so no time"
    left = apply(shared, deployment(labels={"x": "y"}), "a", time=T2)
    assert left["spec"]["replicas"] == 1
    gone = apply(left, deployment(labels={"x": "y"}), "b", time=T2)
    assert "replicas" not in gone.get("spec", {})


def test_what_nobody_applied_is_never_pruned():
    live = apply(None, deployment(1, [{"name": "c", "image": "x"}]), "a")
    live["spec"]["paused"] = True
    containers(live)[0]["imagePullPolicy"] = "Always"
    again = apply(live, deployment(containers=[{"name": "c"}]), "a", time=T2)
    assert again["spec"]["paused"] is True
    assert containers(again) == [{"name": "c", "imagePullPolicy": "Always"}]
    assert "replicas" not in again["spec"]


def test_list_map_items_merge_by_key_with_defaults_in_keys():
    live = apply(None, deployment(containers=[{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]), "a")
    merged = apply(live, deployment(containers=[{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}, {"name": "d"}]), "b")
    assert containers(merged) == [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]}, {"name": "d"}]
    assert owners(merged)["b", "Apply"]["f:spec"]["f:template"]["f:spec"]["f:containers"] == {
        'k:{"name":"c"}': {".": {}, "f:name": {}, "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}, "f:name": {}}}},
        'k:{"name":"d"}': {".": {}, "f:name": {}},
    }
    left = apply(merged, deployment(), "b")
    assert containers(left) == [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]


@pytest.mark.parametrize(
    "live, applied, want",
    [("abc", "cb", "acb"), ("abc", "d", "abcd"), ("ab", "cab", "cab"), ("abcd", "db", "acdb"), ("", "ab", "ab"), ("ab", "xbya", "xbya"), ("abc", "xc", "abxc")],
)
def test_items_keep_the_applied_order_and_the_places_of_the_others(live, applied, want):
    first = apply(None, deployment(containers=[{"name": n} for n in live] or None), "a")
    merged = apply(first, deployment(containers=[{"name": n} for n in applied]), "b", force=True)
    got = "".join(c["name"] for c in containers(merged))
    assert sorted(got) == sorted(set(live) | set(applied))
    assert [c for c in got if c in applied] == list(applied)
    assert got == want


def test_atomic_values_are_owned_whole():
    live = apply(None, deployment(containers=[{"name": "c", "args": ["1"]}], selector={"matchLabels": {"a": "b"}}), "a")
    with pytest.raises(ApiError) as e:
        apply(live, deployment(containers=[{"name": "c", "args": ["2"]}], selector={"matchLabels": {"a": "c"}}), "b")
    assert {c["field"] for c in e.value.details["causes"]} == {".spec.selector", '.spec.template.spec.containers[name="c"].args'}


def test_sets_merge_by_value():
    live = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "finalizers": ["x/a"]}, "spec": {}}
    live["metadata"]["managedFields"] = managedfields.update(None, live, "m", "Update", "apps/v1", "", T1, DEPLOYMENT)
    applied = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "finalizers": ["x/b"]}}
    merged = apply(live, applied, "a")
    assert merged["metadata"]["finalizers"] == ["x/a", "x/b"]
    assert owners(merged)["a", "Apply"] == {"f:metadata": {"f:finalizers": {'v:"x/b"': {}}}}


def test_an_object_without_owners_gets_one_before_its_first_apply():
    live = deployment(1)
    with pytest.raises(ApiError) as e:
        apply(live, deployment(2), "a")
    assert 'conflict with "before-first-apply" using apps/v1: .spec.replicas' in e.value.message


def test_kubectl_takes_over_what_it_applied_client_side():
    config = deployment(1, paused=True)
    live = deployment(1, paused=True)
    live["metadata"]["annotations"] = {ssa.LAST_APPLIED: json.dumps(config) + "\n"}
    live["metadata"]["managedFields"] = managedfields.update(None, live, "kubectl-client-side-apply", "Update", "apps/v1", "", T1, DEPLOYMENT)
    with pytest.raises(ApiError) as e:
        apply(live, deployment(3, paused=True), "someone")
    assert e.value.message == 'Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas'
    taken = apply(live, deployment(3, paused=True), "kubectl", time=T2)
    assert taken["spec"] == {"replicas": 3, "paused": True}
    assert json.loads(taken["metadata"]["annotations"][ssa.LAST_APPLIED]) == deployment(3, paused=True)
    live["spec"]["replicas"] = 9  # somebody scaled since
    with pytest.raises(ApiError):
        apply(live, deployment(3, paused=True), "kubectl")


def test_status_apply_owns_status_only():
    live = apply(None, deployment(1), "a")
    status = {**deployment(5), "status": {"replicas": 1}}
    out = apply(live, status, "kcm", subresource="status", ignore=managedfields.ignored("apps", "deployments", "status", True))
    [entry] = [e for e in out["metadata"]["managedFields"] if e["manager"] == "kcm"]
    assert entry["subresource"] == "status" and entry["fieldsV1"] == {"f:status": {"f:replicas": {}}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"apiVersion": "apps/v2"}, "Incorrect version"),
        ({"apiVersion": None}, "Specified patch version: , expected: apps/v1"),
        ({"metadata": {"name": "d", "managedFields": []}}, "metadata.managedFields must be nil"),
        ({"spec": {"nope": 1}}, ".spec.nope: field not declared in schema"),
        ({"spec": {"template": {"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}}}, 'duplicate entries for key [name="c"]'),
        ({"spec": {"template": {"spec": {"containers": [{"image": "c"}]}}}}, "omits all key fields"),
        ({"spec": []}, ".spec: expected map"),
        ({"spec": {"template": {"spec": {"containers": {}}}}}, "expected list"),
        ({"spec": {"replicas": {}}}, "expected integer"),
    ],
)
def test_what_cannot_be_applied_is_a_bad_request(change, message):
    with pytest.raises(ApiError) as e:
        ssa.apply(None, {**deployment(1), **change}, "a", False, DEPLOYMENT, api_version="apps/v1", time=T1)
    assert e.value.code == 400 and message in e.value.message


def test_nesting_beyond_reason_is_the_clients_mistake():
    deep = json.loads('{"a":' * 900 + "1" + "}" * 900)
    node = schema.from_openapi({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    first = {"apiVersion": "e/v1", "kind": "X", "metadata": {"name": "x"}, "spec": deep}
    with pytest.raises(ApiError) as e:
        live = apply(None, first, "a", node=node)
        apply(live, {**first, "spec": json.loads('{"a":' * 900 + "2" + "}" * 900)}, "a", node=node)
    assert e.value.code == 400


def test_custom_resources_merge_by_their_schema():
    node = schema.from_openapi({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["host"], "items": {"type": "object", "properties": {"host": {"type": "string"}, "to": {"type": "string"}}}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}})  # fmt: skip
    first = {"apiVersion": "e/v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"rules": [{"host": "a", "to": "1"}], "open": {"k": {"v": 1}}}}
    live = apply(None, first, "a", node=node)
    out = apply(live, {**first, "spec": {"rules": [{"host": "b"}], "open": {"l": 2}}}, "b", node=node)
    assert out["spec"] == {"rules": [{"host": "a", "to": "1"}, {"host": "b"}], "open": {"k": {"v": 1}, "l": 2}}
    back = apply(out, {**first, "spec": {}}, "a", node=node)
    assert back["spec"] == {"rules": [{"host": "b"}], "open": {"l": 2}}


@pytest.mark.skipif(not ORACLE.exists(), reason="no reference data beside the checkout")
def test_upstreams_recorded_applies():
    """Each recorded apply on the object that stood before it: the same owners, or the same conflict."""
    checked = 0
    for line in gzip.decompress(ORACLE.read_bytes()).splitlines():
        case = json.loads(line)
        live = None
        for step in case.get("steps", ()):
            answer = step["answer"]
            if "apply-patch" in step["ctype"] and "/status" not in step["path"]:
                body = step["body"]
                group, _, version = body["apiVersion"].rpartition("/")
                try:
                    node = schema.of(group, version, body["kind"])
                except KeyError:
                    break
                manager, force = step["path"].split("fieldManager=")[1].split("&")[0], "force=true" in step["path"]
                try:
                    got = ssa.apply(live, body, manager, force, node, api_version=body["apiVersion"], time="<free>", ignore={"f:status": {}})
                except ApiError as e:
                    assert (e.code, e.message, e.details) == (answer["code"], answer["message"], answer["details"]), case["id"]
                else:
                    assert step["code"] < 300, (case["id"], answer)
                    sort = lambda entries: sorted(entries, key=lambda e: (e["manager"], e["operation"]))  # noqa: E731
                    assert sort(got["metadata"]["managedFields"]) == sort(answer["metadata"]["managedFields"]), case["id"]
                    assert holds(answer.get("data") or answer.get("spec"), got.get("data") or got.get("spec") or {}), case["id"]
                checked += 1
            if isinstance(answer, dict) and step["code"] < 300 and answer.get("kind") != "Status":
                live = answer
    assert checked == 15


def stored(obj):
    """What decoding makes of an apply's result: empty values fall away, but for spec."""
    entries = obj["metadata"].get("managedFields")
    obj = solid({**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}})
    obj.setdefault("spec", {})
    if entries:
        obj["metadata"]["managedFields"] = entries
    return obj


def solid(value):
    """Without empty objects and lists, which Go's types do not keep."""
    if isinstance(value, dict):
        return {k: s for k, v in value.items() if (s := solid(v)) not in ({}, [])}
    return [solid(v) for v in value] if isinstance(value, list) else value


def holds(want, got):
    if isinstance(got, dict):
        return isinstance(want, dict) and all(holds(want.get(k), v) for k, v in got.items())
    if isinstance(got, list):
        return isinstance(want, list) and all(any(holds(w, g) for w in want) for g in got)
    return want == got


def random_config(r):
    def container(name):
        c = {"name": name}
        if r.random() < 0.6:
            c["image"] = r.choice("xy")
        if r.random() < 0.4:
            c["env"] = [{"name": n, "value": r.choice("12")} for n in r.sample("AB", r.randint(1, 2))]
        if r.random() < 0.3:
            c["ports"] = [{"containerPort": p} for p in r.sample([80, 81], r.randint(1, 2))]
        return c

    return deployment(
        r.choice([None, 1, 2]),
        [container(n) for n in r.sample("cde", r.randint(0, 3))] or None,
        {k: r.choice("12") for k in r.sample("ab", r.randint(1, 2))} if r.random() < 0.5 else None,
    )


@given(st.integers(0, 2**32))
def test_laws_hold_after_any_history(seed):
    r = random.Random(seed)
    live, last = None, {}
    for step in range(r.randint(1, 8)):
        manager, config = r.choice("ab"), random_config(r)
        live = stored(apply(live, config, manager, force=True, time=f"2026-11-20T00:00:{step:02}Z"))
        last[manager] = config
        assert holds(live, solid(config)), "what was applied stands"
        mine = owners(live).get((manager, "Apply"), {})
        assert mine == fieldset.of(config, DEPLOYMENT), "and is owned, no more and no less"
        again = stored(apply(live, config, manager, time="2027-01-01T00:00:00Z"))
        managedfields.keep_times(live, again)
        assert again == live, "applying it again changes nothing"
        everything = fieldset.of(live, DEPLOYMENT)
        for fields in owners(live).values():
            assert not [p for p in managedfields.paths(fields) if p not in managedfields.paths(everything) and "[" not in p and p.count(".") > 2], (
                "nobody owns what is not there"
            )
        for other in last:
            if other != manager:
                left = fieldset.difference(fieldset.of(last[other], DEPLOYMENT), owners(live).get((other, "Apply"), {}))
                assert not fieldset.difference(left, fieldset.union(mine, left)), "what another lost was taken by force"
