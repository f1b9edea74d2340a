"""mount(2), umount2(2) and setns(2), which Python 3.11 does not offer, and what is mounted where."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount; OSError with the target's path."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, str(target))


def umount(target: str | Path) -> None:
    """Detach what is mounted on `target`; nothing mounted there is fine."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW) and ctypes.get_errno() not in (2, 22):
        _check(-1, str(target))


def setns_net(fd: int) -> None:
    """Move the calling thread into the network namespace behind `fd`."""
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def mounted_at(target: str | Path) -> bool:
    return str(target) in _points()


def points_below(directory: str | Path) -> list[str]:
    """Mount points at or below `directory`, innermost first."""
    prefix = str(directory)
    return sorted((p for p in _points() if p == prefix or p.startswith(prefix + "/")), key=len, reverse=True)


def unmount_below(directory: str | Path) -> None:
    """Detach every mount at or below `directory`."""
    for point in points_below(directory):
        umount(point)


def _points() -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as f:
        return [line.split(" ")[1].encode("utf-8", "surrogateescape").decode("unicode_escape") if "\\" in line else line.split(" ")[1] for line in f]
