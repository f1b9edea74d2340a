"""The webhook backend: events in batches, as an audit.k8s.io/v1 EventList, to the server that a kubeconfig file names.

Bounded: at most BUFFER_EVENTS_MAX wait, what comes then is dropped and counted; a batch that is not taken is tried again RETRIES_MAX times with
growing pauses, then dropped and counted. Requests never wait for the webhook (upstream's batch mode and its defaults).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkube.api import codec
from fastkube.api.errors import ApiError
from fastkube.runtime import entropy, logs

if TYPE_CHECKING:
    import aiohttp

BUFFER_EVENTS_MAX = 10_000
BATCH_EVENTS_MAX = 400
BATCH_SECONDS_MAX = 30.0
BATCH_SECONDS_MIN = 0.1  # ten batches a second at the most
RETRIES_MAX = 5
BACKOFF_SECONDS = 10.0
ANSWER_SECONDS_MAX = 30.0
CLOSE_SECONDS_MAX = 5.0

log = logs.get("audit")


class WebhookConfigError(ValueError):
    """The kubeconfig cannot be used; the text names file and field."""


class Endpoint:
    """The server of a kubeconfig's current context, and how to speak to it. Raises WebhookConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            config = codec.load(path.read_bytes(), "application/yaml")
        except OSError as e:
            raise WebhookConfigError(f"audit webhook configuration {path}: cannot be read: {e.strerror or e}") from e
        except (ValueError, ApiError) as e:
            raise WebhookConfigError(f"audit webhook configuration {path}: {e}") from e
        if not isinstance(config, dict):
            raise self._bad("Config", "must be a mapping")
        context = self._named(config, "contexts", "context", self._text(config, "current-context"))
        cluster = self._named(config, "clusters", "cluster", self._text(context, "cluster"))
        user = self._named(config, "users", "user", context["user"]) if context.get("user") else {}
        self.url = self._text(cluster, "server")
        if not self.url.startswith(("http://", "https://")):
            raise self._bad("clusters[].cluster.server", f'"{self.url}" is no URL')
        self.headers = {"Content-Type": "application/json"}
        token = user.get("token") or (self._file(user, "tokenFile") or b"").decode().strip()
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        elif user.get("username"):
            pair = f"{user['username']}:{user.get('password', '')}"
            self.headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        self.tls = self._tls(cluster, user) if self.url.startswith("https:") else None

    def _bad(self, field: str, why: str) -> WebhookConfigError:
        return WebhookConfigError(f"audit webhook configuration {self._path}: {field}: {why}")

    def _text(self, of: Any, key: str) -> str:
        value = of.get(key) if isinstance(of, dict) else None
        if not isinstance(value, str) or not value:
            raise self._bad(key, "required")
        return value

    def _named(self, config: Any, plural: str, kind: str, name: str) -> dict[str, Any]:
        for item in config.get(plural) or ():
            if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(kind), dict):
                return item[kind]
        raise self._bad(plural, f'there is none named "{name}"')

    def _file(self, of: dict[str, Any], key: str) -> bytes | None:
        if not of.get(key):
            return None
        try:
            return (self._path.parent / of[key]).read_bytes()
        except OSError as e:
            raise self._bad(key, f"{of[key]} cannot be read: {e.strerror or e}") from e

    def _data(self, of: dict[str, Any], key: str) -> bytes | None:
        """The content of `key`-data (base64), or of the file `key`."""
        if not of.get(f"{key}-data"):
            return self._file(of, key)
        try:
            return base64.b64decode(of[f"{key}-data"], validate=True)
        except ValueError as e:
            raise self._bad(f"{key}-data", "is no base64") from e

    def _tls(self, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
        authority, cert, key = self._data(cluster, "certificate-authority"), self._data(user, "client-certificate"), self._data(user, "client-key")
        try:
            context = ssl.create_default_context(cadata=authority.decode() if authority else None)
            if cluster.get("insecure-skip-tls-verify"):
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if cert and key:
                with tempfile.TemporaryDirectory() as directory:  # 0700; OpenSSL takes keys from files only
                    pair = Path(directory) / "pair.pem"
                    pair.write_bytes(cert + b"\n" + key)
                    context.load_cert_chain(pair)
        except (ssl.SSLError, ValueError) as e:
            raise self._bad("certificate-authority, client-certificate, client-key", str(e)) from e
        return context


class WebhookBackend:
    """`dropped(count)` is told of events that were lost."""

    def __init__(self, endpoint: Endpoint, dropped: Callable[[int], None], *, batch_seconds: float = BATCH_SECONDS_MAX) -> None:
        self._endpoint, self._dropped, self._batch_seconds = endpoint, dropped, batch_seconds
        self._events: deque[bytes] = deque()
        self._full = asyncio.Event()
        self._closing = False
        self._session: aiohttp.ClientSession | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="apiserver/audit-webhook")

    def emit(self, event: bytes) -> None:
        if len(self._events) >= BUFFER_EVENTS_MAX:
            self._dropped(1)
            return
        self._events.append(event)
        if len(self._events) >= BATCH_EVENTS_MAX:
            self._full.set()

    async def _run(self) -> None:
        while not self._closing or self._events:
            if not self._closing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._batch_seconds):
                        await self._full.wait()
                self._full.clear()
            while self._events:
                batch = [self._events.popleft() for _ in range(min(len(self._events), BATCH_EVENTS_MAX))]
                await self._deliver(batch)
                if not self._closing:
                    await asyncio.sleep(BATCH_SECONDS_MIN)

    async def _deliver(self, batch: list[bytes]) -> None:
        body = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[' + b",".join(batch) + b"]}"
        pause = BACKOFF_SECONDS
        for attempt in range(RETRIES_MAX):
            why = await self._post(body)
            if not why:
                return
            log.warning("the audit webhook took no events", events=len(batch), attempt=attempt + 1, error=why)
            if self._closing or attempt + 1 == RETRIES_MAX:
                break
            await asyncio.sleep(entropy.jitter(pause))
            pause *= 1.5
        self._dropped(len(batch))

    async def _post(self, body: bytes) -> str:
        """Why it was not taken; "" when it was."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX))
        try:
            tls: Any = self._endpoint.tls if self._endpoint.tls is not None else True
            async with self._session.post(self._endpoint.url, data=body, headers=self._endpoint.headers, ssl=tls, allow_redirects=False) as answer:
                return "" if 200 <= answer.status < 300 else f"answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as e:
            return str(e) or "timeout"

    async def close(self) -> None:
        """What waits is sent, for CLOSE_SECONDS_MAX."""
        self._closing = True
        self._full.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await asyncio.shield(self._task)
        except TimeoutError:
            self._dropped(len(self._events))
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
