"""A machine with a kernel of its own, for what this machine's kernel cannot do (IPVS, cgroup v2, reboots): QEMU under software emulation.

The guest runs Debian's kernel on the host's own files: the host's root is shared read-only over virtio-9p under an overlay in
memory, so every program and this checkout are there, and nothing the guest does is left behind. A script runs as root; its output comes
over the serial line, its exit code over QEMU's debug-exit device. A boot takes about five seconds.

    result = vm.run("ipvsadm -Ln")          # Result(code=0, output="IP Virtual Server ...")

Wants root (the guest reads files as they are), qemu-system-x86 and busybox; the kernel is fetched once with `apt-get download` into a
cache directory (FASTKUBE_VM_CACHE, else /var/cache/fastkube-vm).
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastkube.node import images

KERNEL_PACKAGE = "linux-image-amd64"
CACHE = Path(os.environ.get("FASTKUBE_VM_CACHE", "/var/cache/fastkube-vm"))
SECONDS_MAX = 300.0
CODE_MAX = 127
# Needed before the root is there, in this order as far as dependencies leave it open.
BOOT_MODULES = ("crc32c_generic", "virtio_pci", "9pnet_virtio", "9p", "overlay")

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host /rw /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || exec /bin/busybox poweroff -f
/bin/busybox mount -t tmpfs -o size=80% rw /rw
/bin/busybox mkdir -p /rw/upper /rw/work
/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /root
for dir in proc sys dev tmp run; do /bin/busybox mkdir -p /root/$dir; done
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sys /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox mkdir -p /root/dev/pts /root/dev/shm
/bin/busybox mount -t devpts devpts /root/dev/pts
/bin/busybox mount -t tmpfs shm /root/dev/shm
/bin/busybox mount -t tmpfs tmp /root/tmp
/bin/busybox mount -t tmpfs run /root/run
/bin/busybox mkdir -p /root{directory} /rw/directory /rw/directory-work
/bin/busybox mount -t overlay -o lowerdir=/host{directory},upperdir=/rw/directory,workdir=/rw/directory-work directory /root{directory}
/bin/busybox mount -t cgroup2 cgroup /root/sys/fs/cgroup
/bin/busybox mkdir -p /root/lib/modules/{release}
/bin/busybox mount --bind /root{cache}/root/lib/modules/{release} /root/lib/modules/{release}
/bin/busybox rm -f /root/sbin/modprobe
/bin/busybox ln -s /bin/busybox /root/sbin/modprobe
/bin/busybox cp /script /root/tmp/script
/bin/busybox cp /start /root/tmp/start
exec /bin/busybox switch_root /root /bin/busybox sh /tmp/start
"""

START = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
ip link set lo up
hostname vm
cd {directory}
/bin/sh /tmp/script </dev/null >/dev/ttyS0 2>&1
code=$?
[ $code -gt {code_max} ] && code={code_max}
sync
printf "\\\\$(printf %o $code)" | dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null
poweroff -f
"""


class Result(NamedTuple):
    code: int
    output: str


class Kernel(NamedTuple):
    image: Path
    modules: Path  # .../lib/modules/RELEASE

    @property
    def release(self) -> str:
        return self.modules.name


class VmError(RuntimeError):
    """The machine could not be built, or did not end by itself."""


def missing() -> str:
    """What this machine lacks for running one, in words; empty when nothing."""
    if os.geteuid() != 0:
        return "root is needed"
    wanted = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox", "apt-get": "apt", "dpkg-deb": "dpkg"}
    lacking = [package for program, package in wanted.items() if shutil.which(program) is None]
    return f"packages are missing: {' '.join(lacking)}" if lacking else ""


def kernel() -> Kernel:
    """The guest's kernel, fetched and unpacked when it is not in the cache. Raises VmError."""
    images = sorted((CACHE / "root/boot").glob("vmlinuz-*"))
    if not images:
        _fetch_kernel()
        images = sorted((CACHE / "root/boot").glob("vmlinuz-*"))
    image = images[-1]
    return Kernel(image, CACHE / "root/lib/modules" / image.name.removeprefix("vmlinuz-"))


def _fetch_kernel() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        depends = _command("apt-cache", "depends", "--important", KERNEL_PACKAGE)
        package = next((line.split()[1] for line in depends.splitlines() if "Depends: linux-image-" in line), None)
        if package is None:
            raise VmError(f"apt knows no {KERNEL_PACKAGE}; run apt-get update")
        _command("apt-get", "-q", "download", package, cwd=directory)
        unpacked = Path(directory) / "root"
        _command("dpkg-deb", "-x", *(str(p) for p in Path(directory).glob("*.deb")), str(unpacked))
        release = next((unpacked / "lib/modules").iterdir()).name
        _command("busybox", "depmod", "-b", str(unpacked), release)
        shutil.rmtree(CACHE / "root", ignore_errors=True)
        unpacked.rename(CACHE / "root")


def _command(*argv: str, cwd: str | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"{' '.join(argv)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def module_files(modules: Path, names: Iterable[str]) -> list[Path]:
    """The module files of `names` and of all they depend on, dependencies first. Built-in ones have none."""
    dependencies = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        dependencies[_module_name(path)] = (path, needs.split())
    out: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in out or name not in dependencies:
            return
        path, needs = dependencies[name]
        for need in needs:
            add(_module_name(need))
        out[name] = modules / path

    for name in names:
        add(name)
    return list(out.values())


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def initramfs(machine: Kernel, script: str, directory: Path) -> bytes:
    """The first files of the guest: busybox, the modules that lead to the root, and what is to be run."""
    modules = module_files(machine.modules, BOOT_MODULES)
    busybox = shutil.which("busybox")
    assert busybox
    init = INIT.format(modules=" ".join(m.name for m in modules), release=machine.release, cache=CACHE, directory=directory)
    files = [
        ("bin", None), ("modules", None),
        *_program(busybox),
        *((f"modules/{m.name}", m.read_bytes()) for m in modules),
        ("init", init.encode()),
        ("start", START.format(directory=directory, code_max=CODE_MAX).encode()),
        ("script", script.encode()),
    ]  # fmt: skip
    return gzip.compress(cpio(files), 1)


def _program(binary: str) -> list[tuple[str, bytes | None]]:
    """`binary` as bin/NAME, with its shared libraries where the loader looks for them."""
    paths = sorted(images.libraries(binary))
    parents = sorted({str(parent)[1:] for path in paths for parent in Path(path).parents if str(parent) != "/"})
    return [
        *((d, None) for d in parents if d != "bin"),
        *((path[1:], Path(path).read_bytes()) for path in paths),
        (f"bin/{Path(binary).name}", Path(binary).read_bytes()),
    ]


def cpio(files: Sequence[tuple[str, bytes | None]]) -> bytes:
    """An archive in the kernel's own format (newc); None is a directory. All are executable."""
    out = []
    for inode, (name, data) in enumerate([*files, ("TRAILER!!!", b"")]):
        mode = 0o040755 if data is None else 0o100755
        body = data or b""
        encoded = name.encode() + b"\0"
        fields = (inode + 1, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(encoded), 0)
        out.append(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded + b"\0" * (-(110 + len(encoded)) % 4))
        out.append(body + b"\0" * (-len(body) % 4))
    return b"".join(out)


def run(script: str, *, directory: Path | None = None, memory_mib: int = 2048, cpus: int = 2, seconds_max: float = SECONDS_MAX) -> Result:
    """Boot, run `script` (sh) in `directory` (default: here) as root, power off. Raises VmError when the machine does not end in time."""
    machine = kernel()
    with tempfile.NamedTemporaryFile(prefix="fastkube-vm-", suffix=".cpio.gz") as archive:
        archive.write(initramfs(machine, script, directory or Path.cwd()))
        archive.flush()
        argv = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", str(memory_mib), "-nodefaults", "-no-reboot",
            "-kernel", str(machine.image), "-initrd", archive.name, "-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off random.trust_cpu=on",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-display", "none", "-serial", "stdio", "-monitor", "none",
        ]  # fmt: skip
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds_max)
        except subprocess.TimeoutExpired as e:
            raise VmError(f"the machine did not end within {seconds_max} s:\n{(e.stdout or b'').decode(errors='replace')[-8000:]}") from e
    output = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    if not done.returncode & 1:
        raise VmError(f"the machine ended without a word:\n{output[-8000:]}")
    return Result(done.returncode >> 1, output)
