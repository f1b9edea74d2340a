"""Starting sandboxes and containers: everything between a decision of the state machine and the runtime's answer.

Each step that fails raises `StartError` with the waiting reason that users know (ErrImagePull, CreateContainerConfigError ...) and the time before which
it makes no sense to try again; the worker writes both down.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as pb

from fastkube.node import containerlogs, criconfig, env, podspec, pull, resolv
from fastkube.node.cgroups import Cgroups
from fastkube.node.cri import Cri, CriError
from fastkube.node.criconfig import Mount, Surroundings
from fastkube.node.model import Container, Memory, RuntimePod
from fastkube.node.probes import Actions
from fastkube.node.pull import Images, PullError
from fastkube.node.volumes.atomic import BadPath
from fastkube.node.volumes.contents import VolumeError, references
from fastkube.node.volumes.manager import Volumes
from fastkube.node.volumes.subpath import EscapesVolume
from fastkube.runtime import clock, config, logs

CONFIG_RETRY_SECONDS = 10.0
SANDBOX_RETRY_SECONDS = 2.0

log = logs.get("starter")

Object = dict[str, Any]
Event = Callable[[Object, str, str, str, str], None]  # pod, container ("" for the pod), type, reason, message


class StartError(Exception):
    def __init__(self, reason: str, message: str, retry_at: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_at = retry_at


@dataclass(frozen=True, slots=True)
class Settings:
    """What of the node's configuration pods see. `cluster_dns`: addresses; `resolv_conf`: the host's file, "" for none."""

    node_name: str
    hostname: str
    cluster_domain: str = "cluster.local"
    cluster_dns: tuple[str, ...] = ()
    resolv_conf: str = "/etc/resolv.conf"
    pod_logs: Path = Path("/var/log/pods")
    seccomp_default: bool = False
    seccomp_root: str = "/var/lib/kubelet/seccomp"
    memory_capacity: float = 0.0


class Starter:
    def __init__(
        self,
        cri: Cri,
        images: Images,
        volumes: Volumes,
        cgroups: Cgroups,
        actions: Actions,
        settings: Settings,
        services: Callable[[], Iterable[Object]],
        event: Event,
    ) -> None:
        self.cri = cri
        self.images = images
        self.volumes = volumes
        self.cgroups = cgroups
        self.actions = actions
        self.settings = settings
        self.services = services
        self.event = event

    # --- sandbox ---

    async def sandbox(self, pod: Object, attempt: int) -> str:
        """Make the pod's sandbox; returns its id. StartError."""
        settings = self.settings
        logs_at = containerlogs.pod_log_dir(settings.pod_logs, pod)
        logs_at.mkdir(parents=True, exist_ok=True)
        parent = self.cgroups.create(pod)
        config_ = self._sandbox_config(pod, attempt, str(logs_at), parent)
        try:
            return await self.cri.run_sandbox(config_, "")
        except CriError as e:
            self.event(pod, "", "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {e}")
            raise StartError("ContainerCreating", "", clock.now() + SANDBOX_RETRY_SECONDS) from None

    def _sandbox_config(self, pod: Object, attempt: int, logs_at: str, parent: str) -> pb.PodSandboxConfig:
        settings = self.settings
        dns = resolv.pod_dns(pod, resolv.parse(_read(settings.resolv_conf)), settings.cluster_dns, settings.cluster_domain)
        hostname = resolv.sandbox_hostname(pod, settings.cluster_domain, settings.hostname)
        return criconfig.sandbox(pod, attempt, hostname, logs_at, dns, parent)

    # --- containers ---

    async def container(
        self, pod: Object, spec: Object, attempt: int, runtime: RuntimePod, status: Mapping[str, Any], paths: Mapping[str, Path], memory: Memory
    ) -> None:
        """Pull, create and start one container and run its postStart hook. StartError."""
        sandbox = runtime.sandbox
        assert sandbox is not None
        name = spec["name"]
        sandbox_config = self._sandbox_config(pod, sandbox.attempt, str(containerlogs.pod_log_dir(self.settings.pod_logs, pod)), self.cgroups.parent(pod))
        try:
            image = await self.images.ensure(pod, spec, await self._pull_secrets(pod), sandbox_config, lambda t, r, m: self.event(pod, name, t, r, m))
        except PullError as e:
            if e.reason == "ErrImageNeverPull":
                self.event(pod, name, "Warning", "Failed", "Error: ErrImageNeverPull")
            elif e.reason == "ImagePullBackOff":
                self.event(pod, name, "Warning", "Failed", "Error: ImagePullBackOff")
            raise StartError(e.reason, e.message, e.retry_at) from None
        try:
            around = await self._surroundings(pod, spec, image, runtime, status, paths)
            made = criconfig.container(pod, spec, attempt, around)
        except (env.ConfigError, VolumeError, BadPath, EscapesVolume) as e:
            self.event(pod, name, "Warning", "Failed", f"Error: {e}")
            raise StartError("CreateContainerConfigError", str(e), clock.now() + CONFIG_RETRY_SECONDS) from None
        (containerlogs.pod_log_dir(self.settings.pod_logs, pod) / name).mkdir(parents=True, exist_ok=True)
        try:
            id = await self.cri.create_container(sandbox.id, made, sandbox_config)
        except CriError as e:
            self.event(pod, name, "Warning", "Failed", f"Error: {e.details}")
            raise StartError("CreateContainerError", e.details, clock.now() + CONFIG_RETRY_SECONDS) from None
        self.event(pod, name, "Normal", "Created", "Container created")
        memory.applied[id] = spec.get("resources") or {}
        hook = (spec.get("lifecycle") or {}).get("postStart")
        if hook:
            memory.hooked[id] = False
        try:
            await self.cri.start_container(id)
        except CriError as e:
            self.event(pod, name, "Warning", "Failed", f"Error: {e.details}")
            raise StartError("RunContainerError", e.details, 0.0) from None
        self.event(pod, name, "Normal", "Started", "Container started")
        if hook:
            await self._post_start(pod, spec, id, sandbox.ips[0] if sandbox.ips else "", hook, memory)

    async def resize(self, pod: Object, spec: Object, run: Container, memory: Memory) -> None:
        """Give a running container the resources of its spec, and its pod's cgroup what they add up to. CriError."""
        self.cgroups.create(pod)
        await self.cri.update_resources(run.id, criconfig.resources(pod, spec, self.settings.memory_capacity))
        memory.applied[run.id] = spec.get("resources") or {}

    async def _post_start(self, pod: Object, spec: Object, id: str, ip: str, hook: Object, memory: Memory) -> None:
        run = Container(id=id, name=spec["name"], sandbox_id="")
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"].get("seconds", 0))
            memory.hooked[id] = True
            return
        result = await self.actions.run(hook, spec, run, ip, 3600.0)
        if result.success:
            memory.hooked[id] = True
            return
        log.warning("postStart hook failed", pod=podspec.key_of(pod), container=spec["name"], error=result.text)
        self.event(pod, spec["name"], "Warning", "FailedPostStartHook", "PostStartHook failed")
        memory.unhealthy[id] = "FailedPostStartHook"

    async def _pull_secrets(self, pod: Object) -> list[Object]:
        namespace = pod["metadata"].get("namespace", "default")
        found = [await self.volumes.access.fetch("secrets", namespace, name) for name in pull.pull_secret_names(pod)]
        return [s for s in found if s]

    async def _surroundings(
        self, pod: Object, spec: Object, image: pull.Image, runtime: RuntimePod, status: Mapping[str, Any], paths: Mapping[str, Path]
    ) -> Surroundings:
        settings = self.settings
        namespace = pod["metadata"].get("namespace", "default")
        wanted = references({"spec": {"containers": [spec]}})
        fetched = {(kind, name): await self.volumes.access.fetch(kind, namespace, name) for kind, name in wanted}
        environment = env.build(pod, spec, lambda kind, name: fetched.get((kind, name)), self.services(), status, self.volumes.allocatable())
        target = spec.get("targetContainerName")
        target_run = runtime.latest(target) if target else None
        return Surroundings(
            image=image.id,
            image_user=image.uid,
            image_username=image.username,
            environment=environment,
            mounts=self._mounts(pod, spec, environment, paths, runtime),
            capacity_memory=settings.memory_capacity,
            seccomp_default=settings.seccomp_default,
            seccomp_root=settings.seccomp_root,
            target_id=target_run.id if target_run else "",
        )

    def _mounts(self, pod: Object, spec: Object, environment: Mapping[str, str], paths: Mapping[str, Path], runtime: RuntimePod) -> list[Mount]:
        out = []
        for index, mount in enumerate(spec.get("volumeMounts") or ()):
            base = paths.get(mount["name"])
            if base is None:
                raise env.ConfigError(f'cannot find volume "{mount["name"]}" to mount into container "{spec["name"]}"')
            path = mount.get("subPath") or (_expand_sub_path(mount["subPathExpr"], environment) if mount.get("subPathExpr") else "")
            if path:
                base = self.volumes.sub_path(pod, spec["name"], index, mount["name"], base, path)
            at = mount["mountPath"]
            out.append(Mount(at if at.startswith("/") else "/" + at, str(base), bool(mount.get("readOnly")), mount.get("mountPropagation") or "None"))
        if not any(m.container_path == "/etc/hosts" for m in out):
            out.append(Mount("/etc/hosts", str(self._hosts(pod, runtime))))
        message_path = spec.get("terminationMessagePath") or "/dev/termination-log"
        out.append(Mount(message_path, str(self._termination_file(pod, spec["name"]))))
        return out

    def _hosts(self, pod: Object, runtime: RuntimePod) -> Path:
        settings = self.settings
        path = self.volumes.pod_dir(pod["metadata"]["uid"]) / "etc-hosts"
        ips = runtime.sandbox.ips if runtime.sandbox else ()
        text = resolv.hosts_file(pod, ips, _read("/etc/hosts"), settings.cluster_domain, settings.hostname)
        if _read(str(path)) != text:
            if path.exists():  # mounted into containers: the file must stay the same one
                path.write_text(text)
            else:
                config.write_file(path, text)
        return path

    def _termination_file(self, pod: Object, name: str) -> Path:
        """A fresh file for one run's termination message; those of runs before the last go."""
        directory = self.volumes.pod_dir(pod["metadata"]["uid"]) / "containers" / name
        directory.mkdir(parents=True, exist_ok=True)
        for old in sorted(os.scandir(directory), key=lambda e: e.stat().st_mtime)[:-2]:
            os.unlink(old.path)
        path = directory / secrets.token_hex(4)
        path.touch()
        path.chmod(0o666)
        return path


def _expand_sub_path(expression: str, environment: Mapping[str, str]) -> str:
    """subPathExpr: every $(NAME) in it must be a variable of the container."""
    path = env.expand(expression, environment)
    if "$(" in path:
        raise env.ConfigError(f'missing value for "{path[path.index("$(") + 2 : (path + ")").index(")", path.index("$("))]}"')
    return path


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""
