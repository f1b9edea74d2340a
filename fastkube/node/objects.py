"""ConfigMaps and Secrets that pods of this node refer to, each followed by a watch of its own, and service-account tokens for their volumes.

A node may read only what its pods refer to, so there is no list of all. An object is followed from the first pod that refers to it until
the last is gone; whoever asks waits for its first answer, so a pod never starts with an empty cache taken for a missing object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.node.volumes import contents
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor

FIRST_ANSWER_SECONDS_MAX = 10.0
TOKENS_MAX = 5000
TOKEN_REFRESH_SHARE = 0.8  # of a token's life ...
TOKEN_REFRESH_SECONDS_MAX = 24 * 3600.0  # ... but at least this often

log = logs.get("objects")

Object = dict[str, Any]
Key = tuple[str, str, str]  # "configmaps" or "secrets", namespace, name


class Objects:
    def __init__(self, client: Client, supervisor: Supervisor, on_change: Callable[[set[str]], None]) -> None:
        """`on_change(uids)` is called with the pods that refer to what changed."""
        self.client = client
        self.on_change = on_change
        self._supervisor = supervisor
        self._followed: dict[Key, tuple[Informer, asyncio.Task[None]]] = {}
        self._users: dict[Key, set[str]] = {}
        self._references: dict[str, set[Key]] = {}

    def register(self, pod: Object) -> None:
        """Follow what `pod` refers to (again after its spec changed)."""
        meta = pod["metadata"]
        wanted = {(kind, meta.get("namespace", "default"), name) for kind, name in contents.references(pod)}
        before = self._references.get(meta["uid"], set())
        self._references[meta["uid"]] = wanted
        for key in wanted - before:
            self._users.setdefault(key, set()).add(meta["uid"])
            if key not in self._followed:
                self._follow(key)
        for key in before - wanted:
            self._release(key, meta["uid"])

    def unregister(self, uid: str) -> None:
        for key in self._references.pop(uid, set()):
            self._release(key, uid)

    def _release(self, key: Key, uid: str) -> None:
        users = self._users.get(key, set())
        users.discard(uid)
        if not users:
            self._users.pop(key, None)
            followed = self._followed.pop(key, None)
            if followed:
                followed[1].cancel()

    def _follow(self, key: Key) -> None:
        kind, namespace, name = key
        informer = Informer(self.client, f"v1/{kind}", namespace, fields=f"metadata.name={name}")

        def changed(*_: Object) -> None:
            if informer.has_synced:
                self.on_change(set(self._users.get(key, ())))

        informer.add_handler(changed, changed, changed)
        self._followed[key] = (informer, self._supervisor.start(f"follow {kind} {namespace}/{name}", informer.run))

    async def fetch(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, None when there is none; contents.VolumeError when the API does not say."""
        followed = self._followed.get((kind, namespace, name))
        if followed is None:
            try:
                return await self.client.get(f"v1/{kind}", name, namespace)
            except ApiError as e:
                if e.code == 404:
                    return None
                raise contents.VolumeError(e.message) from None
        informer = followed[0]
        try:
            async with asyncio.timeout(FIRST_ANSWER_SECONDS_MAX):
                await informer.synced()
        except TimeoutError:
            raise contents.VolumeError(f"failed to sync {kind.removesuffix('s')} cache: timed out waiting for the condition") from None
        return informer.get(namespace, name)

    async def claim(self, namespace: str, name: str) -> tuple[Object, Object]:
        """A bound PersistentVolumeClaim and its PersistentVolume; VolumeError when it is not bound."""
        try:
            claim = await self.client.get("v1/persistentvolumeclaims", name, namespace)
            if (claim.get("status") or {}).get("phase") != "Bound" or not claim["spec"].get("volumeName"):
                raise contents.VolumeError(f'PVC "{namespace}/{name}" is not bound')
            return claim, await self.client.get("v1/persistentvolumes", claim["spec"]["volumeName"])
        except ApiError as e:
            raise contents.VolumeError(e.message) from None


class Tokens:
    """Bound service-account tokens, asked for once per pod and audience and again well before they expire."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._cache: dict[tuple[str, str, int], tuple[str, float]] = {}

    async def get(self, pod: Object, audience: str, seconds: int) -> tuple[str, float]:
        """(token, monotonic time from which on to ask again); VolumeError when the API refuses."""
        meta = pod["metadata"]
        key = (meta["uid"], audience, seconds)
        cached = self._cache.get(key)
        if cached and cached[1] > clock.monotonic():
            return cached
        account = pod["spec"].get("serviceAccountName") or "default"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]},
            },
        }
        try:
            answer = await self.client.create("v1/serviceaccounts", request, meta.get("namespace", "default"), name=account, subresource="token")
        except ApiError as e:
            if cached:  # the old one is still good for a fifth of its life
                return cached[0], clock.monotonic() + 10.0
            raise contents.VolumeError(f"failed to fetch token: {e.message}") from None
        status = answer["status"]
        life = clock.parse(status["expirationTimestamp"]) - clock.now()
        refresh = min(life * TOKEN_REFRESH_SHARE, TOKEN_REFRESH_SECONDS_MAX) - entropy.jitter(1.0, 9.0)
        if len(self._cache) >= TOKENS_MAX:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = (status["token"], clock.monotonic() + max(refresh, 1.0))
        return self._cache[key]

    def forget(self, uid: str) -> None:
        for key in [k for k in self._cache if k[0] == uid]:
            del self._cache[key]
