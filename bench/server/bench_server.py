"""The API server's hot paths without sockets: what a request costs beside TLS.

pytest bench/server/bench_server.py
"""

import asyncio

import orjson
import pytest

from bench import load
from fastkube._ext import items
from fastkube.api import codec, resources
from fastkube.http.message import Request
from fastkube.server import routing
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.server.handlers import read, selecting
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.request import User
from fastkube.store.embedded import EmbeddedStore

PODS = 3000
USER = User("bench", ("system:masters", "system:authenticated"))
LIST = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def app(loop, tmp_path_factory):
    """A server over a store in memory that holds 3,000 pods of about 5 KB."""
    app = ApiServer(Config(secure_port=0), EmbeddedStore(None))

    async def fill():
        await app.start()
        resource = resources.parse("v1/pods")
        endpoint = app.endpoint(resource)
        for i in range(PODS):
            obj, _ = endpoint.read(orjson.dumps(load.pod(i)), "application/json", "Ignore")
            obj["metadata"] |= {"namespace": "default", "uid": "0" * 36, "creationTimestamp": "2026-01-01T00:00:00Z"}
            data, at = codec.encode(obj)
            await app.store.put(resource.key("default", load.name(i)), data, revision_at=at, attrs=endpoint.digest(obj))

    loop.run_until_complete(fill())
    yield app
    loop.run_until_complete(app.close())


def request(path, method="GET", body=b"", content_type=""):
    made = Request(method, path, {"accept": "application/json", **({"content-type": content_type} if content_type else {})}, body)
    made.user = USER
    return made


def test_bench_get(benchmark, app):
    answer = benchmark(lambda: app.handle(request(f"{LIST}/{load.name(7)}")))
    assert answer.status == 200


def test_bench_list(benchmark, app):
    def run():
        return sum(len(piece) for piece in app.handle(request(LIST)).body.pieces())

    assert benchmark(run) > PODS * 1500


def test_bench_list_by_label(benchmark, app):
    answer = benchmark(lambda: app.handle(request(f"{LIST}?labelSelector=group%3Dg5")))
    assert answer.status == 200


def test_bench_selection_kernel(benchmark, app):
    endpoint = Endpoint(resources.parse("v1/pods"))
    asked = request(f"{LIST}?labelSelector=group%3Dg5")
    asked.info = routing.parse(asked, app.served)
    selected = selecting.select(endpoint, asked)
    kvs = app.store.range(selected.start, selected.end).kvs
    assert len(benchmark(selected.filter, kvs)) == load.LABELLED


def test_bench_items_kernel(benchmark, app):
    endpoint = app.endpoint(resources.parse("v1/pods"))
    kvs = app.store.range(endpoint.prefix, endpoint.end).kvs[:20]
    piece, stop = benchmark(items.piece, kvs, endpoint.opening, 0, read.PIECE_BYTES_MAX)
    assert piece and stop


def test_bench_table_row(benchmark, app):
    asked = request(f"{LIST}/{load.name(7)}")
    asked.headers["accept"] = "application/json;as=Table;g=meta.k8s.io;v=v1"
    assert benchmark(lambda: app.handle(asked)).status == 200


def test_bench_create_dry_run(benchmark, app, loop):
    loop.run_until_complete(_account(app))
    body = orjson.dumps(load.pod(PODS + 1))

    async def create():
        return await app.handle(request(f"{LIST}?dryRun=All", "POST", body, "application/json"))

    assert benchmark(lambda: loop.run_until_complete(create())).status == 201


async def _account(app):
    account = {"metadata": {"name": "default", "namespace": "default"}}
    await app.writer.create(resources.parse("v1/serviceaccounts"), account)


def test_bench_patch_status(benchmark, app, loop):
    counter = iter(range(10**9))

    async def patch():
        body = orjson.dumps({"status": {"message": str(next(counter))}})
        return await app.handle(request(f"{LIST}/{load.name(9)}/status", "PATCH", body, "application/merge-patch+json"))

    assert benchmark(lambda: loop.run_until_complete(patch())).status == 200


class Sink:
    """A peer that takes everything."""

    paused, buffered = False, 0

    def __init__(self):
        self.bytes = 0

    def write(self, data):
        self.bytes += len(data)

    def end(self): ...

    abort = end


@pytest.mark.parametrize("watchers", [1, 200])
def test_bench_watch(benchmark, app, loop, watchers):
    """One patch and its event to the watchers, without their sockets."""
    sinks = [Sink() for _ in range(watchers)]
    pushes = []

    async def start():
        for sink in sinks:
            push = app.handle(request(f"{LIST}?watch=true&resourceVersion={app.store.revision}")).body
            push.started(sink)
            pushes.append(push)

    counter = iter(range(10**9))

    async def patch():
        body = orjson.dumps({"status": {"message": f"w{next(counter)}"}})
        return await app.handle(request(f"{LIST}/{load.name(9)}/status", "PATCH", body, "application/merge-patch+json"))

    loop.run_until_complete(start())
    benchmark(lambda: loop.run_until_complete(patch()))
    assert all(sink.bytes for sink in sinks)
    for push in pushes:
        push.closed()
