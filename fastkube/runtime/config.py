"""Files that hold keys and configuration: written whole or not at all, secrets for their owner only; and the durations that stand in them."""

from __future__ import annotations

import os
import re
from pathlib import Path


def write_file(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Replace `path` in one step (write beside, fsync, rename), created with `mode` from the start; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(fd, mode)
        with os.fdopen(fd, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of a Go duration (`40s`, `1m30s`, `0`; https://pkg.go.dev/time#ParseDuration, without signs). ValueError for what is none."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return sum(float(n) * _UNITS[u] for n, u in parts)
