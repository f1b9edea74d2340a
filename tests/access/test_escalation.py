"""Nobody grants what he does not hold."""

from __future__ import annotations

from typing import Any

from fastkube.server.request import User
from tests.access.conftest import Cluster

JOE = User("joe", ("devs", "system:authenticated"))
BASE = "/apis/rbac.authorization.k8s.io/v1"
REF = "rbac.authorization.k8s.io"


def rule(*verbs: str, resources: tuple[str, ...] = ("pods",), group: str = "", names: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"verbs": list(verbs), "apiGroups": [group], "resources": list(resources), **({"resourceNames": list(names)} if names else {})}


async def grant(cluster: Cluster, name: str, *rules: dict[str, Any]) -> None:
    await cluster.make(f"{BASE}/namespaces/default/roles", {"metadata": {"name": name}, "rules": list(rules)})
    subject = {"kind": "User", "apiGroup": REF, "name": "joe"}
    await cluster.make(
        f"{BASE}/namespaces/default/rolebindings",
        {"metadata": {"name": name}, "roleRef": {"apiGroup": REF, "kind": "Role", "name": name}, "subjects": [subject]},
    )


MANAGE = rule("create", "update", "patch", "get", resources=("roles", "rolebindings"), group=REF)


async def test_a_role_beyond_ones_own_is_refused_with_upstreams_words(cluster: Cluster) -> None:
    await grant(cluster, "own", MANAGE, rule("get"))
    body = {"metadata": {"name": "more"}, "rules": [rule("get", "delete"), rule("get", resources=("secrets",))]}
    status, answer = await cluster.call("POST", f"{BASE}/namespaces/default/roles", body, user=JOE)
    assert status == 403
    assert answer["message"] == (
        'roles.rbac.authorization.k8s.io "more" is forbidden: user "joe" (groups=["devs" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:\n'
        '{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}\n{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}'
    )
    await cluster.make(f"{BASE}/namespaces/default/roles", {"metadata": {"name": "less"}, "rules": [rule("get", names=("one",))]}, user=JOE)


async def test_escalate_and_bind_lift_it(cluster: Cluster) -> None:
    await grant(cluster, "own", MANAGE)
    wide = {"metadata": {"name": "wide"}, "rules": [rule("*")]}
    assert (await cluster.call("POST", f"{BASE}/namespaces/default/roles", wide, user=JOE))[0] == 403
    bind = {
        "metadata": {"name": "me"},
        "roleRef": {"apiGroup": REF, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "apiGroup": REF, "name": "joe"}],
    }
    status, answer = await cluster.call("POST", f"{BASE}/namespaces/default/rolebindings", bind, user=JOE)
    assert status == 403 and "is attempting to grant RBAC permissions not currently held" in answer["message"]
    await grant(
        cluster,
        "lift",
        rule("escalate", resources=("roles",), group=REF, names=("wide",)),
        rule("bind", resources=("clusterroles",), group=REF, names=("view",)),
    )
    assert (await cluster.call("POST", f"{BASE}/namespaces/default/roles", wide, user=JOE))[0] == 201
    assert (await cluster.call("POST", f"{BASE}/namespaces/default/rolebindings", bind, user=JOE))[0] == 201


async def test_updates_that_leave_the_rules_alone_pass(cluster: Cluster) -> None:
    await grant(cluster, "own", MANAGE)
    await cluster.make(f"{BASE}/namespaces/default/roles", {"metadata": {"name": "wide"}, "rules": [rule("*")]})
    patch = {"metadata": {"labels": {"a": "b"}}}
    assert (await cluster.call("PATCH", f"{BASE}/namespaces/default/roles/wide", patch, user=JOE))[0] == 200
    assert (await cluster.call("PATCH", f"{BASE}/namespaces/default/roles/wide", {"rules": [rule("get"), rule("*")]}, user=JOE))[0] == 403


async def test_binding_a_role_that_is_not_there(cluster: Cluster) -> None:
    await grant(cluster, "own", MANAGE)
    bind = {"metadata": {"name": "me"}, "roleRef": {"apiGroup": REF, "kind": "Role", "name": "gone"}, "subjects": []}
    status, answer = await cluster.call("POST", f"{BASE}/namespaces/default/rolebindings", bind, user=JOE)
    assert (status, answer["message"]) == (404, 'roles.rbac.authorization.k8s.io "gone" not found')


async def test_aggregating_needs_everything(cluster: Cluster) -> None:
    await cluster.make(f"{BASE}/clusterroles", {"metadata": {"name": "creator"}, "rules": [rule("create", resources=("clusterroles",), group=REF)]})
    subject = {"kind": "User", "apiGroup": REF, "name": "joe"}
    await cluster.make(
        f"{BASE}/clusterrolebindings",
        {"metadata": {"name": "creator"}, "roleRef": {"apiGroup": REF, "kind": "ClusterRole", "name": "creator"}, "subjects": [subject]},
    )
    body = {"metadata": {"name": "all"}, "rules": [], "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "y"}}]}}
    status, answer = await cluster.call("POST", f"{BASE}/clusterroles", body, user=JOE)
    assert status == 403 and answer["message"].endswith("must have cluster-admin privileges to use the aggregationRule")
