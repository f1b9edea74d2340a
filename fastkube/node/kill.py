"""Ending containers and pods gracefully: preStop hooks, SIGTERM, the grace period, SIGKILL, sidecars after the containers they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from fastkube.node import model, podspec
from fastkube.node.cri import Cri, CriError
from fastkube.node.model import Container, RuntimePod
from fastkube.node.probes import Actions
from fastkube.runtime import clock, logs

GRACE_AFTER_HOOK_SECONDS_MIN = 2  # what a container gets after its preStop hook used the grace up

log = logs.get("kill")

Object = dict[str, Any]
Event = Callable[[Object, str, str, str, str], None]  # pod, container, type, reason, message


class Killer:
    def __init__(self, cri: Cri, actions: Actions, event: Event) -> None:
        self.cri = cri
        self.actions = actions
        self.event = event
        self._hooked: set[str] = set()  # containers whose preStop hook has begun; it runs once

    async def container(self, pod: Object, run: Container, grace_seconds: float, message: str = "", ip: str = "") -> None:
        """Stop one container within `grace_seconds`; returns when it has ended. CriError when the runtime fails."""
        if run.phase == "exited":
            return
        self.event(pod, run.name, "Normal", "Killing", message or f"Stopping container {run.name}")
        deadline = clock.monotonic() + grace_seconds
        hook = _pre_stop(pod, run)
        if hook and run.running and grace_seconds > 0 and run.id not in self._hooked:
            self._hooked.add(run.id)
            await self._pre_stop(pod, run, hook, ip, grace_seconds)
            left = max(deadline - clock.monotonic(), GRACE_AFTER_HOOK_SECONDS_MIN)
        else:
            left = max(deadline - clock.monotonic(), 0)
        try:
            await self.cri.stop_container(run.id, int(left + 0.5))
        except CriError as e:
            if not e.gone:
                raise
        finally:
            self._hooked.discard(run.id)

    async def _pre_stop(self, pod: Object, run: Container, hook: Object, ip: str, seconds: float) -> None:
        container = podspec.find(pod, run.name) or {"name": run.name, "ports": orjson.loads(run.annotations.get(model.ANNOTATION_PORTS, "[]"))}
        if "sleep" in hook:
            await asyncio.sleep(min(hook["sleep"].get("seconds", 0), seconds))
            return
        try:
            async with asyncio.timeout(seconds):
                result = await self.actions.run(hook, container, run, ip, seconds)
            failure = "" if result.success else result.text
        except TimeoutError:
            failure = f"timed out after {seconds:.0f}s"
        if failure:
            self.event(pod, run.name, "Warning", "FailedPreStopHook", "PreStopHook failed")
            log.warning("preStop hook failed", pod=podspec.key_of(pod), container=run.name, error=failure)

    async def pod(self, pod: Object, runtime: RuntimePod, grace_seconds: float) -> None:
        """Stop everything of a pod: containers together, then sidecars in reverse order of their start, then its sandboxes. CriError."""
        deadline = clock.monotonic() + grace_seconds
        ip = runtime.sandbox.ips[0] if runtime.sandbox and runtime.sandbox.ips else ""
        order = {c["name"]: i for i, c in enumerate(c for c in podspec.init_containers(pod) if podspec.is_sidecar(c))}
        sidecars = sorted((r for r in runtime.running() if r.name in order), key=lambda r: -order[r.name])
        others = [r for r in runtime.running() if r.name not in order]
        await _all(self.container(pod, r, grace_seconds, ip=ip) for r in others)
        for run in sidecars:
            await self.container(pod, run, max(deadline - clock.monotonic(), 0), ip=ip)
        await _all(self._stop_sandbox(s.id) for s in runtime.sandboxes if s.ready)

    async def _stop_sandbox(self, id: str) -> None:
        try:
            await self.cri.stop_sandbox(id)
        except CriError as e:
            if not e.gone:
                raise


def _pre_stop(pod: Object, run: Container) -> Object | None:
    """The hook as the spec has it, else as the container was made with it (a pod whose spec is gone)."""
    container = podspec.find(pod, run.name)
    if container is not None:
        return (container.get("lifecycle") or {}).get("preStop")
    kept = run.annotations.get(model.ANNOTATION_PRE_STOP)
    return orjson.loads(kept) if kept else None


async def _all(works: Any) -> None:
    """Wait for all of them, then raise the first failure."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
