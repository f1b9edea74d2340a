"""/metrics: the names that upstream's dashboards use, counted so that a request pays for two dictionary look-ups and no label objects.

Counts are kept per label tuple in plain dicts; the text is made when somebody asks for it (Prometheus text format 0.0.4).
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

DURATION_BUCKETS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
LABEL_SETS_MAX = 20_000  # beyond it, new combinations are not counted

Labels = tuple[str, ...]


class Counter:
    def __init__(self, name: str, help_: str, labels: Labels) -> None:
        self.name, self.help, self.labels = name, help_, labels
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        values = self.values
        if labels in values:
            values[labels] += amount
        elif len(values) < LABEL_SETS_MAX:
            values[labels] = amount

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} counter\n"
        for labels, value in sorted(self.values.items()):
            yield f"{self.name}{_braces(self.labels, labels)} {value:g}\n" if value < 1e6 else f"{self.name}{_braces(self.labels, labels)} {value:.0f}\n"


class Histogram:
    def __init__(self, name: str, help_: str, labels: Labels, buckets: tuple[float, ...] = DURATION_BUCKETS) -> None:
        self.name, self.help, self.labels, self.buckets = name, help_, labels, buckets
        self.values: dict[Labels, list[float]] = {}  # counts per bucket, then the overflow's, then the sum

    def observe(self, labels: Labels, value: float) -> None:
        row = self.values.get(labels)
        if row is None:
            if len(self.values) >= LABEL_SETS_MAX:
                return
            row = self.values[labels] = [0.0] * (len(self.buckets) + 2)
        row[bisect.bisect_left(self.buckets, value)] += 1
        row[-1] += value

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} histogram\n"
        names = (*self.labels, "le")
        for labels, row in sorted(self.values.items()):
            total = 0.0
            for bound, count in zip((*(f"{b:g}" for b in self.buckets), "+Inf"), row, strict=False):
                total += count
                yield f"{self.name}_bucket{_braces(names, (*labels, bound))} {total:.0f}\n"
            yield f"{self.name}_sum{_braces(self.labels, labels)} {row[-1]:g}\n{self.name}_count{_braces(self.labels, labels)} {total:.0f}\n"


class Gauge:
    """A value that is asked for when it is shown: `read()` gives (labels, value) pairs."""

    def __init__(self, name: str, help_: str, labels: Labels, read: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        self.name, self.help, self.labels, self.read = name, help_, labels, read

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} gauge\n"
        for labels, value in sorted(self.read()):
            yield f"{self.name}{_braces(self.labels, labels)} {value:.17g}\n"


def _braces(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    escaped = (v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for v in values)
    return "{" + ",".join(f'{n}="{v}"' for n, v in zip(names, escaped, strict=True)) + "}"


class Metrics:
    """All of a server's metrics."""

    def __init__(self) -> None:
        request = ("code", "component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version")
        self.requests = Counter(
            "apiserver_request_total", "Counter of apiserver requests by verb, dry run, group, version, resource, scope, component and code.", request
        )
        self.durations = Histogram(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, group, version, resource, subresource, scope and component.",
            ("component", "group", "resource", "scope", "subresource", "verb", "version"),
        )
        self.terminations = Counter(
            "apiserver_request_terminations_total", "Number of requests the apiserver ended in self-defense.", ("code", "component", "verb")
        )
        self.watch_events = Counter("apiserver_watch_events_total", "Number of events sent in watch clients", ("group", "kind", "version"))
        self._all: list[Counter | Histogram | Gauge] = [self.requests, self.durations, self.terminations, self.watch_events]
        self._started = time.time()
        self.add(Gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", (), lambda: [((), self._started)]))
        self.add(Gauge("process_resident_memory_bytes", "Resident memory size in bytes.", (), lambda: [((), float(_resident()))]))
        self.add(Gauge("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", (), lambda: [((), sum(os.times()[:2]))]))
        self.add(Gauge("process_open_fds", "Number of open file descriptors.", (), lambda: [((), float(len(os.listdir("/proc/self/fd"))))]))

    def add(self, metric: Counter | Histogram | Gauge) -> None:
        self._all.append(metric)

    def render(self) -> bytes:
        return "".join(part for metric in self._all for part in metric.render()).encode()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
