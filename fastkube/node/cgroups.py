"""Cgroups of pods: ROOT/kubepods/{,burstable/,besteffort/}podUID, upstream's layout under the cgroupfs driver, on cgroup v1 and v2.

The runtime makes the containers' cgroups below the pod's; what belongs to the pod as a whole (shares, quota, memory, pids) is written here.
A controller that is not there, or a value that the kernel does not take, is logged and left: the containers' own limits hold anyway.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkube.node import podspec
from fastkube.runtime import logs

CPU_PERIOD_MICROSECONDS = 100_000
CPU_QUOTA_MICROSECONDS_MIN = 1000
CPU_SHARES_MIN, CPU_SHARES_MAX = 2, 262_144

MOUNT = Path("/sys/fs/cgroup")

log = logs.get("cgroups")

Object = dict[str, Any]


def cpu_shares(cores: float) -> int:
    """cgroup v1 cpu.shares of a request."""
    return min(CPU_SHARES_MAX, max(CPU_SHARES_MIN, int(round(cores * 1000) * 1024 / 1000)))


def cpu_quota(cores: float) -> int:
    """Microseconds per CPU_PERIOD_MICROSECONDS of a limit; 0: none."""
    return max(CPU_QUOTA_MICROSECONDS_MIN, int(round(cores * 1000) * CPU_PERIOD_MICROSECONDS / 1000)) if cores else 0


def cpu_weight(shares: int) -> int:
    """cgroup v2 cpu.weight of v1's shares, as runc converts it."""
    return 1 + (shares - 2) * 9999 // 262_142


class Cgroups:
    """The pods' cgroups below `root` ("/": the hierarchy's top)."""

    def __init__(self, root: str = "/", mount: Path = MOUNT, pids_max: int = 0) -> None:
        self.root = "/" + root.strip("/")
        self.mount = mount
        self.pids_max = pids_max
        self.v2 = (mount / "cgroup.controllers").exists()

    def parent(self, pod: Object) -> str:
        """The pod's cgroup: what CRI's cgroup_parent says."""
        qos = podspec.qos_class(pod)
        middle = {"Burstable": "burstable/", "BestEffort": "besteffort/"}.get(qos, "")
        return f"{self.root.rstrip('/')}/kubepods/{middle}pod{pod['metadata']['uid']}"

    def create(self, pod: Object) -> str:
        """Make the pod's cgroup with its limits; returns its path in the hierarchy."""
        path = self.parent(pod)
        asked, limit = podspec.pod_requests(pod), podspec.pod_requests(pod, "limits")
        shares = cpu_shares(asked.get("cpu", 0.0))
        whole = all("cpu" in podspec.limits(c) for c in podspec.containers(pod)) or "cpu" in ((pod["spec"].get("resources") or {}).get("limits") or {})
        quota = cpu_quota(limit.get("cpu", 0.0)) if whole else 0
        bounded = all("memory" in podspec.limits(c) for c in podspec.containers(pod)) or "memory" in ((pod["spec"].get("resources") or {}).get("limits") or {})
        memory = int(limit.get("memory", 0.0)) if bounded else 0
        if self.v2:
            self._create_v2(path, shares, quota, memory)
        else:
            self._create_v1(path, shares, quota, memory)
        return path

    def _create_v1(self, path: str, shares: int, quota: int, memory: int) -> None:
        values = {
            "cpu": {"cpu.shares": shares, **({"cpu.cfs_period_us": CPU_PERIOD_MICROSECONDS, "cpu.cfs_quota_us": quota} if quota else {})},
            "memory": {"memory.limit_in_bytes": memory} if memory else {},
            "pids": {"pids.max": self.pids_max} if self.pids_max > 0 else {},
        }
        for controller, files in values.items():
            base = self.mount / controller
            if base.is_dir():
                self._write(base / path.lstrip("/"), files)

    def _create_v2(self, path: str, shares: int, quota: int, memory: int) -> None:
        at = self.mount
        for part in path.strip("/").split("/"):
            self._enable(at)
            at = at / part
            at.mkdir(exist_ok=True)
        self._enable(at)
        files: dict[str, Any] = {"cpu.weight": cpu_weight(shares)}
        if quota:
            files["cpu.max"] = f"{quota} {CPU_PERIOD_MICROSECONDS}"
        if memory:
            files["memory.max"] = memory
        if self.pids_max > 0:
            files["pids.max"] = self.pids_max
        self._write(at, files)

    def _enable(self, directory: Path) -> None:
        """Hand the controllers down to the children of `directory`."""
        try:
            there = set((directory / "cgroup.controllers").read_text().split())
            on = set((directory / "cgroup.subtree_control").read_text().split())
            for controller in sorted((there & {"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}) - on):
                (directory / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as e:
            log.debug("could not enable controllers", cgroup=str(directory), error=str(e))

    def _write(self, directory: Path, files: Mapping[str, Any]) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, value in files.items():
                (directory / name).write_text(str(value))
        except OSError as e:
            log.warning("could not set a pod's cgroup", cgroup=str(directory), error=str(e))

    def remove(self, uid: str) -> None:
        """Remove the pod's cgroups (its processes are gone), wherever its class put them."""
        for middle in ("", "burstable/", "besteffort/"):
            remove(f"{self.root.rstrip('/')}/kubepods/{middle}pod{uid}", self.mount)


def remove(path: str, mount: Path = MOUNT) -> None:
    """Remove the cgroup `path` with what is below it from every hierarchy, and the cgroups above it that are empty then."""
    v2 = (mount / "cgroup.controllers").exists()
    for base in [mount] if v2 else [p for p in mount.iterdir() if p.is_dir() and not p.is_symlink()]:
        at = base / path.strip("/")
        if not at.is_dir():
            continue
        _remove_tree(at)
        for above in at.parents:
            if above == base:
                break
            try:
                above.rmdir()
            except OSError:  # somebody else's pods are in it
                break


def _remove_tree(directory: Path) -> None:
    if not directory.is_dir():
        return
    for path, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(path)
        except OSError:  # a process is still in it
            return
