"""ValidatingAdmissionPolicy, as upstream's recorded conversation and its documentation have it."""

from __future__ import annotations

from typing import Any

import pytest

from fastkube.server.admission.expressions import ExpressionError, evaluate
from fastkube.server.admission.matching import any_rule
from fastkube.server.request import AdmissionAttributes, User
from tests.access.conftest import ADMIN, Cluster

BASE = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}


async def policy(
    cluster: Cluster, name: str = "p", rule: dict[str, Any] = RULE, actions: tuple[str, ...] = ("Deny",), binding: dict[str, Any] | None = None, **spec: Any
) -> None:
    spec = {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]}, **spec}
    await cluster.make(f"{BASE}/validatingadmissionpolicies", {"metadata": {"name": name}, "spec": spec})
    bound = {"policyName": name, "validationActions": list(actions), **(binding or {})}
    await cluster.make(f"{BASE}/validatingadmissionpolicybindings", {"metadata": {"name": name}, "spec": bound})


def config(name: str = "c", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


async def test_the_recorded_conversation(cluster: Cluster) -> None:
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}
    await policy(
        cluster, "oracle-vap", rule,
        matchConstraints={"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}, "resourceRules": [rule]},
        variables=[{"name": "r", "expression": "object.spec.replicas"}],
        validations=[
            {"expression": "variables.r <= 5", "messageExpression": "'replicas ' + string(variables.r) + ' above 5'"},
            {"expression": "object.spec.template.spec.containers.all(c, c.image.contains(':'))", "message": "tag your images", "reason": "Forbidden"},
        ],
    )  # fmt: skip

    def deployment(replicas: int, image: str) -> dict[str, Any]:
        template = {"metadata": {"labels": {"app": "v"}}, "spec": {"containers": [{"name": "c", "image": image}]}}
        return {"metadata": {"name": "v"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "v"}}, "template": template}}

    path = "/apis/apps/v1/namespaces/{}/deployments?dryRun=All"
    assert (await cluster.call("POST", path.format("default"), deployment(2, "nginx:1")))[0] == 201
    prefix = "ValidatingAdmissionPolicy 'oracle-vap' with binding 'oracle-vap' denied request: "
    status, answer = await cluster.call("POST", path.format("default"), deployment(9, "nginx:1"))
    assert (status, answer["reason"], answer["message"]) == (422, "Invalid", f'deployments.apps "v" is forbidden: {prefix}replicas 9 above 5')
    assert answer["details"] == {"name": "v", "group": "apps", "kind": "deployments", "causes": [{"message": prefix + "replicas 9 above 5"}]}
    status, answer = await cluster.call("POST", path.format("default"), deployment(2, "untagged"))
    assert (status, answer["reason"]) == (403, "Forbidden") and answer["message"].endswith("denied request: tag your images")
    assert (await cluster.call("POST", path.format("kube-system"), deployment(9, "nginx:1")))[0] == 201


async def test_warn_audit_and_off(cluster: Cluster) -> None:
    await policy(cluster, actions=("Warn", "Audit"), validations=[{"expression": "has(object.data.a)"}])
    status, _, answer = await cluster.raw("POST", MAPS, config(b="1"), user=ADMIN)
    assert status == 201
    assert any(
        "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': failed expression: has(object.data.a)" in w for w in cluster.warnings(answer)
    )
    await cluster.call("DELETE", f"{BASE}/validatingadmissionpolicybindings/p")
    _, _, answer = await cluster.raw("POST", MAPS, config("d", b="1"), user=ADMIN)
    assert not cluster.warnings(answer)


async def test_old_objects_conditions_and_who_asks(cluster: Cluster) -> None:
    await policy(
        cluster,
        matchConditions=[{"name": "not-admins", "expression": "!('system:masters' in request.userInfo.groups) || object.metadata.name == 'strict'"}],
        validations=[{"expression": "oldObject == null || object.data.a == oldObject.data.a", "message": "a stays"}],
    )
    for name in ("loose", "strict"):
        await cluster.make(MAPS, config(name, a="1"))
    assert (await cluster.call("PATCH", f"{MAPS}/loose", {"data": {"a": "2"}}))[0] == 200
    status, answer = await cluster.call("PATCH", f"{MAPS}/strict", {"data": {"a": "2"}})
    assert status == 422 and answer["message"].endswith("a stays")


async def test_failures_count_as_the_policy_says(cluster: Cluster) -> None:
    validations = [{"expression": "object.data.nope == 'x'"}]
    await policy(cluster, "fails", validations=validations)
    status, answer = await cluster.call("POST", MAPS, config(a="1"))
    assert status == 422 and answer["message"].endswith("expression 'object.data.nope == 'x'' resulted in error: no such key: nope")
    await cluster.call("PATCH", f"{BASE}/validatingadmissionpolicies/fails", {"spec": {"failurePolicy": "Ignore"}})
    assert (await cluster.call("POST", MAPS, config(a="1")))[0] == 201


async def test_parameters(cluster: Cluster) -> None:
    await cluster.make("/api/v1/namespaces/kube-system/configmaps", config("limits", most="3"))
    await policy(
        cluster,
        paramKind={"apiVersion": "v1", "kind": "ConfigMap"},
        binding={"paramRef": {"name": "limits", "namespace": "kube-system", "parameterNotFoundAction": "Deny"}},
        validations=[{"expression": "size(object.data) <= int(params.data.most)"}],
    )
    assert (await cluster.call("POST", MAPS, config("few", a="1")))[0] == 201
    assert (await cluster.call("POST", MAPS, config("many", a="1", b="2", c="3", d="4")))[0] == 422
    await cluster.call("DELETE", "/api/v1/namespaces/kube-system/configmaps/limits")
    status, answer = await cluster.call("POST", MAPS, config("none", a="1"))
    assert status == 422 and "no params found for policy binding" in answer["message"]


async def test_nobody_locks_himself_out(cluster: Cluster) -> None:
    everything = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}
    await policy(cluster, rule=everything, validations=[{"expression": "false"}])
    assert (await cluster.call("POST", MAPS, config()))[0] == 422
    assert (await cluster.call("DELETE", f"{BASE}/validatingadmissionpolicybindings/p"))[0] == 200
    assert (await cluster.call("POST", MAPS, config()))[0] == 201


async def test_the_authorizer_in_expressions(cluster: Cluster) -> None:
    authorizer = cluster.server.authorizer
    data: dict[str, Any] = {"authorizer": {"requestResource": {"group": "", "resource": "pods", "namespace": "default"}}}
    ask = "authorizer.group('').resource('pods').namespace('default').check('list').allowed()"
    assert evaluate(ask, data, authorizer, ADMIN) is True
    assert evaluate(ask, data, authorizer, User("joe")) is False
    assert evaluate("authorizer.path('/healthz').check('get').allowed()", data, authorizer, User("x", ("system:unauthenticated",))) is True
    assert evaluate("authorizer.requestResource.check('delete').allowed()", data, authorizer, User("joe")) is False
    assert evaluate(
        "authorizer.serviceAccount('kube-system', 'deployment-controller').group('apps').resource('replicasets').check('create').allowed()",
        data,
        authorizer,
        User("joe"),
    )
    with pytest.raises(ExpressionError, match="Syntax error"):
        evaluate("object..a", data, authorizer, ADMIN)


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ({}, True),
        ({"resources": ["*"]}, True),
        ({"resources": ["*/*"]}, True),
        ({"resources": ["configmaps/*"]}, True),
        ({"resources": ["configmaps/status"]}, False),
        ({"operations": ["*"]}, True),
        ({"operations": ["DELETE"]}, False),
        ({"apiGroups": ["apps"]}, False),
        ({"apiVersions": ["v2"]}, False),
        ({"scope": "Namespaced"}, True),
        ({"scope": "Cluster"}, False),
        ({"resourceNames": ["c"]}, True),
        ({"resourceNames": ["d"]}, False),
    ],
)
def test_rules(rule: dict[str, Any], want: bool) -> None:
    from fastkube.api import resources

    attributes = AdmissionAttributes("CREATE", resources.parse("v1/configmaps"), "", "default", "c", {}, None, ADMIN)
    assert any_rule([{**RULE, **rule}], attributes) is want


def test_equivalent_versions_match() -> None:
    from fastkube.api import resources

    attributes = AdmissionAttributes("CREATE", resources.parse("autoscaling/v2/horizontalpodautoscalers"), "", "default", "h", {}, None, ADMIN)
    rule = {"apiGroups": ["autoscaling"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["horizontalpodautoscalers"]}
    assert any_rule([rule], attributes) and not any_rule([rule], attributes, equivalent=False)
