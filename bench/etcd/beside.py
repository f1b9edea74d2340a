"""Ours beside a real etcd, one run: server CPU time per operation over gRPC, 64 requests in flight, fsync on for both.

    python -m bench.etcd.beside [SECONDS]

The client's own time does not count: what is read is the server process's user and system time (/proc/PID/stat).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio

from fastkube.store.etcd import messages as m

ROOT = Path(__file__).parents[2]
IN_FLIGHT = 64
VALUE = b"x" * 1024
KEYS = 10_000
WATCHERS = 10
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Server:
    def __init__(self, which: str, home: Path, port: int) -> None:
        self.which = which
        url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        command = (
            [sys.executable, "-m", "fastkube", "etcd"]
            if which == "ours"
            else ["etcd", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}", "--log-level=error"]
        )
        command += [f"--data-dir={home}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def call(self, method: str, request: str, response: str):
        return self.channel.unary_unary(f"/etcdserverpb.KV/{method}", m.MESSAGES[request].SerializeToString, m.MESSAGES[response].FromString)

    async def ready(self) -> None:
        await asyncio.wait_for(self.channel.channel_ready(), 30)

    async def measured(self, seconds: float, one: Callable[[int], Awaitable[object]]) -> float:
        """-> operations per second of the server's CPU time."""
        done = 0
        stop = time.monotonic() + seconds
        before = cpu_seconds(self.process.pid)

        async def worker(w: int) -> None:
            nonlocal done
            i = w
            while time.monotonic() < stop:
                await one(i)
                done += 1
                i += IN_FLIGHT

        await asyncio.gather(*(worker(w) for w in range(IN_FLIGHT)))
        return done / (cpu_seconds(self.process.pid) - before)


async def watch_events(server: Server, seconds: float, put) -> float:
    """Events told to WATCHERS streams per second of the server's CPU time, what the puts themselves cost included."""
    watch = server.channel.stream_stream("/etcdserverpb.Watch/Watch", m.WatchRequest.SerializeToString, lambda data: data)
    seen = 0
    calls = []

    async def follow(call) -> None:
        nonlocal seen
        while (data := await call.read()) is not grpc.aio.EOF:
            seen += len(m.WatchResponse.FromString(data).events)

    for _ in range(WATCHERS):
        call = watch()
        await call.write(m.WatchRequest(create_request=m.WatchCreateRequest(key=b"w/", range_end=b"w0")))
        await call.read()
        calls.append((call, asyncio.ensure_future(follow(call))))
    before = cpu_seconds(server.process.pid)
    await server.measured(seconds, lambda i: put(m.PutRequest(key=b"w/%d" % (i % 1000), value=VALUE)))
    await asyncio.sleep(1)
    spent = cpu_seconds(server.process.pid) - before
    for call, task in calls:
        call.cancel()
        task.cancel()
    return seen / spent


async def run(server: Server, seconds: float) -> dict[str, float]:
    await server.ready()
    put, read = server.call("Put", "PutRequest", "PutResponse"), server.call("Range", "RangeRequest", "RangeResponse")
    figures = {}
    figures["put 1 KiB"] = await server.measured(seconds, lambda i: put(m.PutRequest(key=b"k/%06d" % (i % KEYS), value=VALUE)))
    figures["range, one key"] = await server.measured(seconds, lambda i: read(m.RangeRequest(key=b"k/%06d" % (i % 1000))))
    figures["range, 100 keys of 1 KiB"] = await server.measured(seconds, lambda i: read(m.RangeRequest(key=b"k/", range_end=b"k0", limit=100)))
    figures[f"events to {WATCHERS} watchers"] = await watch_events(server, seconds, put)
    await server.channel.close()
    return figures


async def measure(which: str, home: Path, port: int, seconds: float) -> dict[str, float]:
    server = Server(which, home, port)  # the channel belongs to the loop
    try:
        return await run(server, seconds)
    finally:
        server.process.terminate()
        server.process.wait(30)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    home = Path(tempfile.mkdtemp(prefix="bench-etcd-"))
    figures = {}
    try:
        for which, port in (("etcd", 22050), ("ours", 22060)):
            figures[which] = asyncio.run(measure(which, home / which, port, seconds))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{'per CPU second of the server':34}{'etcd':>10}{'ours':>10}{'ours/etcd':>11}")
    for name, theirs in figures["etcd"].items():
        print(f"{name:34}{theirs:10.0f}{figures['ours'][name]:10.0f}{figures['ours'][name] / theirs:11.2f}")


if __name__ == "__main__":
    main()
