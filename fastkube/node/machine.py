"""What the machine is and has: capacity, versions, addresses, as the node's status tells it."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkube.node.images import ARCHITECTURES

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """Capacity in base units: CPUs, bytes."""

    cpus: int
    memory: int
    storage: int
    huge_pages: dict[str, int]  # "2Mi" -> bytes
    architecture: str
    info: Object  # NodeSystemInfo without the runtime's version


def look(root: Path) -> Machine:
    """The machine; `root`: the node's directory, whose filesystem is its ephemeral storage."""
    disk = os.statvfs(root)
    return Machine(
        cpus=os.cpu_count() or 1,
        memory=memory_total(),
        storage=disk.f_blocks * disk.f_frsize,
        huge_pages=_huge_pages(),
        architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
        info={
            "machineID": _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id"),
            "systemUUID": _read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
            "bootID": _read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": platform.release(),
            "osImage": _os_image(),
            "operatingSystem": "linux",
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        },
    )


def memory_total() -> int:
    return _meminfo("MemTotal")


def memory_available() -> int:
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int:
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return 0


def _huge_pages() -> dict[str, int]:
    out = {}
    base = Path("/sys/kernel/mm/hugepages")
    for directory in sorted(base.glob("hugepages-*kB")) if base.is_dir() else ():
        size = int(directory.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        count = _read(str(directory / "nr_hugepages"))
        out[f"{size >> 30}Gi" if size >= 1 << 30 else f"{size >> 20}Mi"] = size * int(count or 0)
    return out


def _os_image() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"


def hostname() -> str:
    return socket.gethostname().strip().lower()


def default_address() -> str:
    """The address that packets to elsewhere would carry; without a default route, the first one that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # sends nothing
            return s.getsockname()[0]
        except OSError:
            pass
    try:
        return next(
            (a for a in {i[4][0] for i in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} if not str(a).startswith("127.")), "127.0.0.1"
        )  # type: ignore[return-value]
    except OSError:
        return "127.0.0.1"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
