"""Why a node was refused, as one byte: which plugin said so, in upstream's words, and whether taking pods off the node could help."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    plugin: str
    text: str
    hopeless: bool  # UnschedulableAndUnresolvable: no preemption helps


POSSIBLE = 0
UNSCHEDULABLE, TAINTED, NODE_AFFINITY, PORTS, FIT = 1, 2, 3, 4, 5
DISK_CONFLICT, ACCESS_MODE, VOLUME_LIMITS, VOLUME_NODE, VOLUME_BIND, VOLUME_ZONE, NO_PV = 6, 7, 8, 9, 10, 11, 12
SPREAD, SPREAD_LABEL, POD_AFFINITY, POD_ANTI_AFFINITY, EXISTING_ANTI_AFFINITY = 14, 15, 16, 17, 18
NOT_PINNED, NO_NODE = 254, 255  # the pod names its nodes and this is none of them; a row without a node

REASONS: dict[int, Reason] = {
    UNSCHEDULABLE: Reason("NodeUnschedulable", "node(s) were unschedulable", True),
    TAINTED: Reason("TaintToleration", "node(s) had untolerated taint(s)", True),
    NODE_AFFINITY: Reason("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", True),
    PORTS: Reason("NodePorts", "node(s) didn't have free ports for the requested pod ports", False),
    DISK_CONFLICT: Reason("VolumeRestrictions", "node(s) had no available disk", False),
    ACCESS_MODE: Reason("VolumeRestrictions", "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode", False),
    VOLUME_LIMITS: Reason("NodeVolumeLimits", "node(s) exceed max volume count", False),
    VOLUME_NODE: Reason("VolumeBinding", "node(s) didn't match PersistentVolume's node affinity", True),
    VOLUME_BIND: Reason("VolumeBinding", "node(s) didn't find available persistent volumes to bind", True),
    NO_PV: Reason("VolumeBinding", "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", True),
    VOLUME_ZONE: Reason("VolumeZone", "node(s) had no available volume zone", True),
    SPREAD: Reason("PodTopologySpread", "node(s) didn't match pod topology spread constraints", False),
    SPREAD_LABEL: Reason("PodTopologySpread", "node(s) didn't match pod topology spread constraints (missing required label)", True),
    POD_AFFINITY: Reason("InterPodAffinity", "node(s) didn't match pod affinity rules", True),
    POD_ANTI_AFFINITY: Reason("InterPodAffinity", "node(s) didn't match pod anti-affinity rules", False),
    EXISTING_ANTI_AFFINITY: Reason("InterPodAffinity", "node(s) didn't satisfy existing pods anti-affinity rules", False),
    NOT_PINNED: Reason("NodeAffinity", "node(s) didn't satisfy plugin(s) [NodeAffinity]", True),
}
