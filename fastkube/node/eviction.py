"""Node-pressure eviction: when memory or disk runs short, the node says so and ends pods, the least deserving first.

Pure: `thresholds` reads evictionHard, `pressed` says which signals are short, `rank` in which order pods go (upstream's: who uses more than it asked for, then
lower priority, then how much more). The driver ends one pod a round and looks again; a pressure is shown until it has been gone for
PRESSURE_SECONDS, so that the node's taints do not flap.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkube.node import machine, podspec
from fastkube.node.cri import Cri, CriError
from fastkube.node.model import LABEL_POD_UID, Termination
from fastkube.runtime import clock, logs

LOOK_SECONDS = 10.0
PRESSURE_SECONDS = 300.0

log = logs.get("eviction")

Object = dict[str, Any]

# signal -> (condition, resource in messages)
SIGNALS = {
    "memory.available": ("MemoryPressure", "memory"),
    "nodefs.available": ("DiskPressure", "ephemeral-storage"),
    "imagefs.available": ("DiskPressure", "ephemeral-storage"),
    "nodefs.inodesFree": ("DiskPressure", "inodes"),
    "imagefs.inodesFree": ("DiskPressure", "inodes"),
    "pid.available": ("PIDPressure", "pids"),
}
REASONS = {
    "MemoryPressure": (
        "KubeletHasInsufficientMemory",
        "kubelet has insufficient memory available",
        "KubeletHasSufficientMemory",
        "kubelet has sufficient memory available",
    ),
    "DiskPressure": ("KubeletHasDiskPressure", "kubelet has disk pressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("KubeletHasInsufficientPID", "kubelet has insufficient PID available", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
}


@dataclass(frozen=True, slots=True)
class Signal:
    available: float
    capacity: float


def thresholds(hard: Mapping[str, str], signals: Mapping[str, Signal]) -> dict[str, float]:
    """evictionHard in absolute numbers."""
    out = {}
    for name, text in hard.items():
        if name in signals:
            out[name] = signals[name].capacity * float(text[:-1]) / 100 if text.endswith("%") else podspec.amount(text)
    return out


def pressed(hard: Mapping[str, str], signals: Mapping[str, Signal]) -> list[str]:
    """The signals that are below their thresholds, memory first."""
    limits = thresholds(hard, signals)
    return [name for name in SIGNALS if name in limits and signals[name].available < limits[name]]


def rank(pods: list[Object], usage: Mapping[str, float], resource: str) -> list[Object]:
    """Pods in the order in which they go; critical ones never do. `usage`: of `resource`, by pod uid."""

    def key(pod: Object) -> tuple[bool, int, float]:
        asked = podspec.pod_requests(pod).get(resource, 0.0)
        over = usage.get(podspec.uid_of(pod), 0.0) - asked
        return over <= 0, pod["spec"].get("priority") or 0, -over

    return sorted((p for p in pods if not podspec.is_critical(p)), key=key)


def message(resource: str, threshold: float, available: float, used: float, asked: float) -> str:
    text = f"The node was low on resource: {resource}. Threshold quantity: {_quantity(threshold)}, available: {_quantity(available)}. "
    if used > asked:
        text += f"The pod was using {_quantity(used)}, request is {_quantity(asked)}, has larger consumption of {resource}. "
    return text


def _quantity(amount: float) -> str:
    return f"{int(amount) // 1024}Ki" if amount >= 1024 else str(int(amount))


def look(root: Path, images: Path) -> dict[str, Signal]:
    """The machine's signals now."""
    node, image = os.statvfs(root), os.statvfs(images)
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    return {
        "memory.available": Signal(machine.memory_available(), machine.memory_total()),
        "nodefs.available": Signal(node.f_bavail * node.f_frsize, node.f_blocks * node.f_frsize),
        "nodefs.inodesFree": Signal(node.f_favail, node.f_files),
        "imagefs.available": Signal(image.f_bavail * image.f_frsize, image.f_blocks * image.f_frsize),
        "imagefs.inodesFree": Signal(image.f_favail, image.f_files),
        "pid.available": Signal(pids - tasks, pids),
    }


class Eviction:
    """`pods()` gives those that run; `evict(pod, termination)` ends one; `free_disk()` makes room without ending any; `changed()` after a pressure came or went."""

    def __init__(
        self,
        hard: Mapping[str, str],
        cri: Cri,
        root: Path,
        pods: Callable[[], list[Object]],
        evict: Callable[[Object, Termination], None],
        free_disk: Callable[[], Any],
        changed: Callable[[], None],
    ) -> None:
        self.hard = hard
        self.cri = cri
        self.root = root
        self.pods = pods
        self.evict = evict
        self.free_disk = free_disk
        self.changed = changed
        self._until: dict[str, float] = {}  # condition -> shown until (monotonic)

    def under(self, condition: str) -> bool:
        return self._until.get(condition, 0.0) > clock.monotonic()

    def conditions(self) -> list[tuple[str, str, str, str]]:
        out = []
        for condition, (bad, bad_text, good, good_text) in REASONS.items():
            out.append((condition, "True", bad, bad_text) if self.under(condition) else (condition, "False", good, good_text))
        return out

    def refuses(self, pod: Object) -> tuple[str, str] | None:
        """Under pressure the node takes no new pods: none but critical ones when disk is short, no best-effort ones when memory is."""
        short = [c for c in REASONS if self.under(c)]
        if not short or podspec.is_critical(pod) or (short == ["MemoryPressure"] and podspec.qos_class(pod) != "BestEffort"):
            return None
        return "Evicted", f"The node had condition: [{', '.join(short)}]. "

    async def run(self) -> None:
        """Task."""
        while True:
            try:
                await self.round()
            except (CriError, OSError) as e:
                log.warning("could not look for pressure", error=str(e))
            await asyncio.sleep(LOOK_SECONDS)

    async def round(self) -> None:
        signals = look(self.root, self.root)
        short = pressed(self.hard, signals)
        if short and SIGNALS[short[0]][0] == "DiskPressure":
            await self.free_disk()
            signals = look(self.root, self.root)
            short = pressed(self.hard, signals)
        before = [self.under(c) for c in REASONS]
        for name in short:
            self._until[SIGNALS[name][0]] = clock.monotonic() + PRESSURE_SECONDS
        if before != [self.under(c) for c in REASONS]:
            self.changed()
        if short:
            await self._end_one(short[0], signals)

    async def _end_one(self, name: str, signals: Mapping[str, Signal]) -> None:
        resource = SIGNALS[name][1]
        usage = await self._usage(resource)
        for pod in rank(self.pods(), usage, resource)[:1]:
            used, asked = usage.get(podspec.uid_of(pod), 0.0), podspec.pod_requests(pod).get(resource, 0.0)
            text = message(resource, thresholds(self.hard, signals)[name], signals[name].available, used, asked)
            log.warning("evicting a pod", pod=podspec.key_of(pod), signal=name, available=signals[name].available)
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": text}
            self.evict(pod, Termination(0, "Evicted", text, "Failed", condition))

    async def _usage(self, resource: str) -> dict[str, float]:
        """By pod uid: working set for memory, writable layers for disk."""
        out: dict[str, float] = {}
        for stats in await self.cri.container_stats():
            uid = stats.attributes.labels.get(LABEL_POD_UID, "")
            value = stats.memory.working_set_bytes.value if resource == "memory" else stats.writable_layer.used_bytes.value
            out[uid] = out.get(uid, 0.0) + value
        return out
