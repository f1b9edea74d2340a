"""PersistentVolume and PersistentVolumeClaim."""

from __future__ import annotations

from typing import Any

KINDS: list[Any] = []


def claim_spec(spec: dict[str, Any], at: str) -> list[Any]:
    return []


def claim_warnings(spec: dict[str, Any], at: str) -> list[str]:
    return []
