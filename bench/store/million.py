"""A million keys of 1 KiB: memory, start, and the longest time the event loop is held while the store compacts, snapshots and expires leases.

    python -m bench.store.million [--keys 1000000] [--directory DIR]

Prints one line per figure with the floor of the project's issue 3 beside it. Each step runs in a process of its own, so that memory is that step's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from fastkube.store.embedded import EmbeddedStore

VALUE_BYTES = 1024
GROUP = 2000


def key(i: int) -> bytes:
    return b"/registry/pods/namespace-%03d/web-5d4f8c7b9-%07d" % (i % 997, i)


def rss() -> float:
    """GiB resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / (1 << 20)
    return 0.0


def show(what: str, value: float, unit: str, floor: str = "") -> None:
    print(f"{what:60} {value:10.3f} {unit:5} {floor}", flush=True)


class Pauses:
    """How long the loop does not come round, by a task that asks for every turn."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._running = True
        self._task = asyncio.get_running_loop().create_task(self._probe(), name="probe")

    async def _probe(self) -> None:
        while self._running:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.worst = max(self.worst, time.thread_time() - before)

    async def stop(self) -> float:
        self._running = False
        await self._task
        return self.worst * 1000


async def load(directory: Path, keys: int) -> None:
    store = EmbeddedStore(directory)
    await store.start()
    base = rss()
    value = os.urandom(VALUE_BYTES)
    cpu, pauses = time.process_time(), Pauses()
    for start in range(0, keys, GROUP):
        await asyncio.gather(*[store.put(key(i), value[:-8] + i.to_bytes(8, "big")) for i in range(start, min(keys, start + GROUP))])
    show("put, groups of 2,000", (time.process_time() - cpu) / keys * 1e6, "us")
    await pauses.stop()
    show("resident after the load", rss(), "GiB", "floor 1.6")
    show("  of it the process without keys", base, "GiB")
    await store.close()


async def start(directory: Path, keys: int) -> None:
    gc.freeze()
    cpu, wall = time.process_time(), time.time()
    store = EmbeddedStore(directory)
    await store.start()
    show("start: wall", time.time() - wall, "s", "floor 6")
    show("start: CPU", time.process_time() - cpu, "s")
    show("resident after the start", rss(), "GiB", "floor 1.6")
    assert store.count(b"/registry/", b"/registry0") == keys, store.count(b"/registry/", b"/registry0")
    await store.close()


async def work(directory: Path, keys: int) -> None:
    store = EmbeddedStore(directory)
    await store.start()
    lease = await store.lease_grant(3600)

    pauses = Pauses()
    await asyncio.gather(*[store.put(b"/leased/%07d" % i, b"", lease=lease) for i in range(1000)])
    await asyncio.gather(*[store.put(key(i), b"x" * VALUE_BYTES) for i in range(500)])
    show("longest turn: puts by 1,000", await pauses.stop(), "ms", "(the burst itself)")

    pauses = Pauses()
    await store.compact(store.revision)
    while store._upkeep.trimming:
        await asyncio.sleep(0)
    show("longest turn: compaction of all history", await pauses.stop(), "ms", "floor 5")

    pauses = Pauses()
    cpu, wall = time.process_time(), time.time()
    await store.snapshot()
    show("snapshot: CPU", time.process_time() - cpu, "s")
    show("snapshot: wall", time.time() - wall, "s")
    show("longest turn: snapshot", await pauses.stop(), "ms", "floor 5")

    pauses = Pauses()
    await store.lease_revoke(lease)
    show("longest turn: a lease of 1,000 keys ends", await pauses.stop(), "ms", "floor 5")

    pauses = Pauses()
    seen = 0

    def on_events(events):
        nonlocal seen
        seen += len(events)

    for i in range(0, 200_000, 1000):
        await asyncio.gather(*[store.put(key(i + k), b"y" * VALUE_BYTES) for k in range(1000)])
    await pauses.stop()
    pauses = Pauses()
    store.watch(b"/registry/", b"/registry0", start=store.compacted + 1, on_events=on_events)
    while seen < 200_000:
        await asyncio.sleep(0)
    show("longest turn: a watch through 200,000 events of history", await pauses.stop(), "ms", "floor 5")

    cpu = time.process_time()
    r = store.range(b"/registry/", b"/registry0", store.revision - 1000, 500)
    show("range of 500 of all keys at an old revision, count included", (time.process_time() - cpu) * 1e6, "us")
    assert r.count == keys
    cpu = time.process_time()
    n = store.count(b"/registry/pods/", b"/registry/pods0")
    show("count of all keys", (time.process_time() - cpu) * 1e6, "us")
    assert n == keys
    show("resident at the end", rss(), "GiB")
    show("most ever resident", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), "GiB")
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--directory")
    parser.add_argument("--step", choices=["load", "start", "work"])
    args = parser.parse_args()
    if args.step:
        uvloop.run({"load": load, "start": start, "work": work}[args.step](Path(args.directory), args.keys))
        return
    directory = args.directory or tempfile.mkdtemp(prefix="fastkube-million-")
    try:
        for title, step in (("load", "load"), ("start from the log", "start"), ("work", "work"), ("start from snapshot and log", "start")):
            print(f"-- {title}", flush=True)
            subprocess.run([sys.executable, "-m", "bench.store.million", "--keys", str(args.keys), "--directory", directory, "--step", step], check=True)
    finally:
        if not args.directory:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
