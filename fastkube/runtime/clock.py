"""The only source of time.

Wall time is for what users see (timestamps, certificate validity, leases' renewTime); monotonic time is for durations.
`use` swaps the source: the simulator runs the whole control plane on a virtual clock, together with an event loop
whose `time()` is the same clock (so `asyncio.sleep` and `call_later` need no wrapper).
"""

from __future__ import annotations

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


_clock: Clock = SystemClock()


def use(clock: Clock) -> Clock:
    """Make `clock` the source of time from here on; returns the one it replaces."""
    global _clock
    previous, _clock = _clock, clock
    return previous


def now() -> float:
    return _clock.now()


def monotonic() -> float:
    return _clock.monotonic()


def rfc3339(seconds: float | None = None) -> str:
    """metav1.Time as the API writes it, whole seconds: `2026-11-20T22:43:00Z`. Defaults to now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now() if seconds is None else seconds))


def rfc3339_micro(seconds: float | None = None) -> str:
    """metav1.MicroTime as the API writes it: `2026-11-20T22:43:00.000000Z`. Defaults to now."""
    seconds = now() if seconds is None else seconds
    whole = int(seconds // 1)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}Z"


def parse(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; ValueError when it is none."""
    return datetime.datetime.fromisoformat(text).timestamp()
