"""Scheduling workloads from workloads.yaml: their nodes, namespaces and pods as API objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]


@dataclass(slots=True)
class Workload:
    name: str
    nodes: int
    measured: int
    floor: int
    init: int = 0
    zones: int = 3
    namespaces: int = 1
    tainted: int = 0
    pod: Object = field(default_factory=dict)
    init_pod: Object | None = None

    def scaled(self, factor: float) -> Workload:
        """The same with fewer pods (not nodes): for quick runs."""
        return Workload(**{f: getattr(self, f) for f in self.__slots__} | {"init": int(self.init * factor), "measured": int(self.measured * factor)})

    def namespace_objects(self) -> Iterator[Object]:
        for n in range(self.namespaces):
            yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"bench-{n}", "labels": {"team": "devops"}}}

    def node_objects(self) -> Iterator[Object]:
        resources = {"cpu": "4", "memory": "32Gi", "pods": "110"}
        for n in range(self.nodes):
            labels = {"kubernetes.io/hostname": f"node-{n}", "topology.kubernetes.io/zone": f"zone{n % self.zones + 1}"}
            taints = [{"key": "foo", "effect": "NoSchedule"}] if n < self.tainted else []
            status = {"capacity": resources, "allocatable": resources, "conditions": [{"type": "Ready", "status": "True"}]}
            yield {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{n}", "labels": labels}, "spec": {"taints": taints}, "status": status}

    def pod_objects(self, init: bool) -> Iterator[Object]:
        """Those bound before (`init`) or the measured ones."""
        kind = self.pod if not init or self.init_pod is None else self.init_pod
        for i in range(self.init if init else self.measured):
            yield self._pod(f"{'init' if init else 'pod'}-{i}", i, kind)

    def _pod(self, name: str, i: int, kind: Object) -> Object:
        requests = {"cpu": kind.get("cpu", "100m"), "memory": "500Mi"}
        spec: Object = {"containers": [{"name": "pause", "image": "pause:3.10", "resources": {"requests": requests, "limits": requests}}]}
        if "affinity" in kind:
            spec["affinity"] = kind["affinity"]
        if kind.get("pin"):
            fields = [{"key": "metadata.name", "operator": "In", "values": [f"node-{i % self.nodes}"]}]
            spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}}}
        if "spread" in kind:
            spec["topologySpreadConstraints"] = kind["spread"]
        if "grace" in kind:
            spec["terminationGracePeriodSeconds"] = kind["grace"]
        if "volumes" in kind:
            spec["volumes"] = kind["volumes"]
        if "priority" in kind:
            spec["priorityClassName"] = f"bench-{kind['priority']}"
            spec["priority"] = kind["priority"]
        meta = {"name": name, "namespace": f"bench-{i % self.namespaces}", "labels": kind.get("labels", {})}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def load() -> dict[str, Workload]:
    rows = yaml.safe_load((Path(__file__).parent / "workloads.yaml").read_text())
    return {row["name"]: Workload(**row) for row in rows}
