"""Informer: what its laws promise, against lists and watches that fail in every way they can."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.client import informer as informer_module
from fastkube.client.informer import Informer, InformerFactory, Store
from fastkube.client.rest import Client
from fastkube.client.transport import InProcessTransport
from fastkube.http.message import Response
from fastkube.runtime.tasks import Supervisor
from tests.client.fakeapi import FakeApi


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(api: FakeApi, **kwargs: Any):
    informer = Informer(Client(InProcessTransport(api.handler, None)), "v1/configmaps", **kwargs)
    told: list[tuple[str, str]] = []
    informer.add_handler(
        lambda o: told.append(("add", o["metadata"]["name"])),
        lambda _, o: told.append(("update", o["metadata"]["name"])),
        lambda o: told.append(("delete", o["metadata"]["name"])),
    )
    async with Supervisor("test") as supervisor:
        supervisor.start("informer", informer.run)
        await informer.synced()
        yield informer, told


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "BACKOFF_SECONDS_MIN", 0.001)
    monkeypatch.setattr(informer_module, "BACKOFF_SECONDS_MAX", 0.005)


async def test_lists_then_follows() -> None:
    api = FakeApi()
    api.put("a", x="1")
    async with running(api) as (informer, told):
        assert informer.get("ns", "a")["data"] == {"x": "1"}
        api.put("b")
        api.put("a", x="2")
        api.remove("b")
        await until(lambda: len(told) == 4)
        assert told == [("add", "a"), ("add", "b"), ("update", "a"), ("delete", "b")]
        assert informer.get("ns", "a")["data"] == {"x": "2"} and informer.get("ns", "b") is None
        assert [o["metadata"]["name"] for o in informer.list("ns")] == ["a"] and informer.list("other") == []


async def test_pages_of_a_long_list_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "LIST_PAGE", 7)
    api = FakeApi()
    for i in range(20):
        api.put(f"c{i}")
    async with running(api) as (informer, _):
        assert len(informer.list()) == 20 and api.lists == 3


@pytest.mark.parametrize("chunk", [1, 7])
async def test_events_split_anywhere(chunk: int) -> None:
    api = FakeApi()
    api.chunk = chunk
    async with running(api) as (informer, told):
        for i in range(20):
            api.put(f"c{i}", text="ä" * i)
        await until(lambda: len(told) == 20)
        assert informer.get("ns", "c19")["data"]["text"] == "ä" * 19


async def test_resumes_where_it_was_and_a_bookmark_moves_it_on() -> None:
    api = FakeApi()
    api.put("a")
    async with running(api) as (informer, told):
        api.bookmark()
        await until(lambda: informer.resource_version == str(api.revision))
        api.compact()
        api.end_watches()
        await until(lambda: api.watches == 2)
        api.put("b")
        await until(lambda: ("add", "b") in told)
        assert api.lists == 1


async def test_410_lists_again_and_replaces() -> None:
    api = FakeApi()
    for name in ("same", "changes", "goes", "reborn"):
        api.put(name)
    async with running(api) as (_, told):
        await until(lambda: api.watches == 1)
        told.clear()
        held, api.changed = api.changed, asyncio.Event()  # events while nobody watches
        api.put("changes", x="1")
        api.remove("goes")
        api.remove("reborn")
        api.put("reborn")
        api.put("new")
        api.compact()
        del held
        api.end_watches()
        await until(lambda: len(told) >= 5)
        assert sorted(told) == [("add", "new"), ("add", "reborn"), ("delete", "goes"), ("delete", "reborn"), ("update", "changes")]
        assert api.lists == 2


async def test_failures_of_every_kind_are_outlived() -> None:
    api = FakeApi()
    api.put("a")
    async with running(api) as (_, told):
        forbidden = orjson.dumps({"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"})
        api.failures = [
            Response(403, forbidden),
            Response(500, b"oops", "text/plain"),
            Response(200, b"this is no json\n"),
            Response(200, b'{"type":"ADDED"}\n'),
            Response(200, b""),
        ]
        api.end_watches()
        await until(lambda: not api.failures)
        api.put("b")
        await until(lambda: ("add", "b") in told)


async def test_a_handler_that_raises_harms_nobody() -> None:
    api = FakeApi()
    informer = Informer(Client(InProcessTransport(api.handler, None)), "v1/configmaps")
    seen = []

    def bad(obj: Any) -> None:
        raise RuntimeError("handler")

    informer.add_handler(bad)
    informer.add_handler(lambda o: seen.append(o["metadata"]["name"]))
    async with Supervisor("test") as supervisor:
        supervisor.start("informer", informer.run)
        await informer.synced()
        api.put("a")
        await until(lambda: seen == ["a"])


async def test_transform_and_late_handlers() -> None:
    api = FakeApi()
    api.put("a", secret="x")
    async with running(api, transform=lambda o: {"metadata": o["metadata"]}) as (informer, _):
        assert "data" not in informer.get("ns", "a")
        late = []
        informer.add_handler(lambda o: late.append(o["metadata"]["name"]))
        assert late == ["a"]


async def test_factory_shares_and_starts_late_ones() -> None:
    api = FakeApi()
    api.put("a")
    factory = InformerFactory(Client(InProcessTransport(api.handler, None)))
    first = factory.informer("v1/configmaps")
    assert factory.informer("v1/configmaps") is first
    async with Supervisor("test") as supervisor:
        factory.start(supervisor)
        await factory.synced()
        other = factory.informer("v1/configmaps", "ns")
        await factory.synced()
        assert other is not first and other.get("ns", "a")


names = st.sampled_from(["a", "b", "c"])
objects = st.builds(
    lambda ns, name, label: {"metadata": {"namespace": ns, "name": name, "labels": {"l": label}}},
    st.sampled_from(["n1", "n2"]),
    names,
    st.sampled_from(["x", "y"]),
)


@settings(deadline=None)
@given(st.lists(st.one_of(st.tuples(st.just("put"), objects), st.tuples(st.just("pop"), objects))))
def test_store_is_as_its_model(steps: list[tuple[str, dict[str, Any]]]) -> None:
    store = Store()
    store.add_index("label", lambda o: [o["metadata"]["labels"]["l"], "all"])
    model: dict[str, dict[str, Any]] = {}
    for verb, obj in steps:
        key = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
        if verb == "put":
            assert store.put(key, obj) is model.get(key)
            model[key] = obj
        else:
            assert store.pop(key) is model.pop(key, None)
        ids = lambda found: sorted(map(id, found))  # noqa: E731
        assert ids(store.list()) == ids(model.values())
        for ns in ("n1", "n2"):
            assert ids(store.list(ns)) == ids(o for o in model.values() if o["metadata"]["namespace"] == ns)
        for label in ("x", "y"):
            assert ids(store.by_index("label", label)) == ids(o for o in model.values() if o["metadata"]["labels"]["l"] == label)
        assert ids(store.by_index("label", "all")) == ids(model.values())
