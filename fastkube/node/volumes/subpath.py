"""Paths inside a volume that a container could have tampered with: opened so that no link leads out, then mounted by descriptor.

openat2(2) with RESOLVE_BENEATH follows links inside the volume and refuses every way out of it, atomically; what was opened is bound to a place
of ours, so nothing can be swapped between check and use.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from fastkube.node import mounts

SYS_OPENAT2 = 437  # the same on all architectures
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08

_libc = ctypes.CDLL(None, use_errno=True)


class EscapesVolume(ValueError):
    """The path leads out of its volume."""


def open_beneath(root: int, path: str, flags: int) -> int:
    """A descriptor of `path` below the directory `root`; OSError, EscapesVolume."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(SYS_OPENAT2, root, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        number = ctypes.get_errno()
        if number in (errno.EXDEV, errno.ELOOP):
            raise EscapesVolume(f"subPath {path!r} leads out of its volume")
        raise OSError(number, os.strerror(number), path)
    return fd


def ensure(root: int, path: str, mode: int) -> int:
    """Open `path` below `root`, making missing directories with `mode`."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    for depth in range(1, len(parts) + 1):
        here = "/".join(parts[:depth])
        try:
            os.close(open_beneath(root, here, os.O_PATH))
        except FileNotFoundError:
            parent = open_beneath(root, "/".join(parts[: depth - 1]) or ".", os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(parts[depth - 1], 0o700, dir_fd=parent)
                made = os.open(parts[depth - 1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                os.fchmod(made, mode)  # past the umask
                os.close(made)
            except FileExistsError:
                pass
            finally:
                os.close(parent)
    return open_beneath(root, "/".join(parts) or ".", os.O_PATH)


def bind(volume: Path, path: str, target: Path) -> Path:
    """Mount `path` of `volume` on `target` (made for it: directory or file); made in the volume when it is missing."""
    if mounts.mounted_at(target):
        mounts.umount(target)
    root = os.open(volume, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = ensure(root, path, os.stat(volume).st_mode & 0o7777)
    finally:
        os.close(root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        mounts.mount(f"/proc/self/fd/{fd}", target, flags=mounts.MS_BIND | mounts.MS_REC)
    finally:
        os.close(fd)
    return target
