"""What objects use, in quota's terms: pure functions from objects to {resource name: nano units} (k8s.io/kubernetes/pkg/quota/v1/evaluator/core).

All amounts are exact integers of nano units (api.quantity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastkube.api.quantity import NANO, nanos
from fastkube.api.resources import Resource

Object = dict[str, Any]
Amounts = dict[str, int]

COMPUTE = ("cpu", "memory", "ephemeral-storage")
_SHORT = {"pods", "services", "configmaps", "secrets", "replicationcontrollers", "resourcequotas", "persistentvolumeclaims"}


def add(a: Amounts, b: Amounts) -> Amounts:
    return {k: a.get(k, 0) + b.get(k, 0) for k in {**a, **b}}


def subtract(a: Amounts, b: Amounts) -> Amounts:
    return {k: a.get(k, 0) - b.get(k, 0) for k in {**a, **b}}


def greatest(a: Amounts, b: Amounts) -> Amounts:
    return {k: max(a.get(k, 0), b.get(k, 0)) for k in {**a, **b}}


def pod_amounts(spec: Object, field: str) -> Amounts:
    """The `requests` or `limits` of a whole pod: containers and sidecars together, init containers one after the other, overhead, pod-level ones first."""
    running: Amounts = {}
    for container in spec.get("containers") or ():
        running = add(running, _amounts(container, field))
    sidecars: Amounts = {}
    starting: Amounts = {}
    for container in spec.get("initContainers") or ():
        own = _amounts(container, field)
        if container.get("restartPolicy") == "Always":
            running, sidecars = add(running, own), add(sidecars, own)
            starting = greatest(starting, sidecars)
        else:
            starting = greatest(starting, add(sidecars, own))
    total = greatest(running, starting)
    total.update({k: v for k, v in _amounts(spec, field).items() if k in ("cpu", "memory") or k.startswith("hugepages-")})
    for name, text in (spec.get("overhead") or {}).items():
        if field == "requests" or name in total:
            total[name] = total.get(name, 0) + nanos(text)
    return total


def _amounts(holder: Object, field: str) -> Amounts:
    return {name: nanos(text) for name, text in ((holder.get("resources") or {}).get(field) or {}).items()}


def is_extended(name: str) -> bool:
    """example.com/gpu: neither native nor of kubernetes.io."""
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def count_name(resource: Resource) -> str:
    return f"count/{resource.plural}.{resource.group}" if resource.group else f"count/{resource.plural}"


def of_pod(pod: Object) -> Amounts:
    usage = {"count/pods": NANO}
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return usage
    usage["pods"] = NANO
    for name, amount in pod_amounts(pod["spec"], "requests").items():
        if name in COMPUTE or name.startswith("hugepages-"):
            usage[name] = usage[f"requests.{name}"] = amount
        elif is_extended(name):
            usage[f"requests.{name}"] = amount
    for name, amount in pod_amounts(pod["spec"], "limits").items():
        if name in COMPUTE:
            usage[f"limits.{name}"] = amount
    return usage


def of_service(service: Object) -> Amounts:
    spec = service["spec"]
    usage = {"count/services": NANO, "services": NANO}
    ports = spec.get("ports") or ()
    if spec.get("type") == "NodePort":
        usage["services.nodeports"] = len(ports) * NANO
    elif spec.get("type") == "LoadBalancer":
        allocated = len(ports) if spec.get("allocateLoadBalancerNodePorts") is not False else sum(1 for p in ports if p.get("nodePort"))
        usage |= {"services.loadbalancers": NANO, "services.nodeports": allocated * NANO}
    return usage


def of_claim(claim: Object) -> Amounts:
    usage = {"count/persistentvolumeclaims": NANO, "persistentvolumeclaims": NANO}
    name = (claim["metadata"].get("annotations") or {}).get("volume.beta.kubernetes.io/storage-class") or claim["spec"].get("storageClassName")
    text = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    if name:
        usage[f"{name}.storageclass.storage.k8s.io/persistentvolumeclaims"] = NANO
    if text:
        usage["requests.storage"] = nanos(text)
        if name:
            usage[f"{name}.storageclass.storage.k8s.io/requests.storage"] = nanos(text)
    return usage


_OWN: dict[tuple[str, str], Callable[[Object], Amounts]] = {("", "pods"): of_pod, ("", "services"): of_service, ("", "persistentvolumeclaims"): of_claim}


def evaluator(resource: Resource) -> Callable[[Object], Amounts]:
    """What tells the usage of an object of `resource`; of most it is just their number."""
    own = _OWN.get((resource.group, resource.plural))
    if own:
        return own
    usage = {count_name(resource): NANO}
    if not resource.group and resource.plural in _SHORT:
        usage[resource.plural] = NANO
    return lambda obj: usage


def governed(name: str) -> tuple[str, str] | None:
    """(group, plural) of the objects that a quota's resource name counts; None when no such thing is counted."""
    if name.startswith("count/"):
        plural, _, group = name[6:].partition(".")
        return group, plural
    if name in _SHORT:
        return "", name
    if name.startswith("services."):
        return "", "services"
    if name == "requests.storage" or ".storageclass.storage.k8s.io/" in name:
        return "", "persistentvolumeclaims"
    bare = name.removeprefix("requests.").removeprefix("limits.")
    if bare in COMPUTE or bare.startswith("hugepages-") or (name.startswith("requests.") and is_extended(bare)):
        return "", "pods"
    return None


# -- scopes -----------------------------------------------------------------------------------------------------------------------------------


def in_scope(spec: Object, obj: Object) -> bool:
    """Whether a ResourceQuota with `spec` looks at `obj`: all its scopes match (they select pods, or claims by attributes class)."""
    return all(_matches(s, "Exists", (), obj) for s in spec.get("scopes") or ()) and all(
        _matches(e.get("scopeName", ""), e.get("operator", ""), e.get("values") or (), obj)
        for e in (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    )


def _matches(scope: str, operator: str, values: Iterable[str], obj: Object) -> bool:
    spec = obj.get("spec") or {}
    if scope == "VolumeAttributesClass":
        return "containers" not in spec and _holds(spec.get("volumeAttributesClassName"), operator, values)
    if "containers" not in spec:
        return False
    if scope == "PriorityClass":
        return _holds(spec.get("priorityClassName"), operator, values)
    if scope in ("Terminating", "NotTerminating"):
        return (spec.get("activeDeadlineSeconds") is not None) == (scope == "Terminating")
    if scope in ("BestEffort", "NotBestEffort"):
        return _best_effort(spec) == (scope == "BestEffort")
    return scope == "CrossNamespacePodAffinity" and _reaches_out(spec)


def _holds(value: str | None, operator: str, values: Iterable[str]) -> bool:
    if operator == "In":
        return value is not None and value != "" and value in values
    if operator == "NotIn":
        return not value or value not in values
    return bool(value) if operator == "Exists" else not value


def _best_effort(spec: Object) -> bool:
    holders = (spec, *(spec.get("containers") or ()), *(spec.get("initContainers") or ()))
    return not any(_amounts(h, field).get(name) for h in holders for field in ("requests", "limits") for name in ("cpu", "memory"))


def _reaches_out(spec: Object) -> bool:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        terms = [
            *(rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ()),
            *(t.get("podAffinityTerm") or {} for t in rules.get("preferredDuringSchedulingIgnoredDuringExecution") or ()),
        ]
        if any(t.get("namespaces") or t.get("namespaceSelector") is not None for t in terms):
            return True
    return False


def missing_compute(spec: Object, hard: Iterable[str]) -> dict[str, list[str]]:
    """Resource name of `hard` -> containers that do not say how much of it they take (a quota on it demands that all do)."""
    missing: dict[str, list[str]] = {}
    pod_level = {f"{field}.{name}" for field in ("requests", "limits") for name in _amounts(spec, field)}
    for name in hard:
        field, _, bare = name.partition(".")
        if not bare and name in COMPUTE:
            field, bare = "requests", name
        if field not in ("requests", "limits") or bare not in COMPUTE or f"{field}.{bare}" in pod_level:
            continue
        for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
            if bare not in _amounts(container, field):
                missing.setdefault(name, []).append(container["name"])
    return missing
