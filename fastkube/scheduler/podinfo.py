"""What the scheduler reads of a pod, taken out once: its requests, and the parts of its spec that filters and scores look at.

Pods of one template share a `PodTemplate`: all filter work that does not depend on what nodes have given away is done once for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from fastkube.api import quantity
from fastkube.scheduler.relations import Labels, Relations, RelationsCache

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
    containers: int  # init containers too
    claims: tuple[str, ...] | None  # None: no volume that the scheduler looks at
    volumes: list[dict[str, Any]]  # those volumes
    asks: tuple[Any, ...]  # equal where requests are
    locality: bytes  # equal where node-local filters and scores (all but room, ports and volumes) are


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
    started: str  # status.startTime, "" before
    labels: Labels
    label_key: bytes  # equal for pods of equal namespace and labels
    relations: Relations | None
    owner: tuple[str, str] | None  # (kind, name) of the controller
    pins: tuple[str, ...] | None  # the only nodes it may run on, by name (DaemonSet pods)
    nominated: str  # status.nominatedNodeName

    @property
    def namespace(self) -> str:
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]


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


# Volumes that a filter looks at; all others are the node's business.
SCHEDULED_VOLUMES = ("persistentVolumeClaim", "ephemeral", "gcePersistentDisk", "awsElasticBlockStore", "iscsi", "rbd", "csi")


def _volumes(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in spec.get("volumes") or () if any(kind in v for kind in SCHEDULED_VOLUMES)]


def pinned(spec: dict[str, Any]) -> tuple[tuple[str, ...] | None, list[dict[str, Any]] | None]:
    """(the nodes a pod names by matchFields in every term, None when it does not; its required terms without that).

    DaemonSet pods differ in nothing but this: taken out, they share one template.
    """
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return None, None
    terms = required.get("nodeSelectorTerms") or []
    if len(terms) != 1:
        return None, terms
    fields: list[dict[str, Any]] = terms[0].get("matchFields") or []
    if len(fields) != 1 or fields[0].get("key") != "metadata.name" or fields[0].get("operator") != "In" or len(fields[0].get("values") or ()) != 1:
        return None, terms
    expressions = terms[0].get("matchExpressions")
    return tuple(fields[0]["values"]), [{"matchExpressions": expressions}] if expressions else None


def template_signature(namespace: str, name: str, spec: dict[str, Any], terms: list[dict[str, Any]] | None) -> bytes:
    """Equal for specs that filters and scores cannot tell apart."""
    containers = [[c.get("resources"), c.get("ports"), c.get("image"), c.get("restartPolicy")] for c in spec.get("containers") or ()]
    inits = [[c.get("resources"), c.get("ports"), c.get("image"), c.get("restartPolicy")] for c in spec.get("initContainers") or ()]
    preferred = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("preferredDuringSchedulingIgnoredDuringExecution")
    volumes = _volumes(spec)
    own = [namespace, name if any("ephemeral" in v for v in volumes) else ""] if volumes else None
    parts = [containers, inits, spec.get("resources"), spec.get("overhead"), spec.get("nodeSelector"), terms, preferred, spec.get("tolerations"), volumes, own]
    return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)


def parse_template(name: str, spec: dict[str, Any], signature: bytes, terms: list[dict[str, Any]] | None) -> PodTemplate:
    scoring = pod_requests(spec, defaults=True)
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    volumes = _volumes(spec)
    claims = [v["persistentVolumeClaim"].get("claimName", "") if "persistentVolumeClaim" in v else f"{name}-{v.get('name', '')}"
              for v in volumes if "persistentVolumeClaim" in v or "ephemeral" in v]  # fmt: skip
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    requests = pod_requests(spec)
    return PodTemplate(
        signature=signature,
        requests=requests,
        asks=(tuple(sorted(requests.items())), scoring.get("cpu", 0), scoring.get("memory", 0)),
        scoring_cpu=scoring.get("cpu", 0),
        scoring_memory=scoring.get("memory", 0),
        host_ports=_host_ports(spec),
        node_selector=spec.get("nodeSelector") or {},
        required_terms=terms,
        preferred_terms=node_affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or [],
        tolerations=spec.get("tolerations") or [],
        images=tuple(c["image"] for c in containers if c.get("image")),
        containers=len(containers),
        claims=tuple(claims) if volumes else None,
        volumes=volumes,
        locality=orjson.dumps(
            [
                spec.get("nodeSelector"), terms, node_affinity.get("preferredDuringSchedulingIgnoredDuringExecution"), spec.get("tolerations"),
                [c.get("image") for c in containers],
            ],
            option=orjson.OPT_SORT_KEYS,
        ),
    )  # fmt: skip


class Templates:
    """Interns templates by signature; the least recently used are forgotten beyond `templates_max`."""

    LABELS_MAX = 65536

    def __init__(self, templates_max: int = 4096) -> None:
        self.templates_max = templates_max
        self._by_signature: dict[bytes, PodTemplate] = {}
        self._relations = RelationsCache()
        self._labels: dict[bytes, tuple[bytes, Labels]] = {}

    def _template(self, namespace: str, name: str, spec: dict[str, Any], terms: list[dict[str, Any]] | None) -> PodTemplate:
        signature = template_signature(namespace, name, spec, terms)
        template = self._by_signature.pop(signature, None)
        if template is None:
            template = parse_template(name, spec, signature, terms)
            if len(self._by_signature) >= self.templates_max:
                self._by_signature.pop(next(iter(self._by_signature)))
        self._by_signature[signature] = template
        return template

    def _interned(self, namespace: str, labels: Labels) -> tuple[bytes, Labels]:
        key = orjson.dumps([namespace, labels], option=orjson.OPT_SORT_KEYS)
        known = self._labels.get(key)
        if known is None:
            if len(self._labels) >= self.LABELS_MAX:
                self._labels.clear()
            known = self._labels[key] = (key, labels)
        return known

    def pod(self, obj: dict[str, Any]) -> PodInfo:
        meta, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
        namespace, name = meta["namespace"], meta["name"]
        condition = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
        owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), None)
        label_key, labels = self._interned(namespace, meta.get("labels") or {})
        relations = self._relations.of(namespace, labels, spec)
        pins, terms = pinned(spec)
        if pins and relations is not None and relations.spread:  # which nodes count for a spread depends on the whole of the terms
            terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return PodInfo(
            key=f"{namespace}/{name}",
            uid=meta.get("uid", ""),
            resource_version=meta.get("resourceVersion", ""),
            template=self._template(namespace, name, spec, terms),
            priority=spec.get("priority") or 0,
            scheduler_name=spec.get("schedulerName") or "default-scheduler",
            node=spec.get("nodeName") or "",
            gated=bool(spec.get("schedulingGates")),
            deleting="deletionTimestamp" in meta,
            never_preempts=spec.get("preemptionPolicy") == "Never",
            condition=condition and (condition.get("status", ""), condition.get("reason", ""), condition.get("message", "")),
            created=meta.get("creationTimestamp", ""),
            started=status.get("startTime", ""),
            labels=labels,
            label_key=label_key,
            relations=relations,
            owner=owner and (owner.get("kind", ""), owner.get("name", "")),
            pins=pins,
            nominated=status.get("nominatedNodeName") or "",
        )

    def pod_summary(self, obj: dict[str, Any]) -> dict[str, Any]:
        """An informer's transform: all that the scheduler keeps of a pod (its name, for the informer, and the PodInfo)."""
        meta = obj["metadata"]
        kept = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion") if k in meta}
        return {"metadata": kept, "info": self.pod(obj)}
