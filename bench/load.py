#!/usr/bin/env python3
"""The same load on any Kubernetes API server: operations per second, and CPU time per operation of the processes that serve it.

    bench/load.py --server https://127.0.0.1:6443 --token TOKEN --pids 1234[,5678] [--pods 3000] [--connections 16] [--seconds 5] [--only get,list] [--json FILE]

TOKEN belongs to an administrator. The rows are those of the project's speed table: pods of about 5.2 KB as JSON, made in a namespace of their own,
which is removed at the end; no node or controller need run. CPU time is user and system time of all --pids, so that it holds on a busy machine, where
operations per second do not. Server certificates are not checked (--ca FILE checks them).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import sys
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import uvloop

NAMESPACE = f"fastkube-load-{os.getpid()}"
WATCHERS = 200
PAGE = 500
LABELLED = 50  # pods per label value
ROWS = ("create", "get", "list", "page", "label", "patch", "watch", "delete")


class Connection(asyncio.Protocol):
    """One kept connection; `request` sends one request and gives status and body size (and the body when asked)."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self.buffer = bytearray()
        self.needed = -1  # bytes of the whole answer, once its head is known
        self.start = 0
        self.status = 0
        self.lost = False
        self.chunked = False
        self.on_data: Callable[[bytes], None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(data)
            return
        self.buffer += data
        if self.needed < 0 and not self.chunked:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.status = int(head[9:12])
            self.start = end + 4
            at = head.find(b"content-length:")
            if at >= 0:
                self.needed = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
            elif b"transfer-encoding: chunked" in head:
                self.chunked = True
            else:
                self.needed = end + 4
        if (self.chunked and self.buffer.endswith(b"0\r\n\r\n")) or (not self.chunked and len(self.buffer) >= self.needed):
            body = bytes(self.buffer[self.start :])
            self.buffer.clear()
            self.needed, self.chunked = -1, False
            waiter, self.waiter = self.waiter, None
            if waiter and not waiter.done():
                waiter.set_result((self.status, body))

    def request(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.waiter


class Load:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        url = urllib.parse.urlparse(args.server)
        self.host, self.port = url.hostname or "127.0.0.1", url.port or (443 if url.scheme == "https" else 80)
        self.tls: ssl.SSLContext | None = None
        if url.scheme == "https":
            self.tls = ssl.create_default_context(cafile=args.ca)
            if not args.ca:
                self.tls.check_hostname = False
                self.tls.verify_mode = ssl.CERT_NONE
            self.tls.set_alpn_protocols(["http/1.1"])
        self.processes = [psutil.Process(int(p)) for p in args.pids.split(",") if p]
        self.connections: list[Connection] = []
        self.patches = 0
        self.results: list[dict[str, Any]] = []

    async def connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port, ssl=self.tls)
        return connection

    def encode(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: fastkube-load\r\nAuthorization: Bearer {self.args.token}\r\nAccept: application/json\r\n"
        if body:
            head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    def cpu(self) -> float:
        return sum(t.user + t.system for t in (p.cpu_times() for p in self.processes))

    def memory(self) -> int:
        return sum(p.memory_info().rss for p in self.processes)

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
        status, raw = await self.connections[0].request(self.encode(method, path, json.dumps(body).encode() if body is not None else b"", content_type))
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    async def measure(self, row: str, requests: Callable[[int], bytes | None], count: int | None = None) -> None:
        """Send requests over all connections, one at a time on each, until `count` are done or the time is up."""
        done = failed = size = 0
        last = 0
        number = 0
        started, cpu = time.monotonic(), self.cpu()
        deadline = started + self.args.seconds

        async def worker(connection: Connection) -> None:
            nonlocal done, failed, size, number, last
            while (count is None and time.monotonic() < deadline) or (count is not None and number < count):
                data = requests(number)
                number += 1
                if data is None:
                    return
                status, body = await connection.request(data)
                done += 1
                size += len(body)
                if status >= 300:
                    failed += 1
                    last = status

        await asyncio.gather(*(worker(c) for c in self.connections))
        self.report(row, done, time.monotonic() - started, self.cpu() - cpu, failed, size // max(done, 1), f"last failure {last}" if failed else "")

    def report(self, row: str, done: int, seconds: float, cpu: float, failed: int, size: int, note: str = "") -> None:
        result = {
            "row": row,
            "operations": done,
            "per_second": done / seconds,
            "cpu_us": cpu / max(done, 1) * 1e6,
            "failed": failed,
            "bytes": size,
            "rss_mib": self.memory() / 2**20,
        }
        self.results.append(result)
        print(
            f"{row:8} {result['per_second']:10,.0f}/s {result['cpu_us']:12,.1f} us CPU/op {size:12,} bytes {result['rss_mib']:8,.0f} MiB {failed or '':>6} {note}",
            flush=True,
        )

    # ---- rows

    async def set_up(self) -> None:
        self.connections = [await self.connect() for _ in range(self.args.connections)]
        await self.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        status, answer = await self.call("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
        if status not in (201, 409):
            sys.exit(f"cannot make the service account: {status} {answer}")

    async def create(self) -> None:
        bodies = [json.dumps(pod(i)).encode() for i in range(self.args.pods)]
        await self.measure(
            "create", lambda i: self.encode("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", bodies[i]) if i < len(bodies) else None, self.args.pods
        )

    async def get(self) -> None:
        await self.measure("get", lambda i: self.encode("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{name(i % self.args.pods)}"))

    async def list(self) -> None:
        await self.measure("list", lambda i: self.encode("GET", f"/api/v1/namespaces/{NAMESPACE}/pods"))

    async def page(self) -> None:
        await self.measure("page", lambda i: self.encode("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?limit={PAGE}"))

    async def label(self) -> None:
        groups = max(1, self.args.pods // LABELLED)
        await self.measure("label", lambda i: self.encode("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=group%3Dg{i % groups}"))

    def patch_request(self, i: int) -> bytes:
        self.patches += 1  # no two alike, or they would change nothing
        status = {
            "status": {
                "phase": "Running",
                "message": f"round {self.patches}",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name(i % self.args.pods)}/status"
        return self.encode("PATCH", path, json.dumps(status).encode(), "application/merge-patch+json")

    async def patch(self) -> None:
        await self.measure("patch", self.patch_request)

    async def watch(self) -> None:
        """Patches, each of which is an event to WATCHERS watchers; an operation is one event to one watcher."""
        received = 0

        def count(data: bytes) -> None:
            nonlocal received
            received += data.count(b'{"type":"MODIFIED"')

        watchers = [await self.connect() for _ in range(WATCHERS)]
        for watcher in watchers:
            watcher.on_data = count
            watcher.transport.write(self.encode("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?watch=true&resourceVersion={await self.revision()}"))
        await asyncio.sleep(0.5)
        received = sent = 0
        started, cpu = time.monotonic(), self.cpu()
        deadline = started + self.args.seconds
        while time.monotonic() < deadline:
            answers = await asyncio.gather(*(c.request(self.patch_request(sent + i)) for i, c in enumerate(self.connections)))
            sent += sum(status == 200 for status, _ in answers)
        while received < sent * WATCHERS and time.monotonic() < deadline + 10:
            await asyncio.sleep(0.05)
        ended = sum(watcher.lost for watcher in watchers)
        note = f"{sent} events to {WATCHERS} watchers" + (f", {ended} of them cut off" if ended else "")
        self.report("watch", received, time.monotonic() - started, self.cpu() - cpu, sent * WATCHERS - received, 0, note)
        for watcher in watchers:
            watcher.transport.abort()

    async def revision(self) -> str:
        return (await self.call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?limit=1"))[1]["metadata"]["resourceVersion"]

    async def delete(self) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        await self.measure("delete", lambda i: self.encode("DELETE", f"{path}/{name(i)}?gracePeriodSeconds=0"), self.args.pods)

    async def run(self) -> None:
        await self.set_up()
        rows = [r for r in ROWS if r in self.args.only.split(",")] if self.args.only else list(ROWS)
        try:
            for row in rows:
                step: Callable[[], Awaitable[None]] = getattr(self, row)
                await step()
        finally:
            if "delete" in rows:
                with contextlib.suppress(Exception):
                    await self.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
            for connection in self.connections:
                connection.transport.abort()
        if self.args.json:
            with open(self.args.json, "w") as f:
                json.dump(self.results, f, indent=1)


def name(i: int) -> str:
    return f"load-{i:06d}"


def pod(i: int) -> dict[str, Any]:
    """A pod as workloads have it; with what the server adds, about 5.2 KB."""
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 2}
    env = [{"name": f"SETTING_{k}", "value": f"value-of-setting-{k}"} for k in range(10)]
    container = {
        "name": "app", "image": "registry.example/team/app:1.2.3", "args": ["--listen=:8080", "--log-level=info"], "env": env,
        "ports": [{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "metrics"}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
        "livenessProbe": probe, "readinessProbe": probe, "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}, {"name": "cache", "mountPath": "/var/cache/app"}],
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(i),
            "labels": {"app": "load", "group": f"g{i // LABELLED}", "tier": "backend"},
            "annotations": {"example.com/checksum": "0123456789abcdef" * 4},
        },
        "spec": {
            "containers": [container],
            "volumes": [{"name": "config", "configMap": {"name": "app-config"}}, {"name": "cache", "emptyDir": {}}],
            "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "load", "effect": "NoSchedule"}],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--ca")
    parser.add_argument("--pids", default="", help="processes whose CPU time and memory are shown, comma-separated")
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default="", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--json", help="write the results here")
    uvloop.run(Load(parser.parse_args()).run())


if __name__ == "__main__":
    main()
