"""Workloads of workloads.yaml through a real API server (a process of its own; TLS, fsync, RBAC and admission on) and a real scheduler process.

    python -m bench.scheduler.throughput [NAME ...] [--factor 0.3] [--nodes N] [--json FILE]

Nodes are API objects only. Pods are made at full speed over CONNECTIONS connections while the scheduler runs; the clock runs from the first measured pod
until the last is bound. CPU time, until the last event is told, is user and system time of each process per measured pod, so it holds on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from bench.scheduler.workloads import Workload, load
from fastkube.client import kubeconfig
from fastkube.client.rest import Client

CONNECTIONS = 24
START_SECONDS_MAX = 60
BOUND_SECONDS_MAX = 300


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def each(objects: Iterable[Any], do: Any) -> None:
    """`do(obj)` for all, CONNECTIONS at a time."""
    todo = iter(objects)

    async def worker() -> None:
        for obj in todo:
            await do(obj)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


async def make_node(client: Client, node: dict[str, Any]) -> None:
    made = await client.create("v1/nodes", node)
    if made["spec"].get("taints") != (node["spec"]["taints"] or None):
        await client.patch("v1/nodes", node["metadata"]["name"], {"spec": {"taints": node["spec"]["taints"] or None}})
    await client.update("v1/nodes", node, subresource="status")


async def settled(process: psutil.Process) -> None:
    """Returns once the process rests: the events it has to tell of count too."""
    last = cpu_seconds(process)
    while True:
        await asyncio.sleep(0.5)
        if (now := cpu_seconds(process)) - last < 0.03:
            return
        last = now


async def until_bound(client: Client, prefix: str, wanted: int, watch_from: str) -> None:
    """Returns once `wanted` pods called PREFIX... have a node; they are counted from the watch, each once."""
    seen: set[str] = set()
    async with asyncio.timeout(BOUND_SECONDS_MAX):
        async for kind, pod in client.watch("v1/pods", fields="spec.nodeName!=", resource_version=watch_from):
            if kind != "BOOKMARK" and pod["metadata"]["name"].startswith(prefix):
                seen.add(pod["metadata"]["name"])
                if len(seen) >= wanted:
                    return


async def measure(client: Client, workload: Workload, processes: dict[str, psutil.Process]) -> dict[str, float]:
    await each(workload.namespace_objects(), lambda o: client.create("v1/namespaces", o))
    for n in range(workload.namespaces):
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        await client.create("v1/serviceaccounts", account, f"bench-{n}")
    for kind in (workload.pod, workload.init_pod or {}):
        if "priority" in kind:
            made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": f"bench-{kind['priority']}"}, "value": kind["priority"]}
            await client.create("scheduling.k8s.io/v1/priorityclasses", made)
    await each(workload.node_objects(), lambda o: make_node(client, o))

    async def create(pod: dict[str, Any]) -> None:
        await client.create("v1/pods", pod, pod["metadata"]["namespace"])

    start = (await client.list("v1/pods", limit=1))["metadata"]["resourceVersion"]
    if workload.init:
        await each(workload.pod_objects(init=True), create)
        if workload.name != "Unschedulable":
            await until_bound(client, "init-", workload.init, start)
    await settled(processes["scheduler"])
    start = (await client.list("v1/pods", limit=1))["metadata"]["resourceVersion"]
    before = {name: cpu_seconds(p) for name, p in processes.items()}
    began = time.monotonic()
    creating = asyncio.create_task(each(workload.pod_objects(init=False), create))
    await until_bound(client, "pod-", workload.measured, start)
    seconds = time.monotonic() - began
    await creating
    await settled(processes["scheduler"])
    cost = {f"{name} us/pod": (cpu_seconds(p) - before[name]) / workload.measured * 1e6 for name, p in processes.items()}
    memory = {f"{name} MiB": p.memory_info().rss / 2**20 for name, p in processes.items()}
    return {"pods/s": workload.measured / seconds, **cost, **memory}


def run(workload: Workload) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fastkube-bench-") as directory:
        log = Path(directory) / "log"
        controllers = "*,-node-lifecycle-controller,-pod-garbage-collector-controller"
        argv = [sys.executable, "-m", "fastkube", "up", "--runtime", "hollow", "--nodes", "0", f"--data-dir={directory}/data", f"--secure-port={free_port()}"]
        with log.open("wb") as out:
            cluster = subprocess.Popen([*argv, f"--controllers={controllers}"], stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS_MAX
            while b"is ready" not in log.read_bytes():
                if time.monotonic() > deadline or cluster.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.1)
            main = psutil.Process(cluster.pid)
            scheduler = next(p for p in main.children(recursive=True) if "scheduler" in p.cmdline())

            async def body() -> dict[str, float]:
                async with kubeconfig.load(f"{directory}/data/admin.kubeconfig") as client:
                    return await measure(client, workload, {"scheduler": scheduler, "apiserver": main})

            return asyncio.run(body())
        finally:
            cluster.send_signal(signal.SIGTERM)
            cluster.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--factor", type=float, default=1.0, help="of the numbers of pods")
    parser.add_argument("--nodes", type=int, default=0, help="instead of the workload's own number")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is stopped on the way out
    for name, workload in load().items():
        if args.names and name not in args.names:
            continue
        scaled = workload.scaled(args.factor)
        if args.nodes:
            scaled = dataclasses.replace(scaled, nodes=args.nodes)
        results[name] = run(scaled)
        print(name, " ".join(f"{k}: {v:,.0f}" for k, v in results[name].items()), f"floor: {workload.floor}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"cpus": os.cpu_count(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
