"""Directories of small files that change all at once (configMap, secret, downwardAPI, projected volumes).

Law: whoever reads through a path sees either the old set of files or the new one, never a mixture. The files lie in a directory named
after the time; `..data` is a symbolic link to it, replaced by rename; each visible name is a link through `..data`. Layout as upstream's.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastkube.runtime import clock, entropy

DATA, DATA_BESIDE = "..data", "..data_tmp"


@dataclass(frozen=True, slots=True)
class File:
    """`uid`: owner, None for root. Mode as in the API (permission bits)."""

    data: bytes
    mode: int = 0o644
    uid: int | None = None


class BadPath(ValueError):
    """A path that would leave the volume."""


def check(path: str) -> str:
    """A volume's relative path; BadPath when it is absolute, has `..` in it or starts with it."""
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or parts[0].startswith(".."):
        raise BadPath(f"invalid path {path!r}: must be relative and must not contain '..'")
    return path


def write(directory: Path, files: Mapping[str, File], gid: int | None = None) -> bool:
    """Make `directory` hold exactly `files` (relative path -> File); `gid` owns them, then they are group-readable. Whether anything changed."""
    for path in files:
        check(path)
    directory.mkdir(parents=True, exist_ok=True)
    current = _current(directory)
    if current is not None and _same(current, files, gid):
        return False
    fresh = directory / f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime(clock.now()))}.{entropy.generator().randrange(10**9)}"
    fresh.mkdir(mode=0o755)
    os.chmod(fresh, 0o755 if gid is None else 0o2755)
    if gid is not None:
        os.chown(fresh, -1, gid)
    for path, file in files.items():
        _write_file(fresh, path, file, gid)
    beside = directory / DATA_BESIDE
    beside.unlink(missing_ok=True)
    beside.symlink_to(fresh.name)
    os.rename(beside, directory / DATA)
    _link(directory, {p.split("/", 1)[0] for p in files})
    if current is not None:
        shutil.rmtree(current, ignore_errors=True)
    return True


def _write_file(base: Path, path: str, file: File, gid: int | None) -> None:
    at = base / path
    at.parent.mkdir(parents=True, exist_ok=True)
    mode = file.mode | (0o440 if gid is not None else 0)
    fd = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(file.data)
        if gid is not None or file.uid is not None:
            os.fchown(fd, -1 if file.uid is None else file.uid, -1 if gid is None else gid)
        os.fchmod(fd, mode)


def _current(directory: Path) -> Path | None:
    try:
        return directory / os.readlink(directory / DATA)
    except OSError:
        return None


def _same(current: Path, files: Mapping[str, File], gid: int | None) -> bool:
    there = {str(Path(base, name).relative_to(current)) for base, _, names in os.walk(current) for name in names}
    if there != set(files):
        return False
    for path, file in files.items():
        at = current / path
        status = at.stat()
        mode = file.mode | (0o440 if gid is not None else 0)
        if (
            status.st_size != len(file.data)
            or status.st_mode & 0o7777 != mode
            or (file.uid is not None and status.st_uid != file.uid)
            or at.read_bytes() != file.data
        ):
            return False
    return True


def _link(directory: Path, names: set[str]) -> None:
    for name in names:
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(f"{DATA}/{name}")
    for entry in os.scandir(directory):
        if entry.name.startswith("..") or entry.name in names:
            continue
        if entry.is_symlink():
            os.unlink(entry.path)
