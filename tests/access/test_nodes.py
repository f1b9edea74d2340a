"""The Node authorizer's graph against a model, and NodeRestriction."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.server.admission.nodes import forbidden_labels
from fastkube.server.authz.node import NodeAuthorizer
from fastkube.server.request import RequestInfo, User
from tests.access.conftest import ADMIN, Cluster, pod
from tests.access.memory import MemoryReader

N1 = User("system:node:n1", ("system:nodes", "system:authenticated"))
N2 = User("system:node:n2", ("system:nodes", "system:authenticated"))


def info(verb: str, resource: str, namespace: str = "", name: str = "", sub: str = "", group: str = "", fields: str = "") -> RequestInfo:
    return RequestInfo(verb, "", True, group, "v1", resource, sub, namespace, name, field_selector=fields)


pods = st.fixed_dictionaries(
    {
        "node": st.sampled_from((None, "n1", "n2")),
        "secret": st.sampled_from((None, "s1", "s2")),
        "config": st.sampled_from((None, "c1")),
        "claim": st.sampled_from((None, "v1")),
        "mirror": st.booleans(),
    }
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("pod"), st.sampled_from(("a", "b", "c")), st.none() | pods),
        st.tuples(
            st.just("volume"), st.sampled_from(("pv1", "pv2")), st.none() | st.tuples(st.sampled_from((None, "v1", "v2")), st.sampled_from((None, "s1", "s2")))
        ),
    ),
    max_size=10,
)


def as_pod(name: str, value: dict[str, Any]) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = []
    if value["secret"]:
        volumes.append({"name": "s", "secret": {"secretName": value["secret"]}})
    if value["claim"]:
        volumes.append({"name": "v", "persistentVolumeClaim": {"claimName": value["claim"]}})
    env = [{"configMapRef": {"name": value["config"]}}] if value["config"] else []
    annotations = {"kubernetes.io/config.mirror": "x"} if value["mirror"] else {}
    spec = {"nodeName": value["node"], "serviceAccountName": "sa", "containers": [{"name": "c", "envFrom": env}], "volumes": volumes}
    return {"metadata": {"namespace": "d", "name": name, "annotations": annotations}, "spec": {k: v for k, v in spec.items() if v is not None}}


@settings(max_examples=200, deadline=None)
@given(steps)
def test_a_node_reads_what_its_pods_use_and_nothing_else(changes: list[Any]) -> None:
    reader = MemoryReader()
    authorizer = NodeAuthorizer(reader)  # type: ignore[arg-type]
    running: dict[str, dict[str, Any]] = {}
    volumes: dict[str, Any] = {}
    for kind, name, value in changes:
        if kind == "pod":
            reader.delete("v1/pods", "d", name)  # a pod's spec does not change but by being another pod
            running.pop(name, None)
            if value:
                reader.put("v1/pods", as_pod(name, value))
                running[name] = value
        elif value is None:
            reader.delete("v1/persistentvolumes", "", name)
            volumes.pop(name, None)
        else:
            claim, secret = value
            spec: dict[str, Any] = {"csi": {"driver": "d", "nodePublishSecretRef": {"namespace": "d", "name": secret}}} if secret else {"hostPath": {}}
            reader.put(
                "v1/persistentvolumes", {"metadata": {"name": name}, "spec": {**spec, **({"claimRef": {"namespace": "d", "name": claim}} if claim else {})}}
            )
            volumes[name] = value
        for node, user in (("n1", N1), ("n2", N2)):
            mine = [p for p in running.values() if p["node"] == node]
            real = [p for p in mine if not p["mirror"]]
            claims = {p["claim"] for p in real}
            bound = {v: secret for v, (claim, secret) in volumes.items() if claim and claim in claims}
            secrets = {p["secret"] for p in real} | set(bound.values())
            ask = lambda r, n, space="d", user=user: authorizer.authorize(user, info("get", r, space, n)).allowed  # noqa: E731
            assert [ask("secrets", s) for s in ("s1", "s2")] == [s in secrets for s in ("s1", "s2")]
            assert ask("configmaps", "c1") == any(p["config"] for p in real)
            assert ask("persistentvolumeclaims", "v1") == ("v1" in claims)
            assert [ask("persistentvolumes", v, "") for v in ("pv1", "pv2")] == [v in bound for v in ("pv1", "pv2")]
            assert [ask("pods", p) for p in "abc"] == [running.get(p, {}).get("node") == node for p in "abc"]
            assert authorizer.authorize(user, info("create", "serviceaccounts", "d", "sa", "token")).allowed == bool(real)


@pytest.mark.parametrize(
    ("request_", "want"),
    [
        (info("get", "nodes", name="n1"), True),
        (info("get", "nodes", name="n2"), "node 'n1' cannot read 'n2', only its own Node object"),
        (info("list", "nodes"), "node 'n1' cannot read all nodes, only its own Node object"),
        (info("watch", "nodes", name="n1"), True),
        (info("patch", "nodes", name="n1", sub="status"), True),
        (info("list", "pods"), "can only list/watch pods with spec.nodeName field selector"),
        (info("watch", "pods", fields="spec.nodeName=n1"), True),
        (info("watch", "pods", fields="spec.nodeName=n2"), "can only list/watch pods with spec.nodeName field selector"),
        (info("watch", "pods", fields="spec.nodeName!=n1"), "can only list/watch pods with spec.nodeName field selector"),
        (info("list", "secrets", "d"), "No Object name found"),
        (info("get", "secrets", "d", "s"), "no relationship found between node 'n1' and this object"),
        (info("delete", "secrets", "d", "s"), "can only read resources of this type"),
        (info("get", "leases", "kube-node-lease", "n1", group="coordination.k8s.io"), True),
        (
            info("update", "leases", "kube-node-lease", "n2", group="coordination.k8s.io"),
            "can only access node lease with the same name as the requesting node",
        ),
        (info("get", "leases", "kube-system", "n1", group="coordination.k8s.io"), 'can only access leases in the "kube-node-lease" system namespace'),
        (info("create", "events", "d"), True),
        (info("list", "services"), True),
        (info("create", "subjectaccessreviews", group="authorization.k8s.io"), True),
        (info("create", "deployments", "d", group="apps"), False),
        (info("create", "pods", "d", "p", "eviction"), True),
        (info("get", "pods", "d", "p", "exec"), False),
    ],
)
def test_what_is_not_about_the_graph(request_: RequestInfo, want: bool | str) -> None:
    authorizer = NodeAuthorizer(MemoryReader())  # type: ignore[arg-type]
    decision = authorizer.authorize(N1, request_)
    assert (decision.allowed or decision.reason or False) == want
    assert not authorizer.authorize(User("system:node:n1", ("system:authenticated",)), request_).allowed  # the name alone makes no node
    assert not authorizer.authorize(User("joe", ("system:nodes",)), request_).allowed


def test_labels_that_are_not_the_agents() -> None:
    mine = [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/x",
        "a.node.kubernetes.io/x",
        "kubelet.kubernetes.io/y",
        "example.com/z",
        "plain",
    ]
    assert forbidden_labels(mine) == []
    others = [
        "node-restriction.kubernetes.io/a",
        "x.node-restriction.kubernetes.io/b",
        "node-role.kubernetes.io/control-plane",
        "foo.k8s.io/c",
        "kubernetes.io/d",
    ]
    assert forbidden_labels([*mine, *others]) == sorted(others)


async def test_a_node_registers_itself_and_only_itself(cluster: Cluster) -> None:
    made = await cluster.make("/api/v1/nodes", {"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}}, user=N1)
    assert made["spec"]["taints"] == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    status, answer = await cluster.call("POST", "/api/v1/nodes", {"metadata": {"name": "n2"}}, user=N1)
    assert (status, answer["message"]) == (403, 'nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2"')
    role = {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}
    status, answer = await cluster.call("PATCH", "/api/v1/nodes/n1", role, user=N1)
    assert (status, answer["message"]) == (403, 'nodes "n1" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/control-plane')
    status, answer = await cluster.call("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, user=N1)
    assert (status, answer["message"]) == (403, 'nodes "n1" is forbidden: node "n1" is not allowed to modify taints')
    assert (await cluster.call("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"example.com/x": "y"}}}, user=N1))[0] == 200
    assert (await cluster.call("PATCH", "/api/v1/nodes/n1", role))[0] == 200  # an admin may
    assert (await cluster.call("DELETE", "/api/v1/nodes/n1", user=N1))[0] == 403


async def test_leases(cluster: Cluster) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    await cluster.make(path, {"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}}, user=N1)
    status, answer = await cluster.call("POST", path, {"metadata": {"name": "n2"}}, user=N1)
    assert status == 403 and answer["message"].endswith("can only access node lease with the same name as the requesting node")


async def test_mirror_pods(cluster: Cluster) -> None:
    await cluster.account()
    node = await cluster.make("/api/v1/nodes", {"metadata": {"name": "n1"}}, user=N1)
    path = "/api/v1/namespaces/default/pods"
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node["metadata"]["uid"], "controller": True}

    def mirror(**changes: Any) -> dict[str, Any]:
        obj = pod("static-n1", nodeName="n1", **changes.pop("spec", {}))
        obj["metadata"] |= {"annotations": {"kubernetes.io/config.mirror": "h"}, "ownerReferences": [owner], **changes}
        return obj

    bad = {
        'pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods': mirror(annotations={}),
        'node "n1" can only create pods with spec.nodeName set to itself': {**mirror(), "spec": {**pod()["spec"], "nodeName": "n2"}},
        'node "n1" can only create pods with an owner reference set to itself': mirror(ownerReferences=[]),
        'node "n1" can only create pods with a controller owner reference set to itself': mirror(ownerReferences=[{**owner, "controller": False}]),
        f"node n1 UID mismatch: expected x got {node['metadata']['uid']}": mirror(ownerReferences=[{**owner, "uid": "x"}]),
        'node "n1" can not create pods that reference secrets': mirror(spec={"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}),
        'node "n1" can not create pods that reference a service account': mirror(spec={"serviceAccountName": "a"}),
    }
    for why, obj in bad.items():
        status, answer = await cluster.call("POST", path, obj, user=N1)
        assert (status, answer["message"]) == (403, f'pods "static-n1" is forbidden: {why}')
    made = await cluster.make(path, mirror(), user=N1)
    assert "volumes" not in made["spec"] and "serviceAccountName" not in made["spec"]  # a mirror pod is left as it is
    status, answer = await cluster.call("PATCH", f"{path}/static-n1/status", {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}, user=N1)
    assert status in (200, 403)
    assert (await cluster.call("PATCH", f"{path}/static-n1/status", {"status": {"phase": "Running"}}, user=N1))[0] == 200
    status, answer = await cluster.call("PATCH", f"{path}/static-n1/status", {"status": {"phase": "Failed"}}, user=N2)
    assert (status, answer["message"]) == (403, 'pods "static-n1" is forbidden: node "n2" can only update pod status for pods with spec.nodeName set to itself')
    status, answer = await cluster.call("DELETE", f"{path}/static-n1?gracePeriodSeconds=0", user=N2)
    assert (status, answer["message"]) == (403, 'pods "static-n1" is forbidden: node "n2" can only delete pods with spec.nodeName set to itself')
    assert (await cluster.call("DELETE", f"{path}/static-n1?gracePeriodSeconds=0", user=N1))[0] == 200


async def test_a_node_gets_tokens_for_its_pods_only(cluster: Cluster) -> None:
    await cluster.account()
    for name in ("n1", "n2"):
        await cluster.make("/api/v1/nodes", {"metadata": {"name": name}})
    made = await cluster.make("/api/v1/namespaces/default/pods", pod(nodeName="n1"), user=ADMIN)
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"]}
    assert (await cluster.call("POST", path, {"spec": {"boundObjectRef": reference, "expirationSeconds": 3607}}, user=N1))[0] == 201
    status, answer = await cluster.call("POST", path, {"spec": {}}, user=N1)
    assert status == 403 and "node requested token not bound to a pod" in answer["message"]
    status, answer = await cluster.call("POST", path, {"spec": {"boundObjectRef": {**reference, "uid": ""}}}, user=N1)
    assert status == 403 and "node requested token with a pod binding without a uid" in answer["message"]
    status, answer = await cluster.call("POST", path, {"spec": {"boundObjectRef": reference, "audiences": ["vault"]}}, user=N1)
    assert status == 403 and 'audience "vault" not found in pod spec volume' in answer["message"]
    assert (await cluster.call("POST", path, {"spec": {"boundObjectRef": reference}}, user=N2))[0] == 403
