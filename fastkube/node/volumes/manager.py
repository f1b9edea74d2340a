"""A pod's volumes on the node: set up before its sandbox, kept fresh while it runs, taken down when nothing of it runs any more.

Layout: ROOT/pods/UID/volumes/kubernetes.io~KIND/NAME, ROOT/pods/UID/volume-subpaths/VOLUME/CONTAINER/INDEX, as upstream's. `set_up` is
idempotent and is what refreshes too: files of configMaps, secrets, downward API and tokens change in place (atomic.py). Secrets and tokens lie
on tmpfs, never on disk. `tear_down` works from what is on disk and mounted, so it also cleans up after a crash.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkube.node import mounts, podspec
from fastkube.node.volumes import atomic, contents, subpath
from fastkube.node.volumes.contents import Sources, VolumeError
from fastkube.runtime import logs

log = logs.get("volumes")

Object = dict[str, Any]

CONTENT_KINDS = {"configMap": "configmap", "secret": "secret", "downwardAPI": "downward-api", "projected": "projected"}
_CHECKS: dict[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "is not a directory"),
    "File": (stat.S_ISREG, "is not a file"),
    "Socket": (stat.S_ISSOCK, "is not a socket file"),
    "CharDevice": (stat.S_ISCHR, "is not a character device"),
    "BlockDevice": (stat.S_ISBLK, "is not a block device"),
}


class MountError(Exception):
    """A volume could not be set up: event FailedMount with this text."""

    def __init__(self, volume: str, text: str) -> None:
        super().__init__(f'MountVolume.SetUp failed for volume "{volume}" : {text}')
        self.volume = volume


@dataclass(frozen=True, slots=True)
class Access:
    """How the manager reaches the API. `fetch(kind, namespace, name)`: the object or None, from a cache that follows it; `token(pod, audience, seconds)` -> (token, monotonic
    time from which on it should be asked for again); `claim(namespace, name)` -> (PersistentVolumeClaim, PersistentVolume)."""

    fetch: Callable[[str, str, str], Awaitable[Object | None]]
    token: Callable[[Object, str, int], Awaitable[tuple[str, float]]]
    claim: Callable[[str, str], Awaitable[tuple[Object, Object]]]


class Volumes:
    def __init__(self, root: Path, access: Access, allocatable: Callable[[], Mapping[str, float]]) -> None:
        self.root = root
        self.access = access
        self.allocatable = allocatable
        self.refresh_at: dict[str, float] = {}  # pod uid -> monotonic time at which its tokens want to be rotated

    def pod_dir(self, uid: str) -> Path:
        return self.root / "pods" / uid

    def path(self, pod: Object, volume: Object) -> Path:
        """Where the volume lies on the node (for hostPath and claims: see `set_up`)."""
        kind = next((k for k in volume if k != "name"), "emptyDir")
        plugin = CONTENT_KINDS.get(kind) or "empty-dir"
        return self.pod_dir(pod["metadata"]["uid"]) / "volumes" / f"kubernetes.io~{plugin}" / volume["name"]

    async def set_up(self, pod: Object, status: Mapping[str, Any]) -> dict[str, Path]:
        """Every volume of `pod` in place and up to date: volume name -> path on the node. MountError."""
        out: dict[str, Path] = {}
        self.refresh_at.pop(pod["metadata"]["uid"], None)
        for volume in pod["spec"].get("volumes") or ():
            try:
                out[volume["name"]] = await self._set_up(pod, volume, status)
            except (VolumeError, atomic.BadPath, subpath.EscapesVolume) as e:
                raise MountError(volume["name"], str(e)) from None
            except OSError as e:
                raise MountError(volume["name"], f"{e.strerror}: {e.filename}") from None
        return out

    async def _set_up(self, pod: Object, volume: Object, status: Mapping[str, Any]) -> Path:
        if "hostPath" in volume:
            return host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            return await self._claim(pod, volume["persistentVolumeClaim"]["claimName"])
        if "ephemeral" in volume:
            return await self._claim(pod, f"{pod['metadata']['name']}-{volume['name']}")
        path = self.path(pod, volume)
        if any(k in volume for k in CONTENT_KINDS):
            await self._contents(pod, volume, status, path)
            return path
        if "emptyDir" in volume or set(volume) == {"name"}:
            self._empty_dir(pod, volume.get("emptyDir") or {}, path)
            return path
        raise VolumeError(f"volume type {next(k for k in volume if k != 'name')} is not supported by this node")

    # --- kinds ---

    def _empty_dir(self, pod: Object, source: Object, path: Path) -> None:
        if path.exists() and (source.get("medium", "") == "" or mounts.mounted_at(path)):
            return
        path.mkdir(parents=True, exist_ok=True)
        medium = source.get("medium", "")
        if medium == "Memory":
            size = f"size={int(podspec.amount(source['sizeLimit']))}" if source.get("sizeLimit") else ""
            mounts.mount("tmpfs", path, "tmpfs", data=size)
        elif medium.startswith("HugePages"):
            page = medium.partition("-")[2] or next(
                (k.removeprefix("hugepages-") for k in podspec.pod_requests(pod, "limits") if k.startswith("hugepages-")), "2Mi"
            )
            mounts.mount("nodev", path, "hugetlbfs", data=f"pagesize={page.rstrip('i')}")
        elif medium:
            raise VolumeError(f"unknown storage medium {medium!r}")
        os.chmod(path, 0o777)
        group = fs_group(pod)
        if group is not None:
            os.chown(path, -1, group)
            os.chmod(path, 0o2777)

    async def _contents(self, pod: Object, volume: Object, status: Mapping[str, Any], path: Path) -> None:
        namespace = pod["metadata"].get("namespace", "default")
        wanted = contents.references({"spec": {"volumes": [volume]}})
        fetched = dict(zip(wanted, await asyncio.gather(*(self.access.fetch(kind, namespace, name) for kind, name in wanted)), strict=True))
        tokens: dict[tuple[str, int], str] = {}
        for request in contents.token_requests(volume):
            tokens[request], refresh_at = await self.access.token(pod, *request)
            uid = pod["metadata"]["uid"]
            self.refresh_at[uid] = min(self.refresh_at.get(uid, refresh_at), refresh_at)
        sources = Sources(lambda kind, name: fetched.get((kind, name)), lambda audience, seconds: tokens[audience, seconds], status, self.allocatable())
        files = contents.of_volume(pod, volume, sources)
        if "configMap" not in volume and not mounts.mounted_at(path):
            path.mkdir(parents=True, exist_ok=True)
            mounts.mount("tmpfs", path, "tmpfs", data="mode=0755")
        group = fs_group(pod)
        if atomic.write(path, files, group):
            os.chmod(path, 0o777 if group is None else 0o3777)
            if group is not None:
                os.chown(path, -1, group)

    async def _claim(self, pod: Object, name: str) -> Path:
        _, volume = await self.access.claim(pod["metadata"].get("namespace", "default"), name)
        spec = volume["spec"]
        if "hostPath" in spec:
            path = host_path({"type": "DirectoryOrCreate", **spec["hostPath"]} if not spec["hostPath"].get("type") else spec["hostPath"])
        elif "local" in spec:
            path = Path(spec["local"]["path"])
            if not path.exists():
                raise VolumeError(f'path "{path}" does not exist')
        else:
            kind = next((k for k in spec if k not in _PV_COMMON), "unknown")
            raise VolumeError(f"persistent volume {volume['metadata']['name']}: volume type {kind} is not supported by this node")
        group = fs_group(pod)
        if group is not None and path.is_dir():
            own_by_group(path, group, (pod["spec"].get("securityContext") or {}).get("fsGroupChangePolicy"))
        return path

    # --- mounts of containers ---

    def sub_path(self, pod: Object, container: str, index: int, volume: str, base: Path, path: str) -> Path:
        """A subPath mounted at a place of ours. VolumeError."""
        atomic.check(path)
        target = self.pod_dir(pod["metadata"]["uid"]) / "volume-subpaths" / volume / container / str(index)
        if not base.is_dir():
            raise VolumeError(f"subPath of volume {volume!r}, which is no directory")
        return subpath.bind(base, path, target)

    # --- taking down ---

    def known(self) -> list[str]:
        """Uids of the pods that have a directory here."""
        try:
            return os.listdir(self.root / "pods")
        except FileNotFoundError:
            return []

    async def tear_down(self, uid: str) -> None:
        """Unmount and remove all that belongs to the pod."""
        self.refresh_at.pop(uid, None)
        directory = self.pod_dir(uid)
        if directory.exists():
            await asyncio.to_thread(_remove, directory)


def _remove(directory: Path) -> None:
    mounts.unmount_below(directory)
    if mounts.points_below(directory):
        log.warning("something is still mounted below a pod's directory, it stays", path=str(directory))
        return
    shutil.rmtree(directory, ignore_errors=True)


_PV_COMMON = {
    "accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy", "storageClassName", "volumeAttributesClassName", "volumeMode",
}  # fmt: skip


def fs_group(pod: Object) -> int | None:
    return (pod["spec"].get("securityContext") or {}).get("fsGroup")


def host_path(source: Object) -> Path:
    """A hostPath volume's path, checked (and made) as its type says. VolumeError."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        kind = "Directory"
    elif kind == "FileOrCreate":
        if not path.exists():
            path.touch(0o644)
        kind = "File"
    if kind:
        if kind not in _CHECKS:
            raise VolumeError(f"hostPath type check failed: {kind} is an invalid volume type")
        check, text = _CHECKS[kind]
        if not path.exists() or not check(path.stat().st_mode):
            raise VolumeError(f"hostPath type check failed: {path} {text}")
    return path


def own_by_group(path: Path, gid: int, policy: str | None) -> None:
    """fsGroup: everything below `path` belongs to `gid`, group-writable, set-gid; OnRootMismatch looks at the top only."""
    top = path.stat()
    if policy == "OnRootMismatch" and top.st_gid == gid and top.st_mode & stat.S_ISGID:
        return
    for base, directories, names in os.walk(path):
        for name in [*names, *directories, ""]:
            at = os.path.join(base, name) if name else base
            try:
                status = os.lstat(at)
                if stat.S_ISLNK(status.st_mode):
                    continue
                os.chown(at, -1, gid)
                os.chmod(at, stat.S_IMODE(status.st_mode) | (0o2770 if stat.S_ISDIR(status.st_mode) else 0o660))
            except FileNotFoundError:
                continue
