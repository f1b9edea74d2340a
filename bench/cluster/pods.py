"""How fast a whole cluster starts the pods of one Deployment on simulated nodes, and what each part costs.

    python -m bench.cluster.pods [--pods 3000] [--nodes 100]

Runs `fastkube up --runtime hollow` with everything on (TLS, fsync, RBAC, admission) on loopback, creates the Deployment, waits until all pods are
Running and Ready, deletes it again, and prints pods per second, CPU time and resident memory of each part's process.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from fastkube.client import kubeconfig
from fastkube.client.rest import Client

START_SECONDS_MAX = 120
PODS_SECONDS_MAX = 300


@dataclasses.dataclass
class Cost:
    """CPU seconds (user and system) spent and resident MiB at the end, of one process."""

    cpu_seconds: float
    memory_mib: float


@dataclasses.dataclass
class Result:
    pods: int
    created_seconds: float
    running_seconds: float
    deleted_seconds: float
    parts: dict[str, Cost]

    def table(self) -> str:
        lines = [
            f"{self.pods} pods: created in {self.created_seconds:.1f} s, Running and Ready in {self.running_seconds:.1f} s "
            f"({self.pods / self.running_seconds:.0f} pods/s), deleted in {self.deleted_seconds:.1f} s",
            f"{'part':<22}{'CPU s':>8}{'us/pod':>9}{'MiB':>8}",
        ]
        lines += [f"{name:<22}{c.cpu_seconds:>8.2f}{c.cpu_seconds / self.pods * 1e6:>9.0f}{c.memory_mib:>8.1f}" for name, c in self.parts.items()]
        return "\n".join(lines)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processes(root: psutil.Process) -> dict[str, psutil.Process]:
    """The parts by name: the API server is the process itself."""
    found = {"apiserver and store": root}
    for child in root.children():
        words = child.cmdline()
        if "fastkube" in words:
            found[words[words.index("fastkube") + 1]] = child
    return found


def deployment(pods: int) -> dict:
    labels = {"app": "load"}
    container = {"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "load"},
        "spec": {"replicas": pods, "selector": {"matchLabels": labels}, "template": template},
    }  # fmt: skip


async def until(condition, seconds: float) -> float:
    """Wait for `await condition()`; returns the seconds it took."""
    started = time.monotonic()
    while not await condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        await asyncio.sleep(0.1)
    return time.monotonic() - started


async def load(client: Client, parts: dict[str, psutil.Process], pods: int) -> Result:
    before = {name: sum(p.cpu_times()[:2]) for name, p in parts.items()}

    async def status() -> dict:
        return (await client.get("apps/v1/deployments", "load", "default")).get("status") or {}

    async def created() -> bool:
        return (await status()).get("replicas", 0) >= pods

    async def running() -> bool:
        return (await status()).get("readyReplicas", 0) >= pods

    async def gone() -> bool:
        return not (await client.list("v1/pods", "default", limit=1))["items"]

    started = time.monotonic()
    await client.create("apps/v1/deployments", deployment(pods), "default")
    await until(created, PODS_SECONDS_MAX)
    created_seconds = time.monotonic() - started
    await until(running, PODS_SECONDS_MAX)
    running_seconds = time.monotonic() - started
    costs = {name: Cost(sum(p.cpu_times()[:2]) - before[name], p.memory_info().rss / 2**20) for name, p in parts.items()}
    await client.delete("apps/v1/deployments", "load", "default", propagation="Background")
    deleted_seconds = await until(gone, PODS_SECONDS_MAX)
    return Result(pods, created_seconds, running_seconds, deleted_seconds, costs)


def measure(pods: int, nodes: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="fastkube-load-") as scratch, open(Path(scratch) / "log", "wb+") as log:
        data = Path(scratch) / "data"
        up = subprocess.Popen(
            [sys.executable, "-m", "fastkube", "up", "--runtime", "hollow", f"--nodes={nodes}", f"--data-dir={data}", f"--secure-port={free_port()}"],
            stdout=subprocess.PIPE, stderr=log, env={**os.environ, "FASTKUBE_LOG_LEVEL": "warning"},
        )  # fmt: skip
        try:
            if not select.select([up.stdout], [], [], START_SECONDS_MAX)[0] or not up.stdout.readline():  # type: ignore[union-attr]
                log.seek(0)
                raise RuntimeError(f"the cluster did not start:\n{log.read().decode()[-4000:]}")

            async def run() -> Result:
                async with kubeconfig.load(data / "admin.kubeconfig") as client:
                    return await load(client, processes(psutil.Process(up.pid)), pods)

            return asyncio.run(run())
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    result = measure(asked.pods, asked.nodes)
    print(json.dumps(dataclasses.asdict(result)) if asked.json else result.table())


if __name__ == "__main__":
    main()
