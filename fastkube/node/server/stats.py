"""/stats/summary (v1alpha1), /metrics/resource and /metrics, from the runtime's container statistics and the kernel's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as pb

from fastkube.node import machine, model
from fastkube.runtime import clock

Object = dict[str, Any]


def _labels(stats: pb.ContainerStats) -> tuple[str, str, str, str]:
    """(namespace, pod, uid, container)."""
    labels: Mapping[str, str] = stats.attributes.labels
    return (
        labels.get(model.LABEL_POD_NAMESPACE, ""),
        labels.get(model.LABEL_POD_NAME, ""),
        labels.get(model.LABEL_POD_UID, ""),
        labels.get(model.LABEL_CONTAINER_NAME, ""),
    )


def _rfc3339(nanoseconds: int) -> str:
    return clock.rfc3339(nanoseconds / 1e9) if nanoseconds else clock.rfc3339()


class Rates:
    """CPU use per second from the cumulative counters of two looks."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int, int]] = {}  # key -> (timestamp, usage, rate)

    def of(self, key: str, timestamp: int, usage: int) -> int:
        """Nanocores."""
        before = self._last.get(key)
        if before is None or timestamp <= before[0]:
            rate = before[2] if before else 0
            self._last.setdefault(key, (timestamp, usage, 0))
            return rate
        rate = max(0, (usage - before[1]) * 1_000_000_000 // (timestamp - before[0]))
        self._last[key] = (timestamp, usage, rate)
        return rate

    def keep(self, keys: set[str]) -> None:
        for key in self._last.keys() - keys:
            del self._last[key]


def node_cpu_nanoseconds() -> int:
    """CPU time of the machine since boot, idle and iowait left out."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(f) for f in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def node_memory() -> tuple[int, int, int]:
    """(used, working set, available) bytes."""
    total, available = machine.memory_total(), machine.memory_available()
    return total - available, total - available, available


def boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def filesystem(path: Path) -> Object:
    disk = os.statvfs(path)
    return {
        "time": clock.rfc3339(),
        "availableBytes": disk.f_bavail * disk.f_frsize,
        "capacityBytes": disk.f_blocks * disk.f_frsize,
        "usedBytes": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        "inodesFree": disk.f_favail,
        "inodes": disk.f_files,
        "inodesUsed": disk.f_files - disk.f_ffree,
    }


def network(pid: int | str = "self") -> Object | None:
    """Counters of a network namespace's eth0 (all other links but loopback behind it), by a process inside it."""
    try:
        text = Path(f"/proc/{pid}/net/dev").read_text()
    except OSError:
        return None
    interfaces = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = rest.split()
        if name.strip() != "lo" and len(values) >= 12:
            interfaces.append(
                {"name": name.strip(), "rxBytes": int(values[0]), "rxErrors": int(values[2]), "txBytes": int(values[8]), "txErrors": int(values[10])}
            )
    first = next((i for i in interfaces if i["name"] == "eth0"), interfaces[0] if interfaces else None)
    return {"time": clock.rfc3339(), **first, "interfaces": interfaces} if first else None


def summary(node_name: str, root: Path, containers: list[pb.ContainerStats], started: Mapping[str, float], rates: Rates) -> Object:
    """The Summary object. `started`: when each container (by id) started."""
    now = clock.rfc3339()
    used, working, available = node_memory()
    cpu = node_cpu_nanoseconds()
    node_fs = filesystem(root)
    pods: dict[str, Object] = {}
    keys = {"node"}
    for stats in containers:
        namespace, name, uid, container = _labels(stats)
        keys.add(stats.attributes.id)
        pod = pods.setdefault(
            uid,
            {"podRef": {"name": name, "namespace": namespace, "uid": uid}, "startTime": now, "containers": [], "cpu": _sum_cpu(), "memory": _sum_memory(),
             "ephemeral-storage": {"time": now, "usedBytes": 0}},
        )  # fmt: skip
        usage = stats.cpu.usage_core_nano_seconds.value
        rate = rates.of(stats.attributes.id, stats.cpu.timestamp, usage)
        memory = {
            "time": _rfc3339(stats.memory.timestamp), "availableBytes": stats.memory.available_bytes.value, "usageBytes": stats.memory.usage_bytes.value,
            "workingSetBytes": stats.memory.working_set_bytes.value, "rssBytes": stats.memory.rss_bytes.value,
            "pageFaults": stats.memory.page_faults.value, "majorPageFaults": stats.memory.major_page_faults.value,
        }  # fmt: skip
        entry = {
            "name": container, "startTime": clock.rfc3339(started.get(stats.attributes.id, 0.0) or clock.now()),
            "cpu": {"time": _rfc3339(stats.cpu.timestamp), "usageNanoCores": rate, "usageCoreNanoSeconds": usage}, "memory": memory,
            "rootfs": {"time": _rfc3339(stats.writable_layer.timestamp), "usedBytes": stats.writable_layer.used_bytes.value, "inodesUsed": stats.writable_layer.inodes_used.value,
                       "availableBytes": node_fs["availableBytes"], "capacityBytes": node_fs["capacityBytes"]},
        }  # fmt: skip
        pod["containers"].append(entry)
        pod["startTime"] = min(pod["startTime"], entry["startTime"])
        for field, value in (("usageNanoCores", rate), ("usageCoreNanoSeconds", usage)):
            pod["cpu"][field] += value
        for field in ("usageBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults"):
            pod["memory"][field] += memory[field]
        pod["ephemeral-storage"]["usedBytes"] += stats.writable_layer.used_bytes.value
    node_rate = rates.of("node", int(clock.now() * 1e9), cpu)
    rates.keep(keys)
    return {
        "node": {
            "nodeName": node_name, "startTime": clock.rfc3339(boot_time()),
            "cpu": {"time": now, "usageNanoCores": node_rate, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "availableBytes": available, "usageBytes": used, "workingSetBytes": working, "rssBytes": 0, "pageFaults": 0, "majorPageFaults": 0},
            "network": network(), "fs": node_fs, "runtime": {"imageFs": node_fs, "containerFs": node_fs},
        },
        "pods": list(pods.values()),
    }  # fmt: skip


def _sum_cpu() -> Object:
    return {"time": clock.rfc3339(), "usageNanoCores": 0, "usageCoreNanoSeconds": 0}


def _sum_memory() -> Object:
    return {"time": clock.rfc3339(), "usageBytes": 0, "workingSetBytes": 0, "rssBytes": 0, "pageFaults": 0, "majorPageFaults": 0}


def resource_metrics(containers: list[pb.ContainerStats], started: Mapping[str, float]) -> str:
    """/metrics/resource: what metrics-server and the HPA read (upstream's stable names)."""
    out: dict[str, list[str]] = {}
    pods: dict[tuple[str, str], list[float]] = {}

    def add(name: str, labels: str, value: float, timestamp: int = 0) -> None:
        out.setdefault(name, []).append(f"{name}{labels} {value!r}" + (f" {timestamp // 1_000_000}" if timestamp else ""))

    for stats in containers:
        namespace, pod, _, container = _labels(stats)
        labels = f'{{container="{container}",namespace="{namespace}",pod="{pod}"}}'
        cpu, memory = stats.cpu.usage_core_nano_seconds.value / 1e9, stats.memory.working_set_bytes.value
        add("container_cpu_usage_seconds_total", labels, cpu, stats.cpu.timestamp)
        add("container_memory_working_set_bytes", labels, float(memory), stats.memory.timestamp)
        if started.get(stats.attributes.id):
            add("container_start_time_seconds", labels, started[stats.attributes.id])
        total = pods.setdefault((namespace, pod), [0.0, 0.0, 0.0])
        total[0] += cpu
        total[1] += memory
        total[2] = stats.cpu.timestamp
    for (namespace, pod), (cpu, memory_bytes, timestamp) in pods.items():
        labels = f'{{namespace="{namespace}",pod="{pod}"}}'
        add("pod_cpu_usage_seconds_total", labels, cpu, int(timestamp))
        add("pod_memory_working_set_bytes", labels, memory_bytes, int(timestamp))
    now = int(clock.now() * 1e9)
    add("node_cpu_usage_seconds_total", "", node_cpu_nanoseconds() / 1e9, now)
    add("node_memory_working_set_bytes", "", float(node_memory()[1]), now)
    add("resource_scrape_error", "", 0.0)
    return "".join(
        f"# HELP {n} {_HELP[n]}\n# TYPE {n} {'counter' if n.endswith('_total') else 'gauge'}\n" + "".join(line + "\n" for line in lines)
        for n, lines in out.items()
    )


_HELP = {
    "container_cpu_usage_seconds_total": "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    "container_memory_working_set_bytes": "[STABLE] Current working set of the container in bytes",
    "container_start_time_seconds": "[STABLE] Start time of the container since unix epoch in seconds",
    "pod_cpu_usage_seconds_total": "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    "pod_memory_working_set_bytes": "[STABLE] Current working set of the pod in bytes",
    "node_cpu_usage_seconds_total": "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    "node_memory_working_set_bytes": "[STABLE] Current working set of the node in bytes",
    "resource_scrape_error": "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
}
