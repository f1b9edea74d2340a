"""What load balancers and people ask the proxy over HTTP: health-check node ports, `/healthz`, `/livez`, `/proxyMode`, `/metrics`.

A service with externalTrafficPolicy Local has a port that says whether this node has endpoints of it (200) or not (503), so that
load balancers send it traffic or do not.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
import prometheus_client

from fastkube.http.message import Request, Response
from fastkube.http.server import Server
from fastkube.proxy.model import Health, Key
from fastkube.runtime import clock, logs

STALE_SECONDS_MAX = 60.0  # a change that waits longer than this for the kernel makes the proxy unhealthy

log = logs.get("proxy.health")


class State:
    """When the rules were last true to what was asked for."""

    def __init__(self) -> None:
        self.synced_at = 0.0
        self.waiting_since = 0.0  # the oldest change not in the kernel yet; 0: none

    def changed(self) -> None:
        self.waiting_since = self.waiting_since or clock.now()

    def synced(self) -> None:
        self.synced_at, self.waiting_since = clock.now(), 0.0

    @property
    def healthy(self) -> bool:
        return bool(self.synced_at) and (not self.waiting_since or clock.now() - self.waiting_since < STALE_SECONDS_MAX)


class HealthChecks:
    """One listener per health-check node port."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.wanted: dict[Key, Health] = {}
        self._servers: dict[Key, tuple[int, Server]] = {}

    async def sync(self, wanted: dict[Key, Health]) -> None:
        self.wanted = wanted
        for key, (port, server) in list(self._servers.items()):
            if key not in wanted or wanted[key].port != port:
                del self._servers[key]
                await server.close()
        for key, health in wanted.items():
            if key not in self._servers:
                server = Server(lambda request, key=key: self._answer(key))  # type: ignore[misc]
                try:
                    await server.listen("0.0.0.0", health.port)
                except OSError as e:
                    log.warning("health check port is taken", service="/".join(key), port=health.port, error=str(e))
                    continue
                self._servers[key] = health.port, server

    async def close(self) -> None:
        await self.sync({})

    def _answer(self, key: Key) -> Response:
        health = self.wanted.get(key)
        count = health.local_endpoints if health else 0
        body = {"service": {"namespace": key[0], "name": key[1]}, "localEndpoints": count, "serviceProxyHealthy": self.state.healthy}
        return Response(
            200 if count and self.state.healthy else 503, orjson.dumps(body), "application/json", [("X-Load-Balancing-Endpoint-Weight", str(count))]
        )


def status_handler(state: State, mode: Callable[[], str]) -> Callable[[Request], Response]:
    """Serves `--healthz-bind-address` and `--metrics-bind-address`."""

    def handle(request: Request) -> Response:
        if request.path in ("/healthz", "/livez"):
            ok = state.healthy
            body = {"lastUpdated": clock.rfc3339(state.synced_at), "currentTime": clock.rfc3339(), "healthy": ok}
            return Response(200 if ok else 503, orjson.dumps(body), "application/json")
        if request.path == "/proxyMode":
            return Response(200, mode().encode(), "text/plain")
        if request.path == "/metrics":
            return Response(200, prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST)
        return Response(404, b"not found\n", "text/plain")

    return handle
