"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing else is to be done.

`run(main())` runs a coroutine, and everything it starts, on such a loop with `runtime.clock` and `runtime.entropy` bound to it: the same
seed gives the same run, and a year of timers passes as fast as they can be handled. Work handed to threads is waited for in
real time (the clock stands still meanwhile). A loop with nothing left that could ever happen raises `Deadlock`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastkube.runtime import clock, entropy

EPOCH = 1_700_000_000.0  # wall time at the start of a run: 2023-11-14T22:13:20Z
DEADLOCK_SECONDS = 10.0  # real seconds without timers, threads and input before a run is given up

T = TypeVar("T")


class Deadlock(RuntimeError):
    """No timer, no thread, no input: nothing can ever happen again."""


class _Selector(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.loop.threads:
            return super().select(0.001 if timeout is not None else 1.0)
        if timeout is None:
            ready = super().select(DEADLOCK_SECONDS)
            if not ready:
                raise Deadlock("nothing is left to happen in this loop")
            return ready
        self.loop.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is the virtual clock, starting at 0."""

    def __init__(self) -> None:
        self._now = 0.0
        self.threads = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-6  # far above the rounding of a year in seconds: a due timer is never missed by a hair

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: Any) -> None:
        self.threads -= 1


class VirtualClock:
    def __init__(self, loop: VirtualLoop, epoch: float = EPOCH) -> None:
        self._loop = loop
        self._epoch = epoch

    def now(self) -> float:
        return self._epoch + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()


def run(main: Coroutine[Any, Any, T], *, seed: int = 0, epoch: float = EPOCH) -> T:
    """Run `main` on a virtual loop; clock and entropy are as before afterwards."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        previous = clock.use(VirtualClock(loop, epoch))
        entropy.seed(seed)
        try:
            return runner.run(main)
        finally:
            clock.use(previous)
            entropy.seed(None)
