"""Probes: startup, readiness and liveness by exec, HTTP, TCP and gRPC.

`Counter` is the pure core: results in, verdict out, thresholds as the API documents them. `Prober` runs a task per probe of a running
container and writes verdicts into the pod's Memory. Laws: liveness and readiness probes wait for the startup probe; a verdict belongs to one run of a
container (by id) and dies with it; a probe that gave up on a container is silent until that container is gone.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import grpc.aio

from fastkube.node import podspec
from fastkube.node.cri import Cri, CriError
from fastkube.node.model import Container, Memory
from fastkube.node.podstate import is_started
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor

BODY_BYTES_MAX = 10 * 1024
QUIET_SECONDS = 1.0  # a container that does not serve yet so soon after its start is no event
GATE_SECONDS = 1.0  # how often a probe looks whether its container has started

log = logs.get("probes")

Object = dict[str, Any]
Event = Callable[[Object, str, str, str, str], None]  # pod, container, type, reason, message

SPECS = {"startup": "startupProbe", "readiness": "readinessProbe", "liveness": "livenessProbe"}
WORDS = {"startup": "Startup", "readiness": "Readiness", "liveness": "Liveness"}


@dataclass(slots=True)
class Counter:
    """Consecutive equal results against the thresholds."""

    failure_threshold: int
    success_threshold: int
    last: bool | None = None
    run: int = 0

    def count(self, success: bool) -> bool | None:
        """The verdict that this result settles; None while it is below its threshold."""
        if success is self.last:
            self.run += 1
        else:
            self.last, self.run = success, 1
        return success if self.run >= (self.success_threshold if success else self.failure_threshold) else None


@dataclass(frozen=True, slots=True)
class Result:
    success: bool
    text: str = ""
    errored: bool = False  # the probe itself did not work


class Actions:
    """Carrying out a probe's or a hook's action against a container."""

    def __init__(self, cri: Cri) -> None:
        self.cri = cri
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=_unverified()), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session

    async def run(self, action: Object, container: Object, run: Container, ip: str, seconds: float) -> Result:
        """One try. Never raises but for cancellation."""
        try:
            if "exec" in action:
                return await self._exec(action["exec"].get("command") or [], run, seconds)
            if "httpGet" in action:
                return await self._http_get(action["httpGet"], container, ip, seconds)
            if "tcpSocket" in action:
                return await self._tcp(action["tcpSocket"], container, ip, seconds)
            if "grpc" in action:
                return await self._grpc(action["grpc"], ip, seconds)
        except (KeyError, TypeError, ValueError) as e:
            return Result(False, f"invalid probe: {e!r}", errored=True)
        return Result(False, "missing probe handler", errored=True)

    async def _exec(self, command: list[str], run: Container, seconds: float) -> Result:
        try:
            answer = await self.cri.exec_sync(run.id, command, max(1, int(seconds)))
        except CriError as e:
            if e.code == "DEADLINE_EXCEEDED":
                return Result(False, f'command timed out: "{" ".join(command)}" timed out after {int(seconds)}s')
            return Result(False, str(e), errored=True)
        text = (answer.stdout + answer.stderr)[:BODY_BYTES_MAX].decode("utf-8", "replace")
        return Result(answer.exit_code == 0, text)

    async def _http_get(self, spec: Object, container: Object, ip: str, seconds: float) -> Result:
        port = podspec.port_of(container, spec["port"])
        host = spec.get("host") or ip
        scheme = (spec.get("scheme") or "HTTP").lower()
        path = spec.get("path") or "/"
        url = f"{scheme}://{_bracket(host)}:{port}{path if path.startswith('/') else '/' + path}"
        headers = {h["name"]: h["value"] for h in spec.get("httpHeaders") or ()}
        headers.setdefault("User-Agent", "kube-probe/1.36")
        headers.setdefault("Accept", "*/*")
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._http().get(_raw_url(url), headers=headers, timeout=timeout, allow_redirects=False) as answer:
                body = await answer.content.read(BODY_BYTES_MAX)
                if 200 <= answer.status < 400:
                    return Result(True, body.decode("utf-8", "replace"))
                return Result(False, f"HTTP probe failed with statuscode: {answer.status}")
        except TimeoutError:
            return Result(False, f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)')
        except aiohttp.ClientConnectorError as e:
            return Result(False, f'Get "{url}": dial tcp {_bracket(host)}:{port}: connect: {_reason(e.os_error)}')
        except (aiohttp.ClientError, OSError) as e:
            return Result(False, f'Get "{url}": {e}')

    async def _tcp(self, spec: Object, container: Object, ip: str, seconds: float) -> Result:
        port, host = podspec.port_of(container, spec["port"]), spec.get("host") or ip
        try:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            return Result(False, f"dial tcp {_bracket(host)}:{port}: i/o timeout")
        except OSError as e:
            return Result(False, f"dial tcp {_bracket(host)}:{port}: connect: {_reason(e)}")
        writer.close()
        return Result(True)

    async def _grpc(self, spec: Object, ip: str, seconds: float) -> Result:
        """grpc.health.v1.Health/Check; its two messages are one field each."""
        service = (spec.get("service") or "").encode()
        request = b"\x0a" + bytes((len(service),)) + service if service and len(service) < 128 else b""
        target = f"{_bracket(ip)}:{spec['port']}"
        async with grpc.aio.insecure_channel(target, options=[("grpc.primary_user_agent", "kube-probe/1.36")]) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
            try:
                answer = await check(request, timeout=seconds)
            except grpc.aio.AioRpcError as e:
                if e.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    return Result(False, f'timeout: failed to connect service "{target}" within {seconds:g}s: context deadline exceeded')
                if e.code() == grpc.StatusCode.UNIMPLEMENTED:
                    return Result(False, f"this server does not implement the grpc health protocol (grpc.health.v1.Health): {e.details()}")
                return Result(False, f"service unhealthy (responded with {e.code().name}): {e.details()}")
        if answer == b"\x08\x01":
            return Result(True, "service healthy")
        word = {2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}.get(answer[1] if len(answer) > 1 else 0, "UNKNOWN")
        return Result(False, f'service unhealthy (responded with "{word}")')


def _unverified() -> ssl.SSLContext:
    """Probes over HTTPS do not verify certificates (as documented for httpGet probes)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _raw_url(url: str) -> Any:
    import yarl

    return yarl.URL(url, encoded=True)


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: BaseException | None) -> str:
    """The kernel's words for what a connect failed with, as Go prints them."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else str(error)


@dataclass(slots=True)
class _Watched:
    task: asyncio.Task[Any]
    id: str


class Prober:
    """The probes of one pod. `changed()` is called when a verdict of it changed."""

    def __init__(self, actions: Actions, memory: Memory, supervisor: Supervisor, event: Event, changed: Callable[[], None]) -> None:
        self.actions = actions
        self.memory = memory
        self.event = event
        self.changed = changed
        self._supervisor = supervisor
        self._tasks: dict[tuple[str, str], _Watched] = {}

    def sync(self, pod: Object, running: dict[str, Container], ip: str) -> None:
        """Probe exactly the running containers (name -> run)."""
        wanted: dict[tuple[str, str], tuple[Object, Container]] = {}
        for container in [*podspec.init_containers(pod), *podspec.containers(pod)]:
            run = running.get(container["name"])
            if run is None:
                continue
            for kind, key in SPECS.items():
                if container.get(key):
                    wanted[container["name"], kind] = (container, run)
        for at, watched in list(self._tasks.items()):
            if at not in wanted or watched.id != wanted[at][1].id or watched.task.done():
                watched.task.cancel()
                del self._tasks[at]
        for at, (container, run) in wanted.items():
            if at not in self._tasks:
                kind = at[1]
                work = self._probe(pod, container, run, kind, container[SPECS[kind]], ip)
                self._tasks[at] = _Watched(self._supervisor.once(f"{kind} probe {podspec.key_of(pod)}/{at[0]}", work), run.id)

    def stop(self, keep: str = "") -> None:
        for at, watched in list(self._tasks.items()):
            if at[1] != keep:
                watched.task.cancel()
                del self._tasks[at]

    async def _probe(self, pod: Object, container: Object, run: Container, kind: str, spec: Object, ip: str) -> None:
        period = max(1, spec.get("periodSeconds") or 10)
        timeout = max(1, spec.get("timeoutSeconds") or 1)
        counter = Counter(max(1, spec.get("failureThreshold") or 3), max(1, spec.get("successThreshold") or 1))
        memory = self.memory
        delay = (run.started_at or clock.now()) + (spec.get("initialDelaySeconds") or 0) - clock.now()
        if delay > 0:
            await asyncio.sleep(delay)
        elif clock.now() - run.started_at > period:  # the agent came back: not all probes of the node at once
            await asyncio.sleep(entropy.generator().random() * period)
        while True:
            if kind == "startup":
                if memory.started.get(run.id):
                    return
            else:
                while not is_started(container, run, memory):
                    await asyncio.sleep(min(GATE_SECONDS, period))
            began = clock.monotonic()
            result = await self.actions.run(spec, container, run, ip, timeout)
            # In its first period a container that only comes up is asked each second, so that it serves as soon as it can.
            early = kind == "readiness" and not result.success and not memory.ready.get(run.id) and clock.now() - run.started_at < period
            if not result.success and not (early and (counter.last is False or clock.now() - run.started_at < QUIET_SECONDS)):
                word = "errored and resulted in unknown state" if result.errored else "failed"
                self.event(pod, container["name"], "Warning", "Unhealthy", f"{WORDS[kind]} probe {word}: {result.text}")
            verdict = counter.count(result.success)
            if verdict is not None and self._settle(container, run, kind, verdict):
                self.changed()
            if verdict is False and kind != "readiness":
                return
            await asyncio.sleep(max(0.0, (min(1.0, period) if early else period) - (clock.monotonic() - began)))

    def _settle(self, container: Object, run: Container, kind: str, verdict: bool) -> bool:
        """Write a verdict down; whether it is news."""
        memory = self.memory
        if kind == "readiness":
            if memory.ready.get(run.id, False) is verdict:
                return False
            memory.ready[run.id] = verdict
            return True
        if kind == "startup" and verdict:
            memory.started[run.id] = True
            return True
        if verdict:
            return False
        memory.unhealthy[run.id] = f"Container {container['name']} failed {kind} probe"
        return True
