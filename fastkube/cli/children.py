"""Child processes of `fastkube up`: one part each, started again when it dies, ended with the parent.

A child gets SIGTERM when its parent dies for whatever reason (PR_SET_PDEATHSIG), so a `kill -9` of the parent leaves no part behind; what
must survive (containerd, containers) is not a child of ours.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor

RESTART_BACKOFF_SECONDS_MIN = 0.5
RESTART_BACKOFF_SECONDS_MAX = 15.0
STEADY_SECONDS = 30.0  # a child that ran this long starts again without back-off
STOP_GRACE_SECONDS = 10.0

PR_SET_PDEATHSIG = 1

log = logs.get("up")
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(0)

    return prepare


@dataclass(slots=True)
class Child:
    """A part and the arguments it runs with. `netns`: path of the network namespace it lives in."""

    name: str
    arguments: Sequence[str]
    netns: str | None = None
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    def argv(self) -> list[str]:
        enter = ["nsenter", f"--net={self.netns}"] if self.netns else []
        return [*enter, sys.executable, "-m", "fastkube", *self.arguments]


class Children:
    """Starts children and keeps them running until `close`."""

    def __init__(self, log_format: str = "json") -> None:
        self.children: list[Child] = []
        self._supervisor = Supervisor("children")
        self._stopping = False
        self._environment = {**os.environ, "FASTKUBE_LOG_FORMAT": log_format}

    def start(self, child: Child) -> None:
        self.children.append(child)
        self._supervisor.start(child.name, lambda: self._keep(child))

    async def _keep(self, child: Child) -> None:
        backoff = RESTART_BACKOFF_SECONDS_MIN
        while not self._stopping:
            started = clock.monotonic()
            child.process = await asyncio.create_subprocess_exec(
                *child.argv(), stdin=asyncio.subprocess.DEVNULL, env=self._environment, preexec_fn=_die_with_parent(os.getpid())
            )
            log.info("part started", part=child.name, pid=child.process.pid)
            code = await child.process.wait()
            if self._stopping:
                return
            backoff = RESTART_BACKOFF_SECONDS_MIN if clock.monotonic() - started > STEADY_SECONDS else min(backoff * 2, RESTART_BACKOFF_SECONDS_MAX)
            log.warning("part ended, will be started again", part=child.name, exit_code=code, backoff_seconds=backoff)
            await asyncio.sleep(backoff)

    async def close(self) -> None:
        """SIGTERM to all, SIGKILL to those that are still there after the grace."""
        self._stopping = True
        running = [c for c in self.children if c.process and c.process.returncode is None]
        for child in running:
            child.process.terminate()  # type: ignore[union-attr]
        waits = [asyncio.ensure_future(c.process.wait()) for c in running]  # type: ignore[union-attr]
        if waits:
            _, late = await asyncio.wait(waits, timeout=STOP_GRACE_SECONDS)
            if late:
                for child in running:
                    if child.process.returncode is None:  # type: ignore[union-attr]
                        log.warning("part did not end in time, killed", part=child.name)
                        child.process.kill()  # type: ignore[union-attr]
                await asyncio.wait(waits)
        await self._supervisor.close()
