"""Images for containers: pull policies, credentials from pull secrets, back-off between failed pulls, one pull per image at a time."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from cri_api.v1 import api_pb2 as pb

from fastkube.node.cri import Cri, CriError
from fastkube.runtime import clock, logs

BACKOFF_SECONDS_MIN = 10.0
BACKOFF_SECONDS_MAX = 300.0
PULLS_MAX = 3  # at once; serializeImagePulls makes it 1

log = logs.get("images")

Object = dict[str, Any]
Event = Callable[[str, str, str], None]  # type, reason, message


class PullError(Exception):
    """Why there is no image: goes into state.waiting. `retry_at`: wall time before which no other try is made."""

    def __init__(self, reason: str, message: str, retry_at: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_at = retry_at


@dataclass(frozen=True, slots=True)
class Image:
    id: str
    uid: int | None
    username: str


def normalize(name: str) -> str:
    """The full reference: nginx -> docker.io/library/nginx:latest."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    if "@" not in name and ":" not in name.rsplit("/", 1)[-1]:
        name += ":latest"
    return name


def pull_policy(container: Object) -> str:
    policy = container.get("imagePullPolicy")
    if policy:
        return policy
    return "Always" if normalize(container.get("image", "")).endswith(":latest") else "IfNotPresent"


class Images:
    """Makes images be there."""

    def __init__(self, cri: Cri, serialize: bool = False) -> None:
        self.cri = cri
        self.used_at: dict[str, float] = {}  # image id -> when a container was last started from it, for garbage collection
        self._slots = asyncio.Semaphore(1 if serialize else PULLS_MAX)
        self._pulls: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._backoffs: dict[str, tuple[float, float]] = {}  # image -> (seconds, until)

    async def ensure(self, pod: Object, container: Object, secrets: Iterable[Object], config: pb.PodSandboxConfig | None, event: Event) -> Image:
        """The image of `container`, pulled if its policy says so. PullError."""
        name, policy = container.get("image", ""), pull_policy(container)
        if not name:
            raise PullError("InvalidImageName", "Failed to apply default image tag: image name is empty", clock.now() + BACKOFF_SECONDS_MAX)
        present = await self._present(name)
        if policy == "Never" or (policy == "IfNotPresent" and present):
            if present is None:
                message = f'Container image "{name}" is not present with pull policy of Never'
                event("Warning", "ErrImageNeverPull", message)
                raise PullError("ErrImageNeverPull", message, clock.now() + BACKOFF_SECONDS_MIN)
            event("Normal", "Pulled", f'Container image "{name}" already present on machine and can be accessed by the pod')
            return present
        seconds, until = self._backoffs.get(name, (0.0, 0.0))
        if until > clock.now():
            event("Normal", "BackOff", f'Back-off pulling image "{name}"')
            raise PullError("ImagePullBackOff", f'Back-off pulling image "{name}"', until)
        event("Normal", "Pulling", f'Pulling image "{name}"')
        started = clock.monotonic()
        try:
            reference = await self._pull(name, _credentials(name, secrets), config)
        except CriError as e:
            seconds = min(max(seconds * 2, BACKOFF_SECONDS_MIN), BACKOFF_SECONDS_MAX)
            self._backoffs[name] = (seconds, clock.now() + seconds)
            message = str(e)
            event("Warning", "Failed", f'Failed to pull image "{name}": {message}')
            event("Warning", "Failed", "Error: ErrImagePull")
            raise PullError("ErrImagePull", message, clock.now()) from None
        self._backoffs.pop(name, None)
        image = await self._present(reference or name) or await self._present(name)
        if image is None:
            raise PullError("ErrImagePull", f'image "{name}" was pulled but is not there', clock.now() + BACKOFF_SECONDS_MIN)
        took = clock.monotonic() - started
        event("Normal", "Pulled", f'Successfully pulled image "{name}" in {took:.3f}s ({took:.3f}s including waiting).')
        return image

    async def _present(self, name: str) -> Image | None:
        try:
            image = (await self.cri.image_status(name)).image
        except CriError as e:
            raise PullError("ImageInspectError", f'Failed to inspect image "{name}": {e}', clock.now() + BACKOFF_SECONDS_MIN) from None
        if not image.id:
            return None
        self.used_at[image.id] = clock.now()
        uid: int | None = image.uid.value if image.HasField("uid") else None
        return Image(image.id, uid if uid is not None or image.username else 0, image.username)

    async def _pull(self, name: str, auths: list[pb.AuthConfig | None], config: pb.PodSandboxConfig | None) -> str:
        """Pull with the first credentials that work; pulls of the same image with the same credentials are shared."""
        key = (name, repr(auths))
        task = self._pulls.get(key)
        if task is None:
            task = self._pulls[key] = asyncio.ensure_future(self._pull_once(name, auths, config))
            task.add_done_callback(lambda _: self._pulls.pop(key, None))
        return await asyncio.shield(task)

    async def _pull_once(self, name: str, auths: list[pb.AuthConfig | None], config: pb.PodSandboxConfig | None) -> str:
        async with self._slots:
            failure: CriError | None = None
            for auth in auths:
                try:
                    return await self.cri.pull_image(name, auth, config)
                except CriError as e:
                    failure = e
            assert failure is not None
            raise failure


def _credentials(image: str, secrets: Iterable[Object]) -> list[pb.AuthConfig | None]:
    """What to show to the image's registry, most specific entry first; [None] when the secrets hold nothing for it."""
    repository = normalize(image)
    found: list[tuple[int, pb.AuthConfig]] = []
    for secret in secrets:
        for server, entry in _entries(secret).items():
            bare = server.removeprefix("https://").removeprefix("http://").rstrip("/")
            host = bare.removesuffix("/v1").removesuffix("/v2").replace("index.docker.io", "docker.io")
            if repository == host or repository.startswith(host + "/") or repository.startswith(host + ":"):
                auth = _auth(entry, host)
                if auth is not None:
                    found.append((len(host), auth))
    found.sort(key=lambda f: -f[0])
    return [a for _, a in found] or [None]


def _entries(secret: Object) -> dict[str, Object]:
    data = secret.get("data") or {}
    try:
        if ".dockerconfigjson" in data:
            return orjson.loads(base64.b64decode(data[".dockerconfigjson"])).get("auths") or {}
        if ".dockercfg" in data:
            return orjson.loads(base64.b64decode(data[".dockercfg"]))
    except (ValueError, AttributeError):
        log.warning("a pull secret cannot be read", secret=f"{secret['metadata'].get('namespace')}/{secret['metadata']['name']}")
    return {}


def _auth(entry: Object, server: str) -> pb.AuthConfig | None:
    user, password = entry.get("username", ""), entry.get("password", "")
    if entry.get("auth") and not user:
        try:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
    return pb.AuthConfig(username=user, password=password, server_address=server, identity_token=entry.get("identitytoken", ""))


def pull_secret_names(pod: Object) -> list[str]:
    return [s["name"] for s in pod["spec"].get("imagePullSecrets") or () if s.get("name")]
