"""What pods are given as they are made or bound: Priority, DefaultTolerationSeconds, RuntimeClass, PodTopologyLabels."""

from __future__ import annotations

from typing import Any

from fastkube.api import resources
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden, is_a
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

PRIORITY_CLASSES = resources.parse("scheduling.k8s.io/v1/priorityclasses")
RUNTIME_CLASSES = resources.parse("node.k8s.io/v1/runtimeclasses")
NODES = resources.parse("v1/nodes")
TOLERATION_SECONDS = 300
PREEMPT = "PreemptLowerPriority"


class Priority(Plugin):
    """Resolves priorityClassName into priority and preemptionPolicy; one global default class at most."""

    name = "Priority"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._default_version = -1
        self._default: Object | None = None

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation in (CREATE, UPDATE) and not subresource and (is_a(resource, "", "pods") or resource is PRIORITY_CLASSES)

    def admit(self, attributes: AdmissionAttributes) -> None:
        pod = attributes.obj
        if attributes.resource is PRIORITY_CLASSES or pod is None:
            return
        spec = pod["spec"]
        if attributes.operation == UPDATE:
            old = attributes.old["spec"] if attributes.old else {}
            if spec.get("priority") is None and old.get("priority") is not None:
                spec["priority"] = old["priority"]
            if spec.get("preemptionPolicy") is None and old.get("preemptionPolicy") is not None:
                spec["preemptionPolicy"] = old["preemptionPolicy"]
            return
        priority, policy = self._resolve(attributes, spec)
        if spec.get("priority") not in (None, priority):
            raise forbidden(
                attributes,
                f"the integer value of priority ({spec['priority']}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name",
            )
        spec["priority"] = priority
        if spec.get("preemptionPolicy") not in (None, policy):
            raise forbidden(
                attributes,
                f"the string value of PreemptionPolicy ({spec['preemptionPolicy']}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name",
            )
        spec["preemptionPolicy"] = policy

    def validate(self, attributes: AdmissionAttributes) -> None:
        new = attributes.obj
        if attributes.resource is not PRIORITY_CLASSES or new is None or not new.get("globalDefault"):
            return
        default = self._default_class()
        if default is not None and default["metadata"]["name"] != new["metadata"]["name"]:
            raise forbidden(attributes, f"PriorityClass {default['metadata']['name']} is already marked as default. Only one default can exist")

    def _resolve(self, attributes: AdmissionAttributes, spec: Object) -> tuple[int, str]:
        if not spec.get("priorityClassName"):
            default = self._default_class()
            if default is None:
                return 0, PREEMPT
            spec["priorityClassName"] = default["metadata"]["name"]
            return default.get("value", 0), default.get("preemptionPolicy") or PREEMPT
        found = self._reader.get(PRIORITY_CLASSES, None, spec["priorityClassName"])
        if found is None:
            raise forbidden(attributes, f"no PriorityClass with name {spec['priorityClassName']} was found")
        return found.get("value", 0), found.get("preemptionPolicy") or PREEMPT

    def _default_class(self) -> Object | None:
        version = self._reader.version(PRIORITY_CLASSES)
        if version != self._default_version:
            defaults = [c for c in self._reader.list(PRIORITY_CLASSES) if c.get("globalDefault")]
            self._default = min(defaults, key=lambda c: c.get("value", 0), default=None)
            self._default_version = version
        return self._default


class DefaultTolerationSeconds(Plugin):
    """Pods stay five minutes on a node that is not ready or not reachable, unless they say otherwise."""

    name = "DefaultTolerationSeconds"
    _KEYS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation in (CREATE, UPDATE) and not subresource and is_a(resource, "", "pods")

    def admit(self, attributes: AdmissionAttributes) -> None:
        if attributes.obj is None:
            return
        spec = attributes.obj["spec"]
        tolerations = spec.get("tolerations") or []
        missing = [key for key in self._KEYS if not any(_tolerates_no_execute(t, key) for t in tolerations)]
        if missing:
            spec["tolerations"] = [
                *tolerations,
                *({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS} for key in missing),
            ]


def _tolerates_no_execute(toleration: Object, key: str) -> bool:
    return toleration.get("key") in (key, None, "") and toleration.get("effect") in ("NoExecute", None, "")


class RuntimeClass(Plugin):
    """A pod with a runtimeClassName gets the class's overhead and scheduling constraints (KEP-688)."""

    name = "RuntimeClass"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and not subresource and is_a(resource, "", "pods")

    def admit(self, attributes: AdmissionAttributes) -> None:
        spec = attributes.obj["spec"] if attributes.obj else {}
        found = self._class(attributes, spec)
        if found is None:
            return
        overhead = (found.get("overhead") or {}).get("podFixed")
        if overhead is not None:
            if spec.get("overhead") not in (None, overhead):
                raise forbidden(attributes, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
            spec["overhead"] = dict(overhead)
        scheduling = found.get("scheduling") or {}
        selector = scheduling.get("nodeSelector") or {}
        if selector:
            own = spec.get("nodeSelector") or {}
            for key, value in selector.items():
                if own.get(key, value) != value:
                    raise forbidden(attributes, f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own[key]}")
            spec["nodeSelector"] = {**own, **selector}
        added: list[Any] = [t for t in scheduling.get("tolerations") or () if t not in (spec.get("tolerations") or ())]
        if added:
            spec["tolerations"] = [*(spec.get("tolerations") or ()), *added]

    def validate(self, attributes: AdmissionAttributes) -> None:
        spec = attributes.obj["spec"] if attributes.obj else {}
        found = self._class(attributes, spec)
        overhead = ((found or {}).get("overhead") or {}).get("podFixed")
        if spec.get("overhead") and not overhead:
            raise forbidden(attributes, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")

    def _class(self, attributes: AdmissionAttributes, spec: Object) -> Object | None:
        name = spec.get("runtimeClassName")
        if not name:
            return None
        found = self._reader.get(RUNTIME_CLASSES, None, name)
        if found is None:
            raise forbidden(attributes, f'pod rejected: RuntimeClass "{name}" not found')
        return found


class PodTopologyLabels(Plugin):
    """A pod gets its node's zone and region as labels when it is bound, for the downward API (KEP-4742)."""

    name = "PodTopologyLabels"
    _KEYS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and is_a(resource, "", "pods") and subresource in ("", "binding")

    def admit(self, attributes: AdmissionAttributes) -> None:
        obj = attributes.obj or {}
        if attributes.subresource:
            target = obj.get("target") or {}
            name = target.get("name") if target.get("kind") in (None, "", "Node") else None
        else:
            name = obj["spec"].get("nodeName")
        node = self._reader.get(NODES, None, name) if name else None
        labels = ((node or {}).get("metadata") or {}).get("labels") or {}
        found = {key: labels[key] for key in self._KEYS if key in labels}
        if found:
            meta = obj.setdefault("metadata", {})
            meta["labels"] = {**(meta.get("labels") or {}), **found}
