"""Writing pods' statuses to the API, and telling it that a deleted pod may go.

Laws: per pod one write at a time, and of several statuses set meanwhile only the last is written; a status that equals the one in the API is not written;
a write names uid and resourceVersion, so it never lands on another pod of the same name nor on conditions that somebody else
changed meanwhile (it is merged again then). The final DELETE goes out only after the last status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.rest import Client
from fastkube.client.workqueue import Workqueue
from fastkube.node import podspec
from fastkube.runtime import logs
from fastkube.runtime.tasks import Supervisor

WRITERS = 8
CONFLICTS_MAX = 5
OURS = {"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", "PodResizePending", "PodResizeInProgress"}

log = logs.get("statuses")

Object = dict[str, Any]


def merge_patch(old: Any, new: Any) -> Any:
    """The JSON merge patch that turns `old` into `new`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    out: dict[str, Any] = {k: None for k in old if k not in new}
    for key, value in new.items():
        if key not in old or old[key] != value:
            out[key] = merge_patch(old.get(key), value) if isinstance(value, dict) else value
    return out


def same(a: Any, b: Any) -> bool:
    """Equal, where absent, null and empty mean the same."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(same(a.get(k), b.get(k)) for k in {*a, *b})
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a in (None, "", [], {}) and b in (None, "", [], {}))


class Statuses:
    """`target(pod)`: the object in the API that carries the pod's status (its mirror pod for a static one), None when there is none yet."""

    def __init__(self, client: Client | None, target: Callable[[Object], Object | None]) -> None:
        self.client = client
        self.target = target
        self.latest: dict[str, Object] = {}  # uid -> last status computed, for /pods and for pods that the API does not know
        self._pods: dict[str, Object] = {}
        self._written: dict[str, Object] = {}  # uid in the API -> the object as last written by us
        self._finishing: set[str] = set()
        self._queue = Workqueue()

    def start(self, supervisor: Supervisor) -> None:
        if self.client is not None:
            for i in range(WRITERS):
                supervisor.start(f"status writer {i}", self._work)

    def set(self, pod: Object, status: Object) -> None:
        uid = podspec.uid_of(pod)
        self._pods[uid] = pod
        if self.latest.get(uid) != status:
            self.latest[uid] = status
            self._queue.add(uid)

    def finish(self, pod: Object) -> None:
        uid = podspec.uid_of(pod)
        if uid not in self._finishing:
            self._pods[uid] = pod
            self._finishing.add(uid)
            self._queue.add(uid)

    def retarget(self, uid: str) -> None:
        """The object that carries the status appeared or changed."""
        if uid in self.latest:
            self._queue.add(uid)

    def forget(self, uid: str) -> None:
        for table in (self.latest, self._pods, self._written):
            table.pop(uid, None)
        self._finishing.discard(uid)

    async def _work(self) -> None:
        while True:
            uid = str(await self._queue.get())
            try:
                await self._sync(uid)
                self._queue.forget(uid)
            except ApiError as e:
                if e.code not in (404, 409):
                    log.warning("could not write a pod's status, trying again", uid=uid, error=e.message)
                    self._queue.add_rate_limited(uid)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("could not write a pod's status", uid=uid)
                self._queue.add_rate_limited(uid)
            finally:
                self._queue.done(uid)

    async def _sync(self, uid: str) -> None:
        pod, status = self._pods.get(uid), self.latest.get(uid)
        if pod is None or status is None:
            return
        target = self.target(pod)
        if target is None:
            return
        target = self._newest(target)
        target = await self._write(target, status)
        if uid in self._finishing and target is not None:
            await self._delete(target)

    def _newest(self, target: Object) -> Object:
        """What we wrote last may be ahead of what the informer has seen."""
        written = self._written.get(target["metadata"]["uid"])
        if written is None:
            return target
        seen, ours = target["metadata"].get("resourceVersion", ""), written["metadata"].get("resourceVersion", "")
        return written if seen.isdecimal() and ours.isdecimal() and int(ours) > int(seen) else target

    async def _write(self, target: Object, status: Object) -> Object | None:
        """Make the API's status ours; returns the object as it is then, None when it is another pod's by now."""
        assert self.client is not None
        meta = target["metadata"]
        for _ in range(CONFLICTS_MAX):
            known = target.get("status") or {}
            wanted = {**status, "conditions": _merged(status.get("conditions") or [], known.get("conditions") or [])}
            if same(wanted, known):
                return target
            version = {"uid": meta["uid"], "resourceVersion": target["metadata"]["resourceVersion"]}
            try:
                target = await self.client.patch(
                    "v1/pods", meta["name"], {"metadata": version, "status": merge_patch(known, wanted)}, meta["namespace"], subresource="status"
                )
                self._written[meta["uid"]] = target
                return target
            except ApiError as e:
                if e.code != 409:
                    raise
                target = await self.client.get("v1/pods", meta["name"], meta["namespace"])
                if target["metadata"]["uid"] != meta["uid"]:
                    return None
        raise ApiError(500, "InternalError", "too many conflicts")

    async def _delete(self, target: Object) -> None:
        assert self.client is not None
        meta = target["metadata"]
        await self.client.delete("v1/pods", meta["name"], meta["namespace"], grace_seconds=0, uid=meta["uid"])


def _merged(ours: list[Object], known: list[Object]) -> list[Object]:
    """Our conditions, and those of others as they are in the API now."""
    mine = {c["type"] for c in ours if c["type"] in OURS or not any(k["type"] == c["type"] for k in known)}
    return [c for c in ours if c["type"] in mine] + [k for k in known if k["type"] not in mine | OURS]
