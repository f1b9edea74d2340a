"""EventRecorder's bounds and leader election's laws, on virtual time against a small in-process API."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest

from fastkube.api import errors
from fastkube.api.errors import ApiError
from fastkube.client import events
from fastkube.client.events import Correlator, EventRecorder
from fastkube.client.leader import LeaderElector, LostLeadership
from fastkube.client.rest import Client
from fastkube.client.transport import InProcessTransport
from fastkube.http.message import Request, Response
from fastkube.runtime.tasks import Supervisor
from fastkube.testing import virtual

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u"}}


class ObjectApi:
    """Stores what is put; PUT wants the right resourceVersion. `down` answers 500, `slow` seconds before each answer."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.revision = 0
        self.down = False
        self.slow = 0.0
        self.requests: Counter[str] = Counter()

    async def handler(self, request: Request) -> Response:
        self.requests[request.method] += 1
        if self.slow:
            await asyncio.sleep(self.slow)
        try:
            return Response(200, orjson.dumps(self.answer(request)))
        except ApiError as e:
            return Response(e.code, orjson.dumps(e.status()))

    def answer(self, request: Request) -> Any:
        if self.down:
            raise errors.internal("down")
        body = orjson.loads(request.body) if request.body else None
        path = request.path
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                raise errors.ApiError(409, "AlreadyExists", "exists")
        elif path not in self.objects:
            raise errors.ApiError(404, "NotFound", "not found")
        if request.method == "GET":
            return self.objects[path]
        if request.method == "PATCH":
            body = {**self.objects[path], **body}
        elif request.method == "PUT" and body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            raise errors.ApiError(409, "Conflict", "conflict")
        self.revision += 1
        self.objects[path] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.revision)}}
        return self.objects[path]

    def client(self) -> Client:
        return Client(InProcessTransport(lambda request: self.handler(request), None))


def correlate(correlator: Correlator, now: float, **fields: Any) -> Any:
    event = {
        "metadata": {"name": "x"},
        "involvedObject": {"kind": "Pod", "name": "p"},
        "source": {"component": "c"},
        "type": "Normal",
        "count": 1,
        "lastTimestamp": now,
    }
    return correlator.correlate({**event, "reason": "R", "message": "m", **fields}, now)


def test_equal_events_become_a_count() -> None:
    correlator = Correlator()
    assert correlate(correlator, 0)[0] == "create"
    for i in range(2, 6):
        verb, event = correlate(correlator, i)
        assert (verb, event["count"], event["lastTimestamp"]) == ("patch", i, i)
    assert correlate(correlator, 9, reason="Other")[0] == "create"


def test_similar_events_are_combined_and_spam_is_throttled() -> None:
    correlator = Correlator()
    written = [correlate(correlator, 0, message=f"m{i}") for i in range(100)]
    assert [w[0] for w in written[: events.SIMILAR_MAX]] == ["create"] * (events.SIMILAR_MAX - 1) + ["create"]
    assert written[events.SIMILAR_MAX + 1][0] == "patch"
    assert written[events.SIMILAR_MAX + 1][1]["message"].startswith("(combined from similar events): m")
    assert sum(w is not None for w in written) == events.SPAM_BURST
    assert correlate(correlator, events.SPAM_REFILL_SECONDS * 2, message="later") is not None
    assert correlate(correlator, 0, involvedObject={"kind": "Pod", "name": "other"}) is not None


def test_what_is_remembered_is_bounded() -> None:
    correlator = Correlator()
    for i in range(events.REMEMBERED_MAX + 50):
        correlate(correlator, i, involvedObject={"kind": "Pod", "name": str(i)})
    assert len(correlator._known) == len(correlator._spam) == len(correlator._similar) == events.REMEMBERED_MAX


def test_recorder_writes_counts_and_survives_everything() -> None:
    async def main() -> None:
        api = ObjectApi()
        recorder = EventRecorder(api.client(), "kubelet", "node1")
        async with Supervisor("t") as supervisor:
            recorder.start(supervisor)
            for _ in range(3):
                recorder.event(POD, "Normal", "Started", "Started container c")
            recorder.event({"nothing": 1}, "Normal", "Broken", "no name: logged, not raised")
            await asyncio.sleep(1)
            (event,) = api.objects.values()
            assert (event["count"], event["reason"], event["source"], event["reportingComponent"]) == (
                3,
                "Started",
                {"component": "kubelet", "host": "node1"},
                "kubelet",
            )
            assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Pod", "namespace": "n", "name": "p", "uid": "u"}
            api.objects.clear()  # expired on the server
            recorder.event(POD, "Normal", "Started", "Started container c")
            await asyncio.sleep(1)
            assert next(iter(api.objects.values()))["count"] == 4
            api.down = True
            recorder.event(POD, "Normal", "Lost", "while the server is down")
            await asyncio.sleep(60)
            assert recorder.dropped == 1
            api.down = False
            recorder.event(POD, "Normal", "Back", "again")
            await asyncio.sleep(1)
            assert {e["reason"] for e in api.objects.values()} == {"Started", "Back"}

    virtual.run(main())


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        recorder = EventRecorder(ObjectApi().client(), "c")
        for i in range(events.QUEUE_EVENTS_MAX + 10):
            recorder.event({"kind": "Pod", "name": f"p{i}"}, "Normal", "R", "m")
        assert recorder.dropped == 10

    virtual.run(main())


class Candidate:
    def __init__(self, api: ObjectApi, name: str, leading: list[str], history: list[tuple[float, str]]) -> None:
        self.elector = LeaderElector(api.client(), "kube-controller-manager", name)
        self.name, self.leading, self.history = name, leading, history

    async def work(self) -> None:
        assert not self.leading, "two leaders"
        self.leading.append(self.name)
        self.history.append((asyncio.get_running_loop().time(), self.name))
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.remove(self.name)

    async def run(self) -> None:
        while True:
            try:
                await self.elector.run(self.work)
            except LostLeadership:
                self.history.append((asyncio.get_running_loop().time(), f"{self.name} lost"))


def test_leaders_follow_one_another_and_never_overlap() -> None:
    async def main() -> None:
        api, leading, history = ObjectApi(), [], []
        candidates = {n: Candidate(api, n, leading, history) for n in ("a", "b", "c")}
        tasks = {}
        for name, candidate in candidates.items():
            tasks[name] = asyncio.ensure_future(candidate.run())
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)
        assert leading == ["a"] and len(history) == 1
        tasks["a"].cancel()  # orderly: releases
        await asyncio.sleep(5)
        assert len(leading) == 1 and leading != ["a"]
        first = leading[0]
        api.down = True  # nobody can renew: the leader stops before anybody may take over
        await asyncio.sleep(12)
        assert leading == [] and history[-1][1] == f"{first} lost"
        api.down = False
        await asyncio.sleep(20)
        assert len(leading) == 1
        lease = next(iter(api.objects.values()))
        assert lease["spec"]["holderIdentity"] == leading[0] and lease["spec"]["leaseTransitions"] >= 1
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    virtual.run(main())


def test_a_crashed_leader_is_followed_after_the_lease_and_not_before() -> None:
    async def main() -> tuple[list[tuple[float, str]], float]:
        api, leading, history = ObjectApi(), [], []
        first = asyncio.ensure_future(Candidate(api, "a", leading, history).run())
        await asyncio.sleep(1)
        second = asyncio.ensure_future(Candidate(api, "b", leading, history).run())
        await asyncio.sleep(30)
        handler = api.handler

        async def hang(request: Request) -> Response:
            if b'"holderIdentity":""' in request.body:
                await asyncio.Event().wait()
            return await handler(request)

        api.handler = hang  # type: ignore[method-assign]
        first.cancel()  # its release hangs: as good as a crash
        await asyncio.gather(first, return_exceptions=True)
        died = asyncio.get_running_loop().time()
        api.handler = handler  # type: ignore[method-assign]
        await asyncio.sleep(40)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        return history, died

    history, died = virtual.run(main())
    assert [h[1] for h in history] == ["a", "b"]
    assert 9 <= history[1][0] - died <= 25


def test_settings_that_could_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="lease duration"):
        LeaderElector(ObjectApi().client(), "l", "a", lease_seconds=5, renew_deadline_seconds=10)
