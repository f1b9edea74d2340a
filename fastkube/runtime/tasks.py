"""Named tasks and supervision.

Every long-running loop is a named task (py-spy and /metrics show the name) owned by a `Supervisor`: a loop that fails is
logged and started again after a back-off; when the supervisor closes, all of its tasks are cancelled and awaited. No task
is ever left without an owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastkube.runtime import clock, entropy, logs

RESTART_BACKOFF_SECONDS_MIN = 0.1
RESTART_BACKOFF_SECONDS_MAX = 30.0

log = logs.get("tasks")


class Supervisor:
    """Owns tasks; an async context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work()` until it returns; when it raises, log and run it again after a back-off (0.1 s doubling to 30 s)."""
        return self._own(name, self._forever(name, work))

    def once(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` to its end; a failure is logged, not repeated."""
        return self._own(name, self._logged(name, work))

    def _own(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _logged(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except asyncio.CancelledError:
            raise
        except Exception:
            self.failures += 1
            log.exception("task failed", task=f"{self.name}/{name}")

    async def _forever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        backoff = RESTART_BACKOFF_SECONDS_MIN
        while True:
            started = clock.monotonic()
            try:
                return await work()
            except asyncio.CancelledError:
                raise
            except Exception:
                self.failures += 1
                if clock.monotonic() - started > RESTART_BACKOFF_SECONDS_MAX:
                    backoff = RESTART_BACKOFF_SECONDS_MIN
                log.exception("task failed, will be started again", task=f"{self.name}/{name}", backoff_seconds=backoff)
            await asyncio.sleep(entropy.jitter(backoff))
            backoff = min(backoff * 2, RESTART_BACKOFF_SECONDS_MAX)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
