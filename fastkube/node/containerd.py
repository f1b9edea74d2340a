"""A containerd of a node's own: its root, state, socket, configuration and images lie under the node's data directory.

Guarantees: it is started detached (a session of its own), so it and the containers outlive the agent, also a `kill -9`; whoever comes next
finds it by its socket and uses it again. It is ended by its pid file only, and only when the pid is still that containerd.
`restrict_oom_score_adj` and `disable_apparmor` are on because containerd often runs where CAP_SYS_RESOURCE and AppArmor are missing (facts.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
from pathlib import Path

import orjson

from fastkube.node import cgroups, images, mounts
from fastkube.node.cri import Cri, CriError
from fastkube.runtime import clock, config, logs

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
SOCKET_PATH_BYTES_MAX = 100  # sun_path holds 108 with the NUL; containerd appends ".ttrpc"
PAUSE_IMAGE = images.PAUSE
CNI_BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")

log = logs.get("containerd")


class ContainerdError(Exception):
    """containerd is missing or does not come up; the text says what to do."""


def cni_bin_dir() -> str:
    """Where the CNI plugins are on this machine; ContainerdError when nowhere."""
    for directory in CNI_BIN_DIRS:
        if os.path.exists(f"{directory}/host-local"):
            return directory
    raise ContainerdError(f"no CNI plugins in {', '.join(CNI_BIN_DIRS)}: install them (Debian: containernetworking-plugins)")


class Containerd:
    """`directory` is the node's; `netns` is the path of the network namespace to run in (None: the caller's)."""

    def __init__(self, directory: Path, *, netns: str | None = None, sandbox_image: str = PAUSE_IMAGE, log_level: str = "warn") -> None:
        self.directory = Path(directory).resolve() / "containerd"
        self.cni_conf_dir = Path(directory).resolve() / "cni" / "net.d"
        self.netns = netns
        self.sandbox_image = sandbox_image
        self.log_level = log_level
        self.state = self.directory / "state"
        if len(bytes(self.state / "containerd.sock")) > SOCKET_PATH_BYTES_MAX:  # a deep data directory: the socket needs a short path
            self.state = Path("/run/fastkube") / hashlib.sha256(bytes(self.directory)).hexdigest()[:16]
        self.socket = self.state / "containerd.sock"
        self.pid_file = self.directory / "containerd.pid"
        self.log_file = self.directory / "containerd.log"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"

    def _config(self) -> str:
        cri = '[plugins."io.containerd.grpc.v1.cri"'
        return f"""\
version = 2
root = "{self.directory}/root"
state = "{self.state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{self.socket}"
[debug]
level = "{self.log_level}"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.directory}/opt"
{cri}]
sandbox_image = "{self.sandbox_image}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
{cri}.cni]
bin_dir = "{cni_bin_dir()}"
conf_dir = "{self.cni_conf_dir}"
{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
{cri}.registry]
config_path = "{self.directory}/certs.d"
"""

    async def answers(self) -> bool:
        """Whether a containerd serves CRI on the socket."""
        if not self.socket.exists():
            return False
        cri = Cri(self.endpoint)
        try:
            await cri.version()
            return True
        except CriError:
            return False
        finally:
            await cri.close()

    async def start(self) -> None:
        """Use the one that runs, or start one and wait until it serves CRI."""
        if await self.answers():
            return
        binary = shutil.which("containerd")
        if binary is None:
            raise ContainerdError("containerd is not installed (Debian: apt-get install containerd)")
        for directory in (self.directory / "certs.d", self.cni_conf_dir, self.state):
            directory.mkdir(parents=True, exist_ok=True)
        config.write_file(self.directory / "config.toml", self._config(), 0o600)
        enter = ["nsenter", f"--net={self.netns}"] if self.netns else []
        with open(self.log_file, "ab") as out:
            process = await asyncio.create_subprocess_exec(
                *enter,
                binary,
                "--config",
                str(self.directory / "config.toml"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        config.write_file(self.pid_file, f"{process.pid}\n")
        deadline = clock.monotonic() + START_SECONDS_MAX
        while not await self.answers():
            if process.returncode is not None:
                raise ContainerdError(f"containerd ended with exit code {process.returncode}; its log is {self.log_file}:\n{self._log_tail()}")
            if clock.monotonic() > deadline:
                raise ContainerdError(f"containerd does not answer on {self.socket} after {START_SECONDS_MAX:.0f} s; its log is {self.log_file}")
            await asyncio.sleep(0.05)
        log.info("containerd started", pid=process.pid, socket=str(self.socket))

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-5:])
        return ""

    def pid(self) -> int | None:
        """The pid of the running containerd; None when there is none."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.directory / "config.toml") in command else None

    async def stop(self) -> None:
        """End containerd (containers keep running under their shims)."""
        pid = self.pid()
        if pid is None:
            return
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not await _ended(handle, STOP_SECONDS_MAX):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                await _ended(handle, STOP_SECONDS_MAX)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
        self.pid_file.unlink(missing_ok=True)

    async def remove_all(self) -> None:
        """Stop and remove every pod of this containerd, then containerd, then what it left mounted. Its images and logs stay on disk."""
        if self.pid() is None and not (self.directory / "root").exists():
            return
        await self.start()
        cri = Cri(self.endpoint)
        try:
            await asyncio.gather(*(self._remove_pod(cri, s.id) for s in await cri.list_sandboxes()))
        finally:
            await cri.close()
        await self.stop()
        mounts.unmount_below(self.state)
        if self.state.parent == Path("/run/fastkube"):
            shutil.rmtree(self.state, ignore_errors=True)

    @staticmethod
    async def _remove_pod(cri: Cri, id: str) -> None:
        try:
            info = (await cri.sandbox_status(id, verbose=True)).info.get("info", "{}")
            await cri.stop_sandbox(id)
            await cri.remove_sandbox(id)
            parent = (orjson.loads(info).get("config", {}).get("linux") or {}).get("cgroup_parent")
            if parent:
                cgroups.remove(parent)
        except CriError as e:
            log.warning("pod could not be removed", sandbox=id, error=str(e))


async def _ended(pidfd: int, seconds: float) -> bool:
    """Wait until the process behind `pidfd` has ended (its descriptor becomes readable)."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
