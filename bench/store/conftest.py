"""CPU time per operation, all threads of the process, printed at the end: it holds on a noisy machine, where operations per second do not."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

_lines: list[str] = []


@pytest.fixture
def cpu(benchmark, request):
    """`cpu(work, operations, floor_us)`: run `work()` some times as a benchmark; `operations` is how many one run does."""

    def measure(work: Callable[[], object], operations: int, floor_us: float, rounds: int = 5) -> None:
        spent: list[float] = []

        def timed() -> None:
            before = time.process_time()
            work()
            spent.append((time.process_time() - before) / operations * 1e6)

        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=1)
        best = min(spent)
        benchmark.extra_info.update(cpu_us_per_operation=best, floor_us=floor_us)
        _lines.append(f"{request.node.name:60} {best:10.3f} us CPU per operation   floor {floor_us:g} us")

    return measure


def pytest_terminal_summary(terminalreporter):
    for line in _lines:
        terminalreporter.write_line(line)
