"""Between the pipeline and its handlers: a request's flow schema and level, its seats, and what /metrics says of them.

What a request of a user is classified as is remembered by the user and the request's attributes, as the authorizer remembers its decisions; any change of
a FlowSchema or PriorityLevelConfiguration empties the memory. The mandatory schemas and levels (exempt, catch-all) hold even when they were deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastkube.api import errors, resources
from fastkube.api.errors import ApiError
from fastkube.http.message import Answer, Pieces, Request, Response, Upgrade
from fastkube.runtime import clock
from fastkube.server import flowdefaults
from fastkube.server.fairness.classes import matches, ordered
from fastkube.server.fairness.seats import WIDTH_SEATS_MAX, Level, Pool, Refused
from fastkube.server.metrics import Counter, Gauge, Histogram, Labels, Metrics
from fastkube.server.reader import Object, Reader
from fastkube.server.request import RequestInfo, User
from fastkube.server.writer import Writer

GROUP = "flowcontrol.apiserver.k8s.io"
SCHEMAS = resources.parse(f"{GROUP}/v1/flowschemas")
LEVELS = resources.parse(f"{GROUP}/v1/prioritylevelconfigurations")
MANDATORY = ("exempt", "catch-all")
USERS_MAX = 8192  # users whose flows are remembered
FLOWS_MAX = 4096  # per user
QUEUE_SECONDS_MAX = 15.0  # in a queue (upstream: a quarter of the request timeout)
RETRY_SECONDS = 1
OBJECTS_PER_SEAT = 100  # of a list, as upstream's work estimator
STREAMS = {"log", "exec", "attach", "portforward", "proxy"}  # long-running: upstream counts them neither here
WRITES = {"create", "update", "patch", "delete", "deletecollection"}

Dispatch = Callable[[Request], "Answer | Awaitable[Answer]"]
Count = Callable[[RequestInfo], int]


class Flow:
    """A flow schema as requests see it: its level, rendered headers, and counts."""

    __slots__ = ("dispatched", "distinguisher", "exempt", "headers", "labels", "level", "name")

    def __init__(self, schema: Object, level: Level) -> None:
        self.name: str = schema["metadata"]["name"]
        self.level, self.exempt = level, level.exempt
        self.distinguisher = (schema["spec"].get("distinguisherMethod") or {}).get("type", "")
        self.labels = (self.name, level.name)
        self.dispatched = 0
        uid = schema["metadata"].get("uid", "")
        self.headers = b"X-Kubernetes-Pf-Flowschema-Uid: %b\r\nX-Kubernetes-Pf-Prioritylevel-Uid: %b\r\n" % (uid.encode(), level.uid.encode())

    def hash(self, user: User, info: RequestInfo) -> int:
        by = user.name if self.distinguisher == "ByUser" else info.namespace if self.distinguisher == "ByNamespace" else ""
        return int.from_bytes(hashlib.blake2b(f"{self.name}\0{by}".encode(), digest_size=8).digest())


class _Seats:
    """Seats that are given back at `done`, or when nobody refers to this any more: they last as long as the body that holds it, however it ends."""

    __slots__ = ("_level", "_pool", "_width")

    def __init__(self, pool: Pool, level: Level, width: int) -> None:
        self._pool, self._level, self._width = pool, level, width

    def done(self) -> None:
        width, self._width = self._width, 0
        if width:
            self._pool.release(self._level, width)

    __del__ = done


class Fairness:
    """`seats`: the server's concurrency; `count(info)`: how many objects a list looks at."""

    def __init__(self, reader: Reader, metrics: Metrics, seats: int, count: Count) -> None:
        self._reader, self._count = reader, count
        self.pool = Pool(seats)
        self._schemas: list[tuple[Object, Flow]] = []
        self._flows: dict[str, Flow] = {}
        self._memory: dict[int, tuple[User, dict[tuple[str, ...], Flow]]] = {}
        self._wake = asyncio.Event()
        self._load()
        for resource in (SCHEMAS, LEVELS):
            reader.on_change(resource, self._changed)
        self._rejected = Counter(
            "apiserver_flowcontrol_rejected_requests_total",
            "Number of requests rejected by API Priority and Fairness subsystem",
            ("flow_schema", "priority_level", "reason"),
        )
        self._waited = Histogram(
            "apiserver_flowcontrol_request_wait_duration_seconds", "Length of time a request spent waiting in its queue", ("flow_schema", "priority_level", "execute"),
            (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
        )  # fmt: skip
        self._metrics(metrics)

    # ---- configuration

    def _changed(self, new: Object | None, old: Object | None) -> None:
        if new is None or old is None or new["spec"] != old["spec"]:  # a status changes nothing
            self._load()
            self._wake.set()

    async def settle(self, writer: Writer) -> None:
        """Bring each FlowSchema's condition Dangling up to date: whether its level is missing."""
        self._wake.clear()
        there = {p["metadata"]["name"] for p in self._reader.list(LEVELS)}
        await asyncio.gather(*(self._write(writer, changed) for s in self._reader.list(SCHEMAS) if (changed := dangling(s, there))))

    async def _write(self, writer: Writer, schema: Object) -> None:
        with contextlib.suppress(ApiError):  # changed or gone meanwhile: that change wakes `follow` again
            await writer.update(SCHEMAS, schema, "status")

    async def follow(self, writer: Writer) -> None:
        """Settle after each change."""
        while True:
            await self._wake.wait()
            await self.settle(writer)

    def _load(self) -> None:
        levels = {p["metadata"]["name"]: p for p in flowdefaults.priority_levels() if p["metadata"]["name"] in MANDATORY}
        levels |= {p["metadata"]["name"]: p for p in self._reader.list(LEVELS)}
        schemas = {s["metadata"]["name"]: s for s in flowdefaults.flow_schemas() if s["metadata"]["name"] in MANDATORY}
        schemas |= {s["metadata"]["name"]: s for s in self._reader.list(SCHEMAS)}
        self.pool.configure(Level(name, p["spec"], p["metadata"].get("uid", "")) for name, p in levels.items())
        self._memory.clear()
        self._schemas = []
        for schema in ordered(list(schemas.values())):
            level = self.pool.levels.get(schema["spec"]["priorityLevelConfiguration"]["name"])
            if level is not None and level.name in levels:  # a schema that dangles matches nothing
                flow = Flow(schema, level)
                known = self._flows.get(flow.name)
                flow.dispatched = known.dispatched if known is not None and known.labels == flow.labels else 0
                self._schemas.append((schema, flow))
        self._flows = {flow.name: flow for _, flow in self._schemas}

    # ---- classification

    def classify(self, user: User, info: RequestInfo) -> Flow:
        known = self._memory.get(id(user))
        if known is None or known[0] is not user:
            if len(self._memory) >= USERS_MAX:
                del self._memory[next(iter(self._memory))]
            known = self._memory[id(user)] = (user, {})
        flows = known[1]
        key = (info.verb, info.group, info.resource, info.subresource, info.namespace) if info.is_resource else (info.verb, info.path)
        flow = flows.get(key)
        if flow is None:
            if len(flows) >= FLOWS_MAX:
                flows.clear()
            flow = flows[key] = self._look(user, info)
        return flow

    def _look(self, user: User, info: RequestInfo) -> Flow:
        for schema, flow in self._schemas:
            if matches(schema, user, info):
                return flow
        return self._flows["catch-all"]

    # ---- seats

    def __call__(self, request: Request, dispatch: Dispatch) -> Answer | Awaitable[Answer]:
        """Carry the request out when its level has seats for it. ApiError 429."""
        info = request.info
        if info.subresource in STREAMS:
            return dispatch(request)
        flow = request.flow = self.classify(request.user, info)
        flow.dispatched += 1
        if flow.exempt:
            return dispatch(request)
        if info.verb in WRITES:
            width = 1
        elif info.verb == "list" and info.spec is not None:
            width = min(self._width(request), max(1, flow.level.nominal))
        else:
            return dispatch(request)
        if not self.pool.take(flow.level, width):
            flow.dispatched -= 1
            return self._queued(request, flow, width, dispatch)
        return self._go(request, flow.level, width, dispatch)

    def _go(self, request: Request, level: Level, width: int, dispatch: Dispatch) -> Answer | Awaitable[Answer]:
        """Carry it out; the seats are taken."""
        try:
            answer = dispatch(request)
        except BaseException:
            self.pool.release(level, width)
            raise
        if isinstance(answer, (Response, Upgrade)):
            return self._answered(answer, level, width)
        return self._carried(answer, level, width)

    async def _carried(self, work: Awaitable[Answer], level: Level, width: int) -> Answer:
        try:
            answer = await work
        except BaseException:
            self.pool.release(level, width)
            raise
        return self._answered(answer, level, width)

    def _answered(self, answer: Answer, level: Level, width: int) -> Answer:
        """Give the seats back now, or for a wide list when its body is done with."""
        if width > 1 and isinstance(answer, Response) and isinstance(answer.body, Pieces):
            return _holding(answer, answer.body, _Seats(self.pool, level, width))
        self.pool.release(level, width)
        return answer

    def _width(self, request: Request) -> int:
        """Seats of a list: by how many objects are looked at."""
        info = request.info
        if info.name:
            return 1
        count = self._count(info)
        if count > OBJECTS_PER_SEAT and request.raw_query:
            limit = request.param("limit")
            if limit.isdecimal() and len(limit) < 10 and int(limit) and not (info.label_selector or info.field_selector):
                count = min(count, int(limit))
        return max(1, min(-(-count // OBJECTS_PER_SEAT), WIDTH_SEATS_MAX))

    async def _queued(self, request: Request, flow: Flow, width: int, dispatch: Dispatch) -> Answer:
        level, started = flow.level, clock.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go() -> None:
            if not turn.done():
                turn.set_result(None)

        try:
            waiter = self.pool.wait(level, width, flow.hash(request.user, request.info), go)
        except Refused as e:
            raise self._refuse(flow, e.reason) from None
        try:
            async with asyncio.timeout(QUEUE_SECONDS_MAX):
                await turn
        except BaseException as e:
            if waiter.gone:  # its turn came in the same moment
                self.pool.release(level, width)
            else:
                self.pool.leave(level, waiter)
            self._waited.observe((*flow.labels, "false"), clock.monotonic() - started)
            if isinstance(e, TimeoutError):
                raise self._refuse(flow, "time-out") from None
            self._rejected.add((*flow.labels, "cancelled"))
            raise
        self._waited.observe((*flow.labels, "true"), clock.monotonic() - started)
        flow.dispatched += 1
        answer = self._go(request, level, width, dispatch)
        return answer if isinstance(answer, (Response, Upgrade)) else await answer

    def _refuse(self, flow: Flow, reason: str) -> errors.ApiError:
        self._rejected.add((*flow.labels, reason))
        return errors.too_many_requests("too many requests, please try again later", RETRY_SECONDS)

    # ---- metrics

    def _metrics(self, metrics: Metrics) -> None:
        metrics.add(self._rejected)
        metrics.add(self._waited)
        metrics.add(
            _Read(
                "apiserver_flowcontrol_dispatched_requests_total",
                "Number of requests executed by API Priority and Fairness subsystem",
                ("flow_schema", "priority_level"),
                lambda: [(flow.labels, float(flow.dispatched)) for flow in self._flows.values()],
            )
        )
        for name, help_, field in (
            ("current_inqueue_requests", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", "waiting"),
            ("current_executing_requests", "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage", "executing"),
            ("current_executing_seats", "Concurrency (number of seats) occupied by the currently executing requests", "in_use"),
            ("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", "nominal"),
            ("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", "guaranteed"),
            ("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", "upper"),
        ):
            metrics.add(Gauge(f"apiserver_flowcontrol_{name}", help_, ("priority_level",), lambda field=field: self._each(field)))  # type: ignore[misc]

    def _each(self, field: str) -> Iterable[tuple[Labels, float]]:
        return [((level.name,), float(getattr(level, field))) for level in self.pool.levels.values()]


def dangling(schema: Object, levels: set[str]) -> Object | None:
    """The schema with its condition Dangling brought up to date; None when it is."""
    name = schema["spec"]["priorityLevelConfiguration"]["name"]
    found = name in levels
    status, reason = ("False", "Found") if found else ("True", "NotFound")
    end = "and it exists" if found else "but there is no such object"
    message = f'This FlowSchema references the PriorityLevelConfiguration object named "{name}" {end}'
    conditions = (schema.get("status") or {}).get("conditions") or []
    old: Object = next((c for c in conditions if c.get("type") == "Dangling"), {})
    if (old.get("status"), old.get("reason"), old.get("message")) == (status, reason, message):
        return None
    since = old["lastTransitionTime"] if old.get("status") == status else clock.rfc3339()
    new = {"type": "Dangling", "status": status, "lastTransitionTime": since, "reason": reason, "message": message}
    return {**schema, "status": {"conditions": [*(c for c in conditions if c.get("type") != "Dangling"), new]}}


class _Read(Gauge):
    """A counter that is counted elsewhere."""

    def render(self) -> Iterable[str]:
        first, *rest = super().render()
        return [first.replace(" gauge\n", " counter\n"), *rest]


def _holding(answer: Response, body: Pieces, seats: _Seats) -> Response:
    def make() -> Any:
        yield from body.pieces()
        seats.done()

    return Response(answer.status, Pieces(body.length, make), answer.content_type, answer.headers, answer.raw_headers)
