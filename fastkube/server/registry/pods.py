"""What pods have beyond the common verbs: binding, eviction, ephemeralcontainers, resize."""

from __future__ import annotations

from typing import Any

from fastkube.api import errors, resources, selectors
from fastkube.api.errors import ApiError
from fastkube.runtime import clock
from fastkube.server.reader import Reader
from fastkube.server.registry.objects import Call, DeleteOptions, Object, Objects, Written

BUDGETS = resources.parse("policy/v1/poddisruptionbudgets")
DISRUPTED_MAX = 2000  # pods that a budget holds as being evicted, not yet seen by its controller


async def bind(objects: Objects, call: Call, binding: Object) -> None:
    """pods/binding: give the pod its node, once (upstream's BindingREST). ApiError 404, 409, 422."""
    target = binding.get("target") or {}
    problems = []
    if target.get("kind") not in (None, "", "Node"):
        problems.append(errors.not_supported("target.kind", target["kind"], ["Node", "<empty>"]))
    if not target.get("name"):
        problems.append(errors.required("target.name"))
    if problems:
        raise errors.invalid("Binding", "", call.name, problems)
    node = target["name"]
    metadata = binding.get("metadata") or {}

    def make(pod: Object) -> Object:
        if pod["metadata"].get("deletionTimestamp"):
            raise errors.conflict("pods/binding", "", call.name, f"pod {call.name} is being deleted, cannot be assigned to a host")
        if pod["spec"].get("nodeName"):
            raise errors.conflict("pods/binding", "", call.name, f'pod {call.name} is already assigned to node "{pod["spec"]["nodeName"]}"')
        if pod["spec"].get("schedulingGates"):
            raise errors.conflict("pods/binding", "", call.name, f"pod {call.name} has non-empty .spec.schedulingGates")
        bound = {**pod, "spec": {**pod["spec"], "nodeName": node}, "metadata": {**pod["metadata"]}}
        if metadata.get("annotations"):
            bound["metadata"]["annotations"] = {**(pod["metadata"].get("annotations") or {}), **metadata["annotations"]}
        if metadata.get("labels"):
            bound["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), **metadata["labels"]}
        status = {**(pod.get("status") or {})}
        condition = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": clock.rfc3339()}
        status["conditions"] = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"] + [condition]
        bound["status"] = status
        return bound

    call.unconditional = True
    await objects.update(call, make, prepare=_keep_all, validate=_no_problems, uid=metadata.get("uid") or "")


def _keep_all(obj: Object, old: Object) -> None:
    """The server made the object itself: nothing to put back."""


def _no_problems(obj: Object, old: Object) -> list[Any]:
    return []


def prepare_ephemeralcontainers(obj: Object, old: Object) -> None:
    """An update through /ephemeralcontainers: nothing but spec.ephemeralContainers is the new one's."""
    spec = {k: v for k, v in old["spec"].items() if k != "ephemeralContainers"}
    if obj["spec"].get("ephemeralContainers"):
        spec["ephemeralContainers"] = obj["spec"]["ephemeralContainers"]
    _restore(obj, old, spec)


def prepare_resize(obj: Object, old: Object) -> None:
    """An update through /resize: of the spec only resources and resize policies of containers are the new one's."""
    spec = {**old["spec"]}
    for key in ("containers", "initContainers"):
        wanted = {c.get("name"): c for c in obj["spec"].get(key) or ()}
        if key in spec:
            spec[key] = [_resized(c, wanted.get(c["name"], c)) for c in spec[key]]
    if "resources" in obj["spec"]:
        spec["resources"] = obj["spec"]["resources"]
    _restore(obj, old, spec)


def _resized(container: Object, wanted: Object) -> Object:
    out = {**container}
    for key in ("resources", "resizePolicy"):
        if key in wanted:
            out[key] = wanted[key]
        else:
            out.pop(key, None)
    return out


def _restore(obj: Object, old: Object, spec: Object) -> None:
    kept = obj["metadata"]
    obj["spec"], obj["status"] = spec, old.get("status") or {}
    obj["metadata"] = {**old["metadata"], **{k: kept[k] for k in ("managedFields", "resourceVersion") if k in kept}}
    if spec != old["spec"]:
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


async def evict(objects: Objects, reader: Reader, call: Call, budget_call: Any, eviction: Object, options: DeleteOptions) -> Written | None:
    """pods/eviction: a deletion that the pod's disruption budgets must allow (upstream's EvictionREST). ApiError 404, 409, 429, 500.

    `budget_call(name)` gives the Call under which a budget's status is written.
    """
    pod = reader.get(resources.parse("v1/pods"), call.namespace, call.name)
    if pod is None:
        raise errors.not_found("pods", "", call.name)
    if not _exempt(pod):
        budgets = _budgets_of(reader, pod)
        if len(budgets) > 1:
            raise errors.internal("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")
        if budgets:
            await _take(objects, budget_call(budgets[0]["metadata"]["name"]), budgets[0], call, pod)
    return await objects.delete(call, options)


def _exempt(pod: Object) -> bool:
    """Pods that no budget protects: over, not begun, or going already."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending") or bool(pod["metadata"].get("deletionTimestamp"))


def _ready(pod: Object) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in (pod.get("status") or {}).get("conditions") or ())


def _budgets_of(reader: Reader, pod: Object) -> list[Object]:
    labels = pod["metadata"].get("labels") or {}
    found = []
    for budget in reader.list(BUDGETS, pod["metadata"]["namespace"]):
        selector = budget["spec"].get("selector")
        if selector is not None and selectors.from_object(selector).matches(labels):
            found.append(budget)
    return found


async def _take(objects: Objects, budget_call: Call, budget: Object, call: Call, pod: Object) -> None:
    """One of the budget's allowed disruptions; 429 when there is none."""
    name = budget["metadata"]["name"]

    def make(stored: Object) -> Object:
        status = dict(stored.get("status") or {})
        metadata = dict(stored["metadata"])
        allowed = status.get("disruptionsAllowed", 0)
        healthy_enough = status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) and status.get("desiredHealthy", 0) > 0
        policy = (stored["spec"]).get("unhealthyPodEvictionPolicy")
        if not _ready(pod) and (policy == "AlwaysAllow" or healthy_enough):
            return {**stored, "metadata": metadata}
        if status.get("observedGeneration", 0) < metadata.get("generation", 0):
            raise _later(name, "", 10)
        if allowed < 0:
            raise errors.forbidden("poddisruptionbudgets", "policy", name, "pdb disruptions allowed is negative")
        disrupted = dict(status.get("disruptedPods") or {})
        if len(disrupted) > DISRUPTED_MAX:
            raise errors.forbidden("poddisruptionbudgets", "policy", name, "DisruptedPods map too big - too many evictions not confirmed by PDB controller")
        if allowed == 0:
            text = f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has {status.get('currentHealthy', 0)} currently"
            raise _later(name, text, 0)
        status["disruptionsAllowed"] = allowed - 1
        disrupted[call.name] = clock.rfc3339()
        status["disruptedPods"] = disrupted
        return {**stored, "metadata": metadata, "status": status}

    budget_call.dry_run, budget_call.unconditional = call.dry_run, True
    await objects.update(budget_call, make, prepare=_keep_all, validate=_no_problems)


def _later(name: str, why: str, seconds: int) -> ApiError:
    cause = {"reason": "DisruptionBudget", "message": why or f"The disruption budget {name} is still being processed by the server."}
    details: Object = {"causes": [cause]}
    if seconds:
        details["retryAfterSeconds"] = seconds
    return ApiError(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.", details)
