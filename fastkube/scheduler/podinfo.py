"""What the scheduler reads of a pod, taken out once: its requests, and the parts of its spec that filters and scores look at.

Pods of one template share a `PodTemplate`: all filter work that does not depend on what nodes have given away is done once for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from fastkube.api import quantity

# What a container that asks nothing counts as when nodes are scored (upstream schedutil.DefaultMilliCPURequest and DefaultMemoryRequest).
SCORING_CPU_DEFAULT = 100
SCORING_MEMORY_DEFAULT = 200 * 1024 * 1024

Requests = dict[str, int]


@dataclass(slots=True, eq=False)
class PodTemplate:
    """The scheduling-relevant part of a pod's spec, shared by all pods alike."""

    signature: bytes
    requests: Requests  # CPU in millicores, all else in whole units
    scoring_cpu: int
    scoring_memory: int
    host_ports: tuple[tuple[str, str, int], ...]  # (ip, protocol, port)
    node_selector: dict[str, str]
    required_terms: list[dict[str, Any]] | None  # nodeSelectorTerms; None: no requirement
    preferred_terms: list[dict[str, Any]]
    tolerations: list[dict[str, Any]]
    images: tuple[str, ...]


@dataclass(slots=True, eq=False)
class PodInfo:
    """One pod. `template` is shared; `node` is where it is bound or assumed to be ("" when nowhere)."""

    key: str  # NAMESPACE/NAME
    uid: str
    resource_version: str
    template: PodTemplate
    priority: int
    scheduler_name: str
    node: str
    gated: bool
    deleting: bool
    never_preempts: bool
    condition: tuple[str, str, str] | None  # PodScheduled as it stands: (status, reason, message)
    created: str


def _amount(resource: str, text: Any) -> int:
    return quantity.milli(text) if resource == "cpu" else quantity.value(text)


def container_requests(container: dict[str, Any]) -> Requests:
    asked = (container.get("resources") or {}).get("requests") or {}
    return {name: _amount(name, text) for name, text in asked.items()}


def _plus(into: Requests, more: Requests) -> None:
    for name, amount in more.items():
        into[name] = into.get(name, 0) + amount


def pod_requests(spec: dict[str, Any], defaults: bool = False) -> Requests:
    """What a pod takes from a node: containers and sidecars together, or the largest moment of its init containers; plus overhead.

    With `defaults`, containers that ask no CPU or memory count as upstream counts them in scoring. Pod-level resources override the sums.
    Source: https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers
    """

    def of(container: dict[str, Any]) -> Requests:
        asked = container_requests(container)
        if defaults:
            asked.setdefault("cpu", SCORING_CPU_DEFAULT)
            asked.setdefault("memory", SCORING_MEMORY_DEFAULT)
        return asked

    total: Requests = {}
    for container in spec.get("containers") or ():
        _plus(total, of(container))
    sidecars: Requests = {}
    peak: Requests = {}
    for container in spec.get("initContainers") or ():
        asked = of(container)
        if container.get("restartPolicy") == "Always":
            _plus(sidecars, asked)
            asked = dict(sidecars)
        else:
            _plus(asked, sidecars)
        for name, amount in asked.items():
            peak[name] = max(peak.get(name, 0), amount)
    _plus(total, sidecars)
    for name, amount in peak.items():
        total[name] = max(total.get(name, 0), amount)
    for name, text in ((spec.get("resources") or {}).get("requests") or {}).items():
        total[name] = _amount(name, text)
    for name, text in (spec.get("overhead") or {}).items():
        total[name] = total.get(name, 0) + _amount(name, text)
    return total


def _host_ports(spec: dict[str, Any]) -> tuple[tuple[str, str, int], ...]:
    containers = [*(spec.get("containers") or ()), *(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")]
    return tuple(
        (p.get("hostIP") or "0.0.0.0", p.get("protocol") or "TCP", p["hostPort"]) for c in containers for p in c.get("ports") or () if p.get("hostPort")
    )


def template_signature(spec: dict[str, Any]) -> bytes:
    """Equal for specs that filters and scores cannot tell apart."""
    containers = [[c.get("resources"), c.get("ports"), c.get("image"), c.get("restartPolicy")] for c in spec.get("containers") or ()]
    inits = [[c.get("resources"), c.get("ports"), c.get("image"), c.get("restartPolicy")] for c in spec.get("initContainers") or ()]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity")
    parts = [containers, inits, spec.get("resources"), spec.get("overhead"), spec.get("nodeSelector"), affinity, spec.get("tolerations")]
    return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)


def parse_template(spec: dict[str, Any], signature: bytes) -> PodTemplate:
    scoring = pod_requests(spec, defaults=True)
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return PodTemplate(
        signature=signature,
        requests=pod_requests(spec),
        scoring_cpu=scoring.get("cpu", 0),
        scoring_memory=scoring.get("memory", 0),
        host_ports=_host_ports(spec),
        node_selector=spec.get("nodeSelector") or {},
        required_terms=None if required is None else required.get("nodeSelectorTerms") or [],
        preferred_terms=node_affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or [],
        tolerations=spec.get("tolerations") or [],
        images=tuple(c["image"] for c in spec.get("containers") or () if c.get("image")),
    )


class Templates:
    """Interns templates by signature; the least recently used are forgotten beyond `templates_max`."""

    def __init__(self, templates_max: int = 4096) -> None:
        self.templates_max = templates_max
        self._by_signature: dict[bytes, PodTemplate] = {}

    def of(self, spec: dict[str, Any]) -> PodTemplate:
        signature = template_signature(spec)
        template = self._by_signature.pop(signature, None)
        if template is None:
            template = parse_template(spec, signature)
            if len(self._by_signature) >= self.templates_max:
                self._by_signature.pop(next(iter(self._by_signature)))
        self._by_signature[signature] = template
        return template

    def pod(self, obj: dict[str, Any]) -> PodInfo:
        meta, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
        condition = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
        return PodInfo(
            key=f"{meta['namespace']}/{meta['name']}",
            uid=meta.get("uid", ""),
            resource_version=meta.get("resourceVersion", ""),
            template=self.of(spec),
            priority=spec.get("priority") or 0,
            scheduler_name=spec.get("schedulerName") or "default-scheduler",
            node=spec.get("nodeName") or "",
            gated=bool(spec.get("schedulingGates")),
            deleting="deletionTimestamp" in meta,
            never_preempts=spec.get("preemptionPolicy") == "Never",
            condition=condition and (condition.get("status", ""), condition.get("reason", ""), condition.get("message", "")),
            created=meta.get("creationTimestamp", ""),
        )

    def pod_summary(self, obj: dict[str, Any]) -> dict[str, Any]:
        """An informer's transform: all that the scheduler keeps of a pod (its name, for the informer, and the PodInfo)."""
        meta = obj["metadata"]
        kept = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion") if k in meta}
        return {"metadata": kept, "info": self.pod(obj)}
