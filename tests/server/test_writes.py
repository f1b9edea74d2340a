"""create, update, patch, delete and the subresources over TLS: what the registry does for every kind."""

import asyncio
import json

import pytest

from tests.server.conftest import JOE, MAPS, PODS, config_map, pod

APPLY = "application/apply-patch+yaml"


@pytest.fixture
async def pods(api):
    """A namespace where pods may be made, and a node."""
    await api.make("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    await api.make("/api/v1/nodes", {"metadata": {"name": "n1"}})
    return api


async def test_create_fills_in_what_is_the_servers(api):
    made = await api.make(MAPS, {"metadata": {"generateName": "gen-", "uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z", "selfLink": "x"}})
    meta = made["metadata"]
    assert meta["name"].startswith("gen-") and len(meta["name"]) == 9 and meta["namespace"] == "default"
    assert meta["uid"] != "mine" and len(meta["uid"]) == 36 and meta["creationTimestamp"] > "2026" and "selfLink" not in meta
    assert int(meta["resourceVersion"]) == api.server.store.revision
    assert meta["managedFields"][0]["operation"] == "Update"


async def test_what_create_refuses(api):
    await api.make(MAPS, config_map("a"))
    for body, code, reason in [
        (config_map("a"), 409, "AlreadyExists"),
        (config_map("A_"), 422, "Invalid"),
        ({"metadata": {}}, 422, "Invalid"),
        ({"metadata": {"name": "b", "namespace": "other"}}, 400, "BadRequest"),
        ({"metadata": {"name": "b", "resourceVersion": "5"}}, 400, "BadRequest"),
        ({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "b"}}, 400, "BadRequest"),
        ({"metadata": {"name": "b"}, "data": {"k": 5}}, 400, "BadRequest"),
        ([], 400, "BadRequest"),
        (b"{", 400, "BadRequest"),
        (b"", 400, "BadRequest"),
    ]:
        status, answer = await api.call("POST", MAPS, body)
        assert (status, answer["reason"], answer["kind"]) == (code, reason, "Status"), body
    assert (await api.call("POST", MAPS, config_map("b"), type="text/csv"))[0] == 415
    assert (await api.call("POST", "/api/v1/namespaces/absent/configmaps", config_map("b")))[0] == 404
    assert (await api.call("POST", "/api/v1/configmaps", config_map("b")))[0] == 405
    assert (await api.call("PUT", MAPS, config_map("b")))[0] == 405


async def test_yaml_bodies(api):
    status, answer = await api.call("POST", MAPS, b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata:\n  k: 'yes'\n", type="application/yaml")
    assert (status, answer["data"]) == (201, {"k": "yes"})


async def test_field_validation(api):
    body = {**config_map("a"), "unknown": 1}
    status, headers, _ = await api.raw("POST", MAPS, body)
    assert status == 201 and headers["Warning"] == '299 - "unknown field \\"unknown\\""'
    assert (await api.raw("POST", f"{MAPS}?fieldValidation=Ignore", {**body, "metadata": {"name": "b"}}))[1].get("Warning") is None
    status, answer = await api.call("POST", f"{MAPS}?fieldValidation=Strict", {**body, "metadata": {"name": "c"}})
    assert status == 400 and 'strict decoding error: unknown field "unknown"' in answer["message"]
    assert (await api.call("POST", f"{MAPS}?fieldValidation=Odd", config_map("c")))[0] == 422


async def test_update_holds_to_its_version(api):
    made = await api.make(MAPS, config_map("a", k="1"))
    status, second = await api.call("PUT", f"{MAPS}/a", {**made, "data": {"k": "2"}})
    assert status == 200 and second["metadata"]["uid"] == made["metadata"]["uid"]
    status, answer = await api.call("PUT", f"{MAPS}/a", {**made, "data": {"k": "3"}})
    assert (status, answer["reason"]) == (409, "Conflict") and "the object has been modified" in answer["message"]
    status, third = await api.call("PUT", f"{MAPS}/a", config_map("a", k="3"))
    assert status == 200 and third["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    status, answer = await api.call("PUT", f"{MAPS}/a", {**config_map("a"), "metadata": {"name": "a", "uid": "other"}})
    assert status == 409 and "Precondition failed: UID" in answer["message"]
    assert (await api.call("PUT", f"{MAPS}/a", config_map("b")))[0] == 400
    for nameless in ({}, {"metadata": {}}, {"data": {"k": "4"}}):  # would wipe what is there
        status, answer = await api.call("PUT", f"{MAPS}/a", nameless)
        assert (status, answer["message"]) == (400, "the name of the object (a based on URL) was undeterminable: name must be provided")
    assert (await api.call("GET", f"{MAPS}/a"))[1]["data"] == {"k": "3"}
    assert (await api.call("PUT", f"{MAPS}/none", config_map("none")))[0] == 404


async def test_a_write_that_changes_nothing_is_none(api):
    made = await api.make(MAPS, config_map("a", k="1"))
    assert await api.call("PUT", f"{MAPS}/a", made) == (200, made)
    assert await api.call("PATCH", f"{MAPS}/a", {"data": {"k": "1"}}) == (200, made)


async def test_update_creates_where_upstream_does(api):
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l"
    status, made = await api.call("PUT", path, {"metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}})
    assert status == 201 and made["spec"] == {"holderIdentity": "x"}


async def test_the_four_patches(api):
    await api.make(MAPS, config_map("a", k="1", gone="x"))
    assert (await api.call("PATCH", f"{MAPS}/a", {"data": {"gone": None, "m": "2"}}))[1]["data"] == {"k": "1", "m": "2"}
    patch = [{"op": "test", "path": "/data/k", "value": "1"}, {"op": "replace", "path": "/data/k", "value": "3"}]
    assert (await api.call("PATCH", f"{MAPS}/a", patch, type="application/json-patch+json"))[1]["data"] == {"k": "3", "m": "2"}
    patch[0]["value"] = "other"
    assert (await api.call("PATCH", f"{MAPS}/a", patch, type="application/json-patch+json"))[0] == 422
    merged = await api.call("PATCH", f"{MAPS}/a", {"data": {"$patch": "replace", "s": "4"}}, type="application/strategic-merge-patch+json")
    assert merged[1]["data"] == {"s": "4"}
    status, applied = await api.call("PATCH", f"{MAPS}/new?fieldManager=me", config_map("new", a="1"), type=APPLY)
    assert status == 201 and applied["metadata"]["managedFields"][0]["operation"] == "Apply"
    status, answer = await api.call("PATCH", f"{MAPS}/new?fieldManager=you", config_map("new", a="2"), type=APPLY)
    assert (status, answer["details"]["causes"][0]["reason"]) == (409, "FieldManagerConflict")
    assert (await api.call("PATCH", f"{MAPS}/new?fieldManager=you&force=true", config_map("new", a="2"), type=APPLY))[1]["data"] == {"a": "2"}
    assert (await api.call("PATCH", f"{MAPS}/new", config_map("new"), type=APPLY))[0] == 422
    assert (await api.call("PATCH", f"{MAPS}/a", {}, type="application/json"))[0] == 415
    assert (await api.call("PATCH", f"{MAPS}/a", {"metadata": {"name": "b"}}))[0] == 400
    assert (await api.call("PATCH", f"{MAPS}/none", {}))[0] == 404


async def test_patches_at_the_same_time_all_take_effect(api):
    await api.make(MAPS, config_map("a"))
    answers = await asyncio.gather(*(api.call("PATCH", f"{MAPS}/a", {"data": {f"k{i}": "v"}}) for i in range(30)))
    assert [status for status, _ in answers] == [200] * 30
    assert len((await api.call("GET", f"{MAPS}/a"))[1]["data"]) == 30


async def test_dry_runs_leave_no_trace(api):
    before = api.server.store.revision
    status, answer = await api.call("POST", f"{MAPS}?dryRun=All", config_map("a"))
    assert status == 201 and answer["metadata"]["uid"] and "resourceVersion" not in answer["metadata"]
    assert api.server.store.revision == before
    made = await api.make(MAPS, config_map("a", k="1"))
    before = api.server.store.revision
    for method, query, body in [
        ("PUT", "", config_map("a", k="2")),
        ("PATCH", "", {"data": {"k": "2"}}),
        ("DELETE", "", None),
        ("DELETE", "", {"dryRun": ["All"]}),
    ]:
        query = "" if body and "dryRun" in body else "?dryRun=All"
        assert (await api.call(method, f"{MAPS}/a{query}", body))[0] == 200
    assert (await api.call("POST", f"{MAPS}?dryRun=All", config_map("a")))[0] == 409
    assert (await api.call("POST", f"{MAPS}?dryRun=Some", config_map("b")))[0] == 422
    assert api.server.store.revision == before and (await api.call("GET", f"{MAPS}/a"))[1] == made


async def test_generation_and_status_are_apart(api):
    path = "/apis/apps/v1/namespaces/default/deployments"
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }
    made = await api.make(path, {"metadata": {"name": "d"}, "spec": spec, "status": {"replicas": 9}})
    assert made["metadata"]["generation"] == 1 and made["status"] == {}
    _, answer = await api.call("PATCH", f"{path}/d/status", {"spec": {"replicas": 7}, "status": {"replicas": 3}})
    assert (answer["spec"]["replicas"], answer["status"]["replicas"], answer["metadata"]["generation"]) == (1, 3, 1)
    _, answer = await api.call("PATCH", f"{path}/d", {"spec": {"replicas": 2}, "status": {"replicas": 8}})
    assert (answer["spec"]["replicas"], answer["status"]["replicas"], answer["metadata"]["generation"]) == (2, 3, 2)
    status, scale = await api.call("GET", f"{path}/d/scale")
    assert (status, scale["kind"], scale["spec"], scale["status"]) == (200, "Scale", {"replicas": 2}, {"replicas": 3, "selector": "a=b"})
    _, scale = await api.call("PUT", f"{path}/d/scale", {**scale, "spec": {"replicas": 5}})
    assert scale["spec"] == {"replicas": 5}
    assert (await api.call("PUT", f"{path}/d/scale", {**scale, "metadata": {"name": "d", "resourceVersion": "1"}}))[0] == 409
    assert (await api.call("PUT", f"{path}/d/scale", {"spec": {"replicas": 0}}))[0] == 400
    _, scale = await api.call("PATCH", f"{path}/d/scale", {"spec": {"replicas": 6}})
    assert scale["spec"] == {"replicas": 6} and (await api.call("GET", f"{path}/d"))[1]["metadata"]["generation"] == 4
    assert (await api.call("PATCH", f"{path}/d/scale", {"spec": {"replicas": -1}}))[0] == 422
    assert (await api.call("GET", f"{path}/d/nothing"))[0] == 404


# ---- deletion


async def test_deletion_answers_and_preconditions(api):
    made = await api.make(MAPS, config_map("a"))
    for wrong in ({"uid": "other"}, {"resourceVersion": "1"}):
        assert (await api.call("DELETE", f"{MAPS}/a", {"preconditions": wrong}))[0] == 409
    status, answer = await api.call("DELETE", f"{MAPS}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert (status, answer["status"], answer["details"]) == (200, "Success", {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]})
    assert (await api.call("DELETE", f"{MAPS}/a"))[0] == 404
    for bad in ({"propagationPolicy": "Odd"}, {"propagationPolicy": "Orphan", "orphanDependents": True}, {"gracePeriodSeconds": -1}):
        assert (await api.call("DELETE", f"{MAPS}/a", bad))[0] == 422, bad


async def test_finalizers_hold_and_the_last_one_lets_go(api):
    await api.make(MAPS, {"metadata": {"name": "a", "finalizers": ["x.io/a", "x.io/b"]}})
    status, answer = await api.call("DELETE", f"{MAPS}/a")
    assert status == 200 and answer["metadata"]["deletionTimestamp"] and answer["metadata"]["deletionGracePeriodSeconds"] == 0
    assert (await api.call("POST", MAPS, config_map("a")))[1]["message"].startswith("object is being deleted: ")
    assert (await api.call("PATCH", f"{MAPS}/a", {"metadata": {"finalizers": ["x.io/a", "x.io/c"]}}))[0] == 422
    assert (await api.call("PATCH", f"{MAPS}/a", {"metadata": {"finalizers": ["x.io/a"]}}))[0] == 200
    assert (await api.call("DELETE", f"{MAPS}/a"))[0] == 200
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}")
    assert (await api.call("PATCH", f"{MAPS}/a", {"metadata": {"finalizers": None}}))[0] == 200
    assert (await api.call("GET", f"{MAPS}/a"))[0] == 404
    assert await watch.types(1) == [("DELETED", "a")]


async def test_propagation_policies_are_finalizers(api):
    for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
        await api.make(MAPS, config_map("a"))
        answer = (await api.call("DELETE", f"{MAPS}/a", {"propagationPolicy": policy}))[1]
        assert answer["metadata"]["finalizers"] == [finalizer]
        await api.call("DELETE", f"{MAPS}/a?propagationPolicy=Background")
        assert (await api.call("GET", f"{MAPS}/a"))[0] == 404


async def test_pods_go_gracefully(pods):
    await pods.make(PODS, pod("a"))
    assert (await pods.call("DELETE", f"{PODS}/a"))[1]["kind"] == "Pod"
    assert (await pods.call("GET", f"{PODS}/a"))[0] == 404  # never reached a node: nothing to wait for
    await pods.make(PODS, pod("a", nodeName="n1", terminationGracePeriodSeconds=40))
    _, going = await pods.call("DELETE", f"{PODS}/a")
    meta = going["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 40 and meta["deletionTimestamp"] > meta["creationTimestamp"] and meta["generation"] == 2
    _, same = await pods.call("DELETE", f"{PODS}/a?gracePeriodSeconds=50")
    assert same["metadata"]["deletionTimestamp"] == meta["deletionTimestamp"]
    _, sooner = await pods.call("DELETE", f"{PODS}/a?gracePeriodSeconds=5")
    assert sooner["metadata"]["deletionGracePeriodSeconds"] == 5 and sooner["metadata"]["deletionTimestamp"] < meta["deletionTimestamp"]
    assert (await pods.call("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}))[0] == 200
    assert (await pods.call("GET", f"{PODS}/a"))[0] == 404


async def test_delete_collection(api):
    for i in range(6):
        await api.make(MAPS, config_map(f"m{i}", {"half": str(i % 2)}))
    status, answer = await api.call("DELETE", f"{MAPS}?labelSelector=half=1")
    assert status == 200 and answer["kind"] == "ConfigMapList" and len(answer["items"]) == 3
    assert [i["metadata"]["name"] for i in (await api.call("GET", MAPS))[1]["items"]] == ["m0", "m2", "m4"]
    assert (await api.call("DELETE", "/api/v1/configmaps"))[0] == 405


async def test_namespaces_end_when_they_are_finalized(api):
    made = await api.make("/api/v1/namespaces", {"metadata": {"name": "n"}})
    assert made["spec"]["finalizers"] == ["kubernetes"] and made["status"] == {"phase": "Active"}
    _, going = await api.call("DELETE", "/api/v1/namespaces/n")
    assert going["status"]["phase"] == "Terminating" and going["metadata"]["deletionTimestamp"]
    assert (await api.call("DELETE", "/api/v1/namespaces/n"))[0] == 409
    assert (await api.call("POST", "/api/v1/namespaces/n/configmaps", config_map("a")))[0] == 403
    going["spec"]["finalizers"] = []
    assert (await api.call("PUT", "/api/v1/namespaces/n", going))[1]["spec"]["finalizers"] == ["kubernetes"]
    assert (await api.call("PUT", "/api/v1/namespaces/n/finalize", {**going, "metadata": {"name": "n"}}))[0] == 200
    assert (await api.call("GET", "/api/v1/namespaces/n"))[0] == 404


# ---- pods


async def test_binding(pods):
    await pods.make(PODS, pod("a"))
    binding = {"metadata": {"name": "a", "annotations": {"x": "y"}}, "target": {"kind": "Node", "name": "n1"}}
    status, answer = await pods.call("POST", f"{PODS}/a/binding", binding)
    assert (status, answer["status"]) == (201, "Success")
    _, bound = await pods.call("GET", f"{PODS}/a")
    assert bound["spec"]["nodeName"] == "n1" and bound["metadata"]["annotations"] == {"x": "y"}
    assert [(c["type"], c["status"]) for c in bound["status"]["conditions"]] == [("PodScheduled", "True")]
    status, answer = await pods.call("POST", f"{PODS}/a/binding", binding)
    assert status == 409 and 'already assigned to node "n1"' in answer["message"]
    await pods.make(PODS, pod("b"))
    assert (await pods.call("POST", "/api/v1/namespaces/default/bindings", {"metadata": {"name": "b"}, "target": {"name": "n1"}}))[0] == 201
    assert (await pods.call("POST", f"{PODS}/a/binding", {"target": {}}))[0] == 422
    assert (await pods.call("POST", f"{PODS}/none/binding", {"target": {"name": "n1"}}))[0] == 404


async def test_eviction_asks_the_budget(pods):
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    await pods.make(budgets, {"metadata": {"name": "pdb"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}})
    for name in ("a", "b", "pending"):
        await pods.make(PODS, pod(name, {"app": "x"}, nodeName="n1"))
    for name in ("a", "b"):
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        assert (await pods.call("PATCH", f"{PODS}/{name}/status", {"status": ready}))[0] == 200

    def evict(name, version="policy/v1"):
        return pods.call("POST", f"{PODS}/{name}/eviction", {"apiVersion": version, "kind": "Eviction", "metadata": {"name": name}})

    status, answer = await evict("a")
    assert (status, answer["reason"], answer["details"]["causes"][0]["reason"]) == (429, "TooManyRequests", "DisruptionBudget")
    counts = {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}
    assert (await pods.call("PATCH", f"{budgets}/pdb/status", {"status": counts}))[0] == 200
    assert (await evict("a"))[0] == 201
    _, budget = await pods.call("GET", f"{budgets}/pdb")
    assert budget["status"]["disruptionsAllowed"] == 0 and list(budget["status"]["disruptedPods"]) == ["a"]
    assert (await pods.call("GET", f"{PODS}/a"))[1]["metadata"]["deletionTimestamp"]
    status, answer = await evict("b")
    assert status == 429 and "needs 1 healthy pods and has 2 currently" in answer["details"]["causes"][0]["message"]
    assert (await evict("pending", "policy/v2"))[0] == 400
    assert (await evict("pending", "policy/v1beta1"))[0] == 201  # kubectl 1.20 drains with it
    assert (await evict("none"))[0] == 404


async def test_ephemeral_containers_and_resize(pods):
    await pods.make(PODS, pod("a", nodeName="n1"))
    _, answer = await pods.call("PATCH", f"{PODS}/a", {"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}})
    assert "ephemeralContainers" not in answer["spec"]
    patch = {"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c"}], "containers": [{"name": "c", "image": "other"}]}}
    status, answer = await pods.call("PATCH", f"{PODS}/a/ephemeralcontainers", patch, type="application/strategic-merge-patch+json")
    assert status == 200 and answer["spec"]["ephemeralContainers"][0]["name"] == "e" and answer["spec"]["containers"][0]["image"] == "i"
    assert (await pods.call("PATCH", f"{PODS}/a/ephemeralcontainers", {"spec": {"ephemeralContainers": None}}))[0] == 422
    assert (await pods.call("GET", f"{PODS}/a/ephemeralcontainers"))[0] == 200
    wide = {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}}
    assert (await pods.call("PATCH", f"{PODS}/a", wide, type="application/strategic-merge-patch+json"))[0] == 422
    assert (await pods.call("PATCH", f"{PODS}/a/resize", wide, type="application/strategic-merge-patch+json"))[0] == 422  # would change the QoS class


async def test_token_requests(api):
    path = "/api/v1/namespaces/default/serviceaccounts"
    await api.make(path, {"metadata": {"name": "bot"}})
    status, answer = await api.call("POST", f"{path}/bot/token", {"spec": {"expirationSeconds": 600}})
    assert status == 201 and answer["kind"] == "TokenRequest"
    _, me = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, token=answer["status"]["token"])
    assert me["status"]["userInfo"]["username"] == "system:serviceaccount:default:bot"


# ---- who may


async def test_nobody_gets_in_unasked(api):
    for token, code in ((None, 403), ("wrong", 401), (JOE, 403)):
        status, answer = await api.call("GET", MAPS, token=token)
        assert (status, answer["kind"]) == (code, "Status")
    assert (await api.call("GET", "/version", token=None))[0] == 200
    status, answer = await api.call("GET", MAPS, headers={"Impersonate-User": "joe"})
    assert status == 403 and 'User "joe" cannot list resource "configmaps"' in answer["message"]
    assert (await api.call("GET", MAPS, token=JOE, headers={"Impersonate-User": "admin"}))[0] == 403


async def test_two_names_for_one_stored_kind(api):
    """events.k8s.io shows core events, autoscaling/v1 shows v2's autoscalers."""
    new = {"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c.io/x", "reportingInstance": "i", "action": "a", "reason": "r",
           "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}, "note": "hello", "type": "Normal"}  # fmt: skip
    await api.make("/apis/events.k8s.io/v1/namespaces/default/events", new)
    _, core = await api.call("GET", "/api/v1/namespaces/default/events/e")
    assert (core["message"], core["involvedObject"]["name"], core["apiVersion"]) == ("hello", "p", "v1")
    _, back = await api.call("PATCH", "/apis/events.k8s.io/v1/namespaces/default/events/e", {"metadata": {"labels": {"a": "b"}}})
    assert (back["note"], back["apiVersion"], back["metadata"]["labels"]) == ("hello", "events.k8s.io/v1", {"a": "b"})
    _, listed = await api.call("GET", "/apis/events.k8s.io/v1/events")
    assert listed["items"][0]["regarding"]["name"] == "p"
    watch = await api.watch("/apis/events.k8s.io/v1/events?watch=true")
    assert (await watch.next())["object"]["note"] == "hello"
    assert api.server.store.get(b"/registry/events/default/e").lease
    scaler = {
        "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "targetCPUUtilizationPercentage": 50},
    }
    await api.make("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", scaler)
    _, second = await api.call("GET", "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h")
    assert second["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
    _, first = await api.call("GET", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h")
    assert first["spec"]["targetCPUUtilizationPercentage"] == 50 and json.dumps(first).count("autoscaling/v1")
