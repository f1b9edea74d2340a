"""The runtime's pods as the agent sees them: relisted when something changed, never guessed.

Laws:
1. A change in the runtime is a hint (an event of containerd or CRI, an action of our own, or the clock); what changed is found by one list
   of sandboxes and one of containers, and details are asked only of what changed since.
2. `refresh` answers from a list that began after it was called: who acted and then refreshes sees its action. Callers share lists.
3. Without events from the runtime it is asked each RELIST_SECONDS; with them, each RELIST_SAFETY_SECONDS to be sure.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as pb

from fastkube.node import model
from fastkube.node.cri import Cri, CriError
from fastkube.node.model import Container, RuntimePod, Sandbox
from fastkube.runtime import clock, logs

RELIST_SECONDS = 1.0
RELIST_SAFETY_SECONDS = 30.0
SETTLE_SECONDS = 0.02  # events come in bursts: one list for all of a burst
LATE_SECONDS = (0.1, 0.4)  # lists after the one that a hint caused
TERMINATION_MESSAGE_BYTES_MAX = 4096
FALLBACK_LOG_BYTES_MAX = 2048
FALLBACK_LOG_LINES_MAX = 80

log = logs.get("relist")

_PHASES: dict[int, model.ContainerPhase] = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
    pb.CONTAINER_UNKNOWN: "unknown",
}


class RuntimeView:
    """`pods` by uid. `on_change(uid)` is called for each pod whose state in the runtime changed."""

    def __init__(self, cri: Cri, on_change: Callable[[str], None]) -> None:
        self.cri = cri
        self.on_change = on_change
        self.pods: dict[str, RuntimePod] = {}
        self.healthy_at = 0.0  # monotonic time of the last complete list
        self.error = "not listed yet"
        self.lists = 0
        self._sandboxes: dict[str, tuple[Any, Sandbox]] = {}  # id -> (signature, details)
        self._containers: dict[str, tuple[Any, Container]] = {}
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._evented = False
        self._hint = asyncio.Event()

    def get(self, uid: str) -> RuntimePod:
        return self.pods.get(uid) or RuntimePod(uid)

    # --- tasks ---

    async def follow_events(self) -> None:
        """Turn the runtime's events into hints; a runtime without events is polled."""
        while True:
            try:
                self._evented = True
                async for _ in self.cri.changes():
                    self._hint.set()
            except CriError as e:
                if e.code == "UNIMPLEMENTED":
                    log.info("the runtime sends no events, it will be polled", seconds=RELIST_SECONDS)
                    self._evented = False
                    return
                log.warning("lost the runtime's events", error=str(e))
            self._hint.set()
            await asyncio.sleep(RELIST_SECONDS)

    async def run(self) -> None:
        """List whenever there is a hint, and from time to time. An event may come before CRI's answers show it: then again, a few times."""
        late: list[float] = []
        while True:
            try:
                await self.refresh()
            except CriError as e:
                if self.error != str(e):
                    log.warning("could not list the runtime's pods", error=str(e))
                self.error = str(e)
                await asyncio.sleep(RELIST_SECONDS)
                continue
            patience = late.pop(0) if late else RELIST_SAFETY_SECONDS if self._evented else RELIST_SECONDS
            try:
                async with asyncio.timeout(patience):
                    await self._hint.wait()
                late = list(LATE_SECONDS)
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass
            self._hint.clear()

    async def refresh(self) -> None:
        """A list that begins from here on; CriError when the runtime does not answer."""
        running = self._running
        if running is None or running.done():
            self._running = asyncio.ensure_future(self._relist())
            await asyncio.shield(self._running)
            return
        if self._next is None or self._next.done():
            self._next = asyncio.ensure_future(self._after(running))
        await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Task[None]) -> None:
        await asyncio.wait([running])
        self._running = asyncio.current_task()
        self._next = None
        await self._relist()

    # --- one list ---

    async def _relist(self) -> None:
        sandboxes, containers = await asyncio.gather(self.cri.list_sandboxes(), self.cri.list_containers())
        self.lists += 1
        changed: set[str] = set()
        seen_sandboxes = {s.id: s for s in sandboxes if model.LABEL_POD_UID in s.labels}
        seen_containers = {c.id: c for c in containers if model.LABEL_POD_UID in c.labels}
        asks = []
        for s in seen_sandboxes.values():
            known = self._sandboxes.get(s.id)
            if known is None or known[0] != s.state:
                asks.append(self._sandbox(s))
                changed.add(s.labels[model.LABEL_POD_UID])
        for c in seen_containers.values():
            known_c = self._containers.get(c.id)
            if known_c is None or known_c[0] != c.state:
                asks.append(self._container(c))
                changed.add(c.labels[model.LABEL_POD_UID])
        if asks:
            await asyncio.gather(*asks)
        for uid, pod in self.pods.items():
            if any(s.id not in seen_sandboxes for s in pod.sandboxes) or any(c.id not in seen_containers for c in pod.containers):
                changed.add(uid)
        for gone in self._sandboxes.keys() - seen_sandboxes.keys():
            del self._sandboxes[gone]
        for gone in self._containers.keys() - seen_containers.keys():
            del self._containers[gone]
        for uid in changed:
            self._rebuild(uid, list(seen_sandboxes.values()), list(seen_containers.values()))
        self.healthy_at = clock.monotonic()
        self.error = ""
        for uid in changed:
            self.on_change(uid)

    def _rebuild(self, uid: str, sandboxes: list[Any], containers: list[Any]) -> None:
        mine = [s for s in sandboxes if s.labels[model.LABEL_POD_UID] == uid]
        inside = [c for c in containers if c.labels[model.LABEL_POD_UID] == uid]
        if not mine and not inside:
            self.pods.pop(uid, None)
            return
        labels = (mine or inside)[0].labels
        pod = RuntimePod(uid, labels.get(model.LABEL_POD_NAME, ""), labels.get(model.LABEL_POD_NAMESPACE, ""))
        pod.sandboxes = sorted((self._sandboxes[s.id][1] for s in mine if s.id in self._sandboxes), key=lambda s: (s.attempt, s.created_at), reverse=True)
        pod.containers = sorted((self._containers[c.id][1] for c in inside if c.id in self._containers), key=lambda c: c.created_at, reverse=True)
        self.pods[uid] = pod

    async def _sandbox(self, item: Any) -> None:
        details = Sandbox(item.id, item.metadata.attempt, item.state == pb.SANDBOX_READY, item.created_at / 1e9)
        if details.ready:
            try:
                status = (await self.cri.sandbox_status(item.id)).status
            except CriError as e:
                if not e.gone:
                    raise
                return
            details.host_network = status.linux.namespaces.options.network == pb.NODE
            details.ready = status.state == pb.SANDBOX_READY
            network = status.network
            details.ips = tuple(ip for ip in (network.ip, *(a.ip for a in network.additional_ips)) if ip)
        self._sandboxes[item.id] = (item.state, details)

    async def _container(self, item: Any) -> None:
        try:
            status = (await self.cri.container_status(item.id)).status
        except CriError as e:
            if not e.gone:
                raise
            return
        self._containers[item.id] = (status.state, container_of(status, item.pod_sandbox_id))


def container_of(status: Any, sandbox_id: str) -> Container:
    """CRI's ContainerStatus as ours, with the termination message read when it has ended."""
    annotations = dict(status.annotations)
    attempt = annotations.get(model.ANNOTATION_RESTART_COUNT, "")
    out = Container(
        id=status.id,
        name=status.labels.get(model.LABEL_CONTAINER_NAME, status.metadata.name),
        sandbox_id=sandbox_id,
        attempt=int(attempt) if attempt.isdecimal() else status.metadata.attempt,
        phase=_PHASES.get(status.state, "unknown"),
        created_at=status.created_at / 1e9,
        started_at=status.started_at / 1e9,
        finished_at=status.finished_at / 1e9,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        image=status.image.image,
        image_id=status.image_ref,
        hash=annotations.get(model.ANNOTATION_HASH, ""),
        log_path=status.log_path,
        annotations=annotations,
    )
    if out.phase == "exited":
        path = annotations.get(model.ANNOTATION_TERMINATION_PATH, "")
        source = next((m.host_path for m in status.mounts if m.container_path == path), "") if path else ""
        text = _tail_of(source, TERMINATION_MESSAGE_BYTES_MAX)
        if not text and annotations.get(model.ANNOTATION_TERMINATION_POLICY) == "FallbackToLogsOnError" and out.exit_code:
            text = _last_log_lines(out.log_path)
        if text:
            out.message = f"{out.message}: {text}" if out.message else text
    return out


def _tail_of(path: str, size: int) -> str:
    if not path:
        return ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as f:
            end = f.seek(0, os.SEEK_END)
            f.seek(max(0, end - size))
            return f.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def _last_log_lines(path: str) -> str:
    """The end of a container's log without CRI's prefixes."""
    from fastkube.node import containerlogs

    if not path or not Path(path).exists():
        return ""
    text = b"".join(containerlogs.tail(path, FALLBACK_LOG_LINES_MAX))
    return text[-FALLBACK_LOG_BYTES_MAX:].decode("utf-8", "replace")
