"""`api`: a real API server over TLS on a free port, and a client that speaks plain HTTP to it."""

import asyncio
import json
import ssl

import aiohttp
import pytest
import uvloop

from fastkube.runtime.pki import Pki
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.store.embedded import EmbeddedStore

ADMIN, JOE = "admin-token", "joe-token"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config, item):
    """The loop that serves in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    pki = Pki(tmp_path_factory.mktemp("pki"))
    for name in ("admin", "apiserver-kubelet-client"):
        pki.client(name)
    return pki


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.csv"
    path.write_text(f'{ADMIN},admin,1,"system:masters"\n{JOE},joe,2\n')
    return path


def config(pki, tokens, **more):
    serving = pki.apiserver(["127.0.0.1"])
    return Config(
        secure_port=0, tls_cert_file=serving.cert, tls_private_key_file=serving.key, client_ca_file=pki.ca.cert, token_auth_file=tokens,
        service_account_key_files=[pki.sa_pub], service_account_signing_key_file=pki.sa_key, kubelet_client=pki.client("apiserver-kubelet-client"), **more,
    )  # fmt: skip


class Watch:
    """The events of a watch, as they come."""

    def __init__(self, response):
        self.response = response

    async def next(self):
        line = await asyncio.wait_for(self.response.content.readline(), 5)
        return json.loads(line) if line else None

    async def types(self, count):
        return [(e["type"], e["object"]["metadata"].get("name")) for e in [await self.next() for _ in range(count)]]

    def close(self):
        self.response.close()


class Api:
    def __init__(self, server, session, pki):
        self.server, self.session, self.pki = server, session, pki
        self.port = server.addresses[0][1]
        self.url = f"https://127.0.0.1:{self.port}"

    async def raw(self, method, path, body=None, *, token=ADMIN, headers=None, type=None):
        data = body if isinstance(body, (bytes, type_none)) else json.dumps(body).encode()
        head = {"Authorization": f"Bearer {token}"} if token else {}
        if data is not None:
            head["Content-Type"] = type or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        async with self.session.request(method, self.url + path, data=data, headers={**head, **(headers or {})}, allow_redirects=False) as response:
            return response.status, response.headers, await response.read()

    async def call(self, method, path, body=None, **more):
        """-> (status, decoded answer)."""
        status, _, data = await self.raw(method, path, body, **more)
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data.decode()

    async def make(self, path, body):
        status, answer = await self.call("POST", path, body)
        assert status == 201, answer
        return answer

    async def watch(self, path, *, token=ADMIN, **headers):
        response = await self.session.get(self.url + path, headers={"Authorization": f"Bearer {token}", **headers})
        assert response.status == 200, await response.read()
        return Watch(response)


type_none = type(None)


@pytest.fixture
async def api(pki, tokens):
    server = ApiServer(config(pki, tokens), EmbeddedStore(None))
    await server.start()
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(pki.ca.cert))), auto_decompress=False, skip_auto_headers=("Accept-Encoding",)
    )
    try:
        yield Api(server, session, pki)
    finally:
        await session.close()
        await server.close()


MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


def config_map(name, labels=None, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels or {}}, "data": data}


def pod(name, labels=None, **spec):
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}
