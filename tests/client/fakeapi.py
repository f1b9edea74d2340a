"""A tiny collection server behind an aiohttp socket or a bare handler: just enough of the API's list, watch and write protocol to try the
client against failures that a real API server cannot be asked to show (cut lines, 410 in the middle, lost bookmarks)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

from fastkube.http.message import Request, Response


class FakeApi:
    """Objects of one resource (v1/configmaps by path suffix) with a log of events; `handler` is what InProcessTransport wants."""

    def __init__(self) -> None:
        self.revision = 1
        self.objects: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[int, str, dict[str, Any]]] = []
        self.compacted = 0
        self.changed = asyncio.Event()
        self.lists = 0
        self.watches = 0
        self.cut = asyncio.Event()  # set: open watches end
        self.failures: list[Response] = []  # answers given instead, first come first served
        self.chunk = 0  # >0: watch bytes come in pieces of this size

    def put(self, name: str, **data: str) -> dict[str, Any]:
        self.revision += 1
        old = self.objects.get(name)
        uid = old["metadata"]["uid"] if old else f"uid-{self.revision}"
        obj = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(self.revision)},
            "data": data,
        }
        self.objects[name] = obj
        self._append("MODIFIED" if old else "ADDED", obj)
        return obj

    def remove(self, name: str) -> None:
        self.revision += 1
        obj = self.objects.pop(name)
        self._append("DELETED", {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}})

    def _append(self, kind: str, obj: dict[str, Any]) -> None:
        self.log.append((self.revision, kind, obj))
        self.changed.set()
        self.changed = asyncio.Event()

    def bookmark(self) -> None:
        self.revision += 1
        self._append("BOOKMARK", {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": str(self.revision)}})

    def compact(self) -> None:
        self.compacted = self.revision
        self.log.clear()

    def end_watches(self) -> None:
        self.cut.set()
        self.cut = asyncio.Event()

    def handler(self, request: Request) -> Response:
        if self.failures:
            return self.failures.pop(0)
        if request.param("watch"):
            self.watches += 1
            start = int(request.param("resourceVersion", "0"))
            if start < self.compacted:
                status = {"kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}
                return Response(200, orjson.dumps({"type": "ERROR", "object": status}) + b"\n")
            return Response(200, self._pieces(self._events(start)))
        self.lists += 1
        limit = int(request.param("limit", "0"))
        names = sorted(self.objects)
        start_at = int(request.param("continue", "0"))
        page = names[start_at : start_at + limit] if limit else names
        meta = {"resourceVersion": str(self.revision)}
        if limit and start_at + limit < len(names):
            meta["continue"] = str(start_at + limit)
        return Response(200, orjson.dumps({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": meta, "items": [self.objects[n] for n in page]}))

    async def _events(self, start: int) -> AsyncIterator[bytes]:
        sent = start
        cut = self.cut
        while not cut.is_set():
            changed = self.changed
            for revision, kind, obj in list(self.log):
                if revision > sent:
                    sent = revision
                    yield orjson.dumps({"type": kind, "object": obj}) + b"\n"
            waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(cut.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _pieces(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in source:
            if not self.chunk:
                yield data
            else:
                for i in range(0, len(data), self.chunk):
                    yield data[i : i + self.chunk]
