"""The scheduler's core alone, no API: decisions per second on each workload of workloads.yaml.

    python -m bench.scheduler.decisions [NAME ...] [--factor 0.2] [--profile]

A decision counts the pod on its node at once, as in the scheduler. Preemption: the search for victims and their leaving count too.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

from bench.scheduler.workloads import Workload, load
from fastkube.runtime import entropy
from fastkube.scheduler.podinfo import Templates
from fastkube.scheduler.preemption import Preemption
from fastkube.scheduler.snapshot import Failure, Snapshot


def run(workload: Workload) -> tuple[float, int]:
    """(CPU seconds per measured pod, pods that got a node)."""
    snapshot, templates = Snapshot(), Templates()
    preemption = Preemption(snapshot)
    for namespace in workload.namespace_objects():
        snapshot.population.set_namespace(namespace["metadata"]["name"], namespace["metadata"]["labels"])
    for node in workload.node_objects():
        snapshot.set_node(node)
    for obj in workload.pod_objects(init=True):
        pod = templates.pod(obj)
        decision = snapshot.decide(pod, entropy.generator().getrandbits(63))
        if isinstance(decision, str):
            snapshot.add_pod(pod, decision)
    pods = [templates.pod(obj) for obj in workload.pod_objects(init=False)]
    placed = 0
    started = time.process_time()
    for pod in pods:
        seed = entropy.generator().getrandbits(63)
        decision = snapshot.decide(pod, seed)
        if isinstance(decision, Failure):
            candidate = preemption.find(pod, decision, seed)
            if candidate is None:
                continue
            for victim in candidate.victims:
                snapshot.remove_pod(victim.key)
            decision = candidate.node
        snapshot.add_pod(pod, decision)
        placed += 1
    return (time.process_time() - started) / len(pods), placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    print(f"{'workload':40} {'decisions/s':>12} {'us each':>9} {'placed':>8} {'floor':>6}")
    for name, workload in load().items():
        if args.names and name not in args.names:
            continue
        profiler = cProfile.Profile()
        if args.profile:
            profiler.enable()
        each, placed = run(workload.scaled(args.factor))
        profiler.disable()
        print(f"{name:40} {1 / each:12,.0f} {each * 1e6:9.0f} {placed:8} {workload.floor:6}", flush=True)
        if args.profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()
