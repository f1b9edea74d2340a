"""What the node tidies up: dead containers and sandboxes, logs that grew, images nobody uses, directories of pods that are gone."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from pathlib import Path

from fastkube.node import containerlogs
from fastkube.node.config import NodeConfig
from fastkube.node.cri import Cri, CriError
from fastkube.node.model import RuntimePod
from fastkube.node.pull import Images
from fastkube.node.relist import RuntimeView
from fastkube.runtime import clock, logs

CONTAINERS_SECONDS = 60.0
IMAGES_SECONDS = 300.0
LOGS_SECONDS = 10.0
DEAD_RUNS_KEPT = 1  # per container, for `kubectl logs --previous` and lastState

log = logs.get("housekeeping")


def dead_weight(pod: RuntimePod) -> tuple[list[str], list[str]]:
    """(containers, sandboxes) of a pod that nobody will ask for again. Pure."""
    containers = []
    for name in {c.name for c in pod.containers}:
        runs = pod.runs(name)
        dead = [r for r in runs if r.dead]
        kept = DEAD_RUNS_KEPT if runs and not runs[0].dead else DEAD_RUNS_KEPT + 1
        containers += [r.id for r in dead[kept:]]
    going = set(containers)
    occupied = {c.sandbox_id for c in pod.containers if c.id not in going}
    sandboxes = [s.id for s in pod.sandboxes[1:] if not s.ready and s.id not in occupied]
    return containers, sandboxes


class Housekeeping:
    def __init__(self, config: NodeConfig, cri: Cri, view: RuntimeView, images: Images, image_root: Callable[[], Path]) -> None:
        self.config = config
        self.cri = cri
        self.view = view
        self.images = images
        self.image_root = image_root

    async def containers(self) -> None:
        """Task: remove dead containers and sandboxes beyond those kept."""
        while True:
            await asyncio.sleep(CONTAINERS_SECONDS)
            await self.remove_dead()

    async def remove_dead(self) -> None:
        for pod in list(self.view.pods.values()):
            containers, sandboxes = dead_weight(pod)
            try:
                for id in containers:
                    path = next((c.log_path for c in pod.containers if c.id == id), "")
                    await self.cri.remove_container(id)
                    if path:
                        containerlogs.remove(path)
                for id in sandboxes:
                    await self.cri.remove_sandbox(id)
            except CriError as e:
                log.warning("could not remove dead containers", pod=f"{pod.namespace}/{pod.name}", error=str(e))

    async def rotate_logs(self) -> None:
        """Task: rotate logs of running containers."""
        while True:
            await asyncio.sleep(LOGS_SECONDS)
            for pod in list(self.view.pods.values()):
                for run in pod.containers:
                    if not run.running or not run.log_path:
                        continue
                    try:
                        reopen = functools.partial(self.cri.reopen_log, run.id)
                        await containerlogs.rotate(run.log_path, self.config.container_log_max_bytes, self.config.container_log_max_files, reopen)
                    except (CriError, OSError) as e:
                        log.warning("could not rotate a log", path=run.log_path, error=str(e))

    async def collect_images(self) -> None:
        """Task: when the images' filesystem is fuller than the high threshold, remove unused images, oldest use first, down to the low one."""
        while True:
            await asyncio.sleep(IMAGES_SECONDS)
            try:
                await self.remove_images(self._bytes_to_free())
            except CriError as e:
                log.warning("could not collect images", error=str(e))

    def _bytes_to_free(self) -> int:
        disk = os.statvfs(self.image_root())
        total, used = disk.f_blocks * disk.f_frsize, (disk.f_blocks - disk.f_bavail) * disk.f_frsize
        if used * 100 < total * self.config.image_gc_high_percent:
            return 0
        return used - total * self.config.image_gc_low_percent // 100

    async def remove_images(self, amount: int) -> int:
        """Remove unused images until `amount` bytes are free; returns how many bytes went."""
        if amount <= 0:
            return 0
        in_use = {c.image_id for p in self.view.pods.values() for c in p.containers}
        freed = 0
        now = clock.now()
        images = sorted(await self.cri.list_images(), key=lambda i: self.images.used_at.get(i.id, 0.0))
        for image in images:
            used = image.id in in_use or any(d in in_use for d in image.repo_digests)
            if (
                used
                or image.pinned
                or any("/pause:" in t for t in image.repo_tags)
                or now - self.images.used_at.get(image.id, 0.0) < self.config.image_min_age_seconds
            ):
                continue
            await self.cri.remove_image(image.id)
            self.images.used_at.pop(image.id, None)
            freed += image.size
            log.info("removed an unused image", image=(list(image.repo_tags) or [image.id])[0], bytes=image.size)
            if freed >= amount:
                break
        return freed
