"""Upstream's default FlowSchemas and PriorityLevelConfigurations (k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap), as objects to be stored."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

ANNOTATIONS = {"apf.kubernetes.io/autoupdate-spec": "true"}
ALL_RESOURCES = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
ALL_URLS = {"verbs": ["*"], "nonResourceURLs": ["*"]}


def _level(name: str, shares: int, lendable: int, queues: tuple[int, int, int] | None) -> Object:
    """`queues`: (number, hand size, length of each); None: what does not fit is rejected."""
    if queues is None:
        response: Object = {"type": "Reject"}
    else:
        response = {"type": "Queue", "queuing": {"queues": queues[0], "handSize": queues[1], "queueLengthLimit": queues[2]}}
    limited = {"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}
    return {"metadata": {"name": name, "annotations": dict(ANNOTATIONS)}, "spec": {"type": "Limited", "limited": limited}}


def priority_levels() -> list[Object]:
    exempt = {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}
    return [
        {"metadata": {"name": "exempt", "annotations": dict(ANNOTATIONS)}, "spec": exempt},
        _level("catch-all", 5, 0, None),
        _level("system", 30, 33, (64, 6, 50)),
        _level("node-high", 40, 25, (64, 6, 50)),
        _level("leader-election", 10, 0, (16, 4, 50)),
        _level("workload-high", 40, 50, (128, 6, 50)),
        _level("workload-low", 100, 90, (128, 6, 50)),
        _level("global-default", 20, 50, (128, 6, 50)),
    ]


def _groups(*names: str) -> list[Object]:
    return [{"kind": "Group", "group": {"name": n}} for n in names]


def _users(*names: str) -> list[Object]:
    return [{"kind": "User", "user": {"name": n}} for n in names]


def _accounts(namespace: str, *names: str) -> list[Object]:
    return [{"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": n}} for n in names]


def _resources(verbs: list[str], groups: list[str], plurals: list[str], namespaces: list[str] | None = None, cluster: bool = False) -> Object:
    rule: Object = {"verbs": verbs, "apiGroups": groups, "resources": plurals}
    if namespaces:
        rule["namespaces"] = namespaces
    if cluster:
        rule["clusterScope"] = True
    return rule


def _schema(name: str, level: str, precedence: int, distinguisher: str, rules: list[Object]) -> Object:
    spec: Object = {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules}
    if distinguisher:
        spec["distinguisherMethod"] = {"type": distinguisher}
    return {"metadata": {"name": name, "annotations": dict(ANNOTATIONS)}, "spec": spec}


def _rule(subjects: list[Object], resource_rules: list[Object] | None = None, url_rules: list[Object] | None = None) -> Object:
    rule: Object = {"subjects": subjects}
    if resource_rules:
        rule["resourceRules"] = resource_rules
    if url_rules:
        rule["nonResourceRules"] = url_rules
    return rule


def flow_schemas() -> list[Object]:
    everything = ([ALL_RESOURCES], [ALL_URLS])
    anybody = _groups("system:unauthenticated", "system:authenticated")
    lease = ["get", "create", "update"]
    probes = {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}
    leaders = [*_users("system:kube-controller-manager", "system:kube-scheduler"), *_accounts("kube-system", "*")]
    endpoints = [*_users("system:kube-controller-manager"), *_accounts("kube-system", "endpoint-controller", "endpointslicemirroring-controller")]
    node_high = [
        _resources(["*"], [""], ["nodes", "nodes/status"], cluster=True),
        _resources(["*"], ["coordination.k8s.io"], ["leases"], ["*"]),
    ]
    return [
        _schema("exempt", "exempt", 1, "", [_rule(_groups("system:masters"), *everything)]),
        _schema("probes", "exempt", 2, "", [_rule(anybody, None, [probes])]),
        _schema("system-leader-election", "leader-election", 100, "ByUser", [_rule(leaders, [_resources(lease, ["coordination.k8s.io"], ["leases"], ["*"])])]),
        _schema("endpoint-controller", "workload-high", 150, "ByUser", [_rule(endpoints, [_resources(lease, [""], ["endpoints"], ["*"])])]),
        _schema(
            "workload-leader-election", "leader-election", 200, "ByUser",
            [_rule(_accounts("kube-system", "*"), [_resources(lease, ["coordination.k8s.io"], ["leases"], ["*"])])],
        ),
        _schema("system-node-high", "node-high", 400, "ByUser", [_rule(_groups("system:nodes"), node_high)]),
        _schema("system-nodes", "system", 500, "ByUser", [_rule(_groups("system:nodes"), *everything)]),
        _schema("kube-controller-manager", "workload-high", 800, "ByNamespace", [_rule(_users("system:kube-controller-manager"), *everything)]),
        _schema("kube-scheduler", "workload-high", 800, "ByNamespace", [_rule(_users("system:kube-scheduler"), *everything)]),
        _schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", [_rule(_accounts("kube-system", "*"), *everything)]),
        _schema("service-accounts", "workload-low", 9000, "ByUser", [_rule(_groups("system:serviceaccounts"), *everything)]),
        _schema("global-default", "global-default", 9900, "ByUser", [_rule(anybody, *everything)]),
        _schema("catch-all", "catch-all", 10000, "ByUser", [_rule(anybody, *everything)]),
    ]  # fmt: skip
