"""A profile: which plugins a scheduler name runs, what their scores weigh, how NodeResourcesFit scores. The defaults are upstream's."""

from __future__ import annotations

from dataclasses import dataclass, field

SCORE_WEIGHTS = {
    "TaintToleration": 3,
    "NodeAffinity": 2,
    "NodeResourcesFit": 1,
    "PodTopologySpread": 2,
    "InterPodAffinity": 2,
    "NodeResourcesBalancedAllocation": 1,
    "ImageLocality": 1,
}
FILTERS = (
    "NodeUnschedulable", "NodeName", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "VolumeRestrictions", "NodeVolumeLimits",
    "VolumeBinding", "VolumeZone", "PodTopologySpread", "InterPodAffinity",
)  # fmt: skip
OTHERS = ("SchedulingGates", "PrioritySort", "DefaultPreemption", "DefaultBinder", "DynamicResources")
PLUGINS = frozenset((*SCORE_WEIGHTS, *FILTERS, *OTHERS))


@dataclass(slots=True)
class Profile:
    scheduler_name: str = "default-scheduler"
    weights: dict[str, int] = field(default_factory=lambda: dict(SCORE_WEIGHTS))  # of the score plugins that run
    filters: frozenset[str] = frozenset(FILTERS)
    preemption: bool = True
    strategy: str = "LeastAllocated"  # or MostAllocated, RequestedToCapacityRatio
    resources: tuple[tuple[str, int], ...] = (("cpu", 1), ("memory", 1))  # that the strategy looks at, with their weights
    shape: tuple[tuple[int, int], ...] = ()  # RequestedToCapacityRatio: (utilization, score 0..100), by utilization
    spread_defaults: bool = True  # PodTopologySpread's system defaults

    @property
    def plain_fit(self) -> bool:
        return self.strategy == "LeastAllocated" and self.resources == (("cpu", 1), ("memory", 1))


DEFAULT = Profile()
