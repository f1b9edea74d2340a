"""`cluster`: a real API server over a real store in memory, spoken to through its pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastkube.http.message import Request, Response, collect
from fastkube.runtime.pki import Pki
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.server.request import User
from fastkube.store.embedded import EmbeddedStore

ADMIN = User("admin", ("system:masters", "system:authenticated"))
JOE = User("joe", ("devs", "system:authenticated"))

Object = dict[str, Any]


class Peer:
    """The TLS side of a request in process: just the certificate that was shown."""

    def __init__(self, der: bytes) -> None:
        self.peer_certificate = der


class Cluster:
    def __init__(self, server: ApiServer, pki: Pki) -> None:
        self.server, self.pki = server, pki

    async def raw(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        user: User | None = None,
        headers: dict[str, str] | None = None,
        certificate: bytes | None = None,
    ) -> tuple[int, Any, Response]:
        """-> (status, decoded answer, the answer). Without `user` the request has to say itself who it is from."""
        head = {"content-type": "application/json", "accept": "application/json", **(headers or {})}
        if method == "PATCH" and "content-type" not in (headers or {}):
            head["content-type"] = "application/merge-patch+json"
        request = Request(method, path, head, orjson.dumps(body) if body is not None else b"", peer=Peer(certificate) if certificate else None)
        request.user = user
        answer = self.server.handle(request)
        if isinstance(answer, Awaitable):
            answer = await answer
        assert isinstance(answer, Response)
        data = await collect(answer)
        try:
            return answer.status, orjson.loads(data), answer
        except orjson.JSONDecodeError:
            return answer.status, data.decode(), answer

    async def call(self, method: str, path: str, body: Object | None = None, *, user: User = ADMIN, **more: Any) -> tuple[int, Any]:
        status, answer, _ = await self.raw(method, path, body, user=user, **more)
        return status, answer

    async def make(self, path: str, body: Object, *, user: User = ADMIN) -> Object:
        status, answer = await self.call("POST", path, body, user=user)
        assert status == 201, answer
        return answer

    async def account(self, namespace: str = "default", name: str = "default") -> Object:
        return await self.make(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    async def namespace(self, name: str, labels: dict[str, str] | None = None) -> Object:
        made = await self.make("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
        await self.account(name)
        return made

    def warnings(self, answer: Response) -> list[str]:
        text = [v for k, v in answer.headers if k.lower() == "warning"]
        return text + [line.split(": ", 1)[1] for line in answer.raw_headers.decode().split("\r\n") if line.lower().startswith("warning:")]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    pki = Pki(tmp_path / "pki")
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('# a comment\nsecret-token,bench,42,"system:masters,others"\nplain-token,joe,7\n')
    config = Config(
        secure_port=0, client_ca_file=pki.ca.cert, requestheader_client_ca_file=pki.front_proxy_ca.cert, token_auth_file=tokens,
        service_account_key_files=[pki.sa_pub], service_account_signing_key_file=pki.sa_key,
    )  # fmt: skip
    server = ApiServer(config, EmbeddedStore(None))
    await server.start()
    try:
        yield Cluster(server, pki)
    finally:
        await server.close()


def pod(name: str = "p", **spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}
