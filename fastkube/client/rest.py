"""Client: Kubernetes' verbs over a transport.

Resources are named "v1/pods", "apps/v1/deployments" (or given as an `api.resources.Resource`, which is how custom ones with a scope come
from discovery); objects are plain dicts. Every failure is an ApiError: the server's Status, or ConnectionFailed. Answers that ask to come
again (429, or 5xx with Retry-After) are retried here, as client-go does, up to RETRIES_MAX times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.client.transport import Stream, Transport

RETRIES_MAX = 10
RETRY_AFTER_SECONDS_MAX = 30
WATCH_LINE_BYTES_MAX = 32 << 20  # one event; a server that sends more is not an API server

Object = dict[str, Any]
Lines = list[bytes]

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
_JSON = {"Content-Type": "application/json"}
_PATCH = {kind: {"Content-Type": mime} for kind, mime in PATCH_TYPES.items()}


def resolve(resource: str | Resource) -> Resource:
    """The Resource of a name. An unknown name is taken for a custom resource, whose path has a namespace when the caller gives one."""
    if isinstance(resource, Resource):
        return resource
    try:
        return resources.parse(resource)
    except KeyError:
        parts = resource.split("/")
        if len(parts) != 3:
            raise ValueError(f"{resource!r} names no resource: GROUP/VERSION/PLURAL is wanted") from None
        return Resource(parts[0], parts[1], parts[2], "", "", True, custom=True)


def _path(resource: str | Resource, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    return resolve(resource).path(namespace, quote(name, safe=":@") if name else None, subresource)


class Client:
    """One caller's view of the API. Close it, or use it as an async context manager."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.transport.close()

    # --- reading ---

    async def get(self, resource: str | Resource, name: str, namespace: str | None = None, *, subresource: str | None = None) -> Object:
        return await self._json("GET", _path(resource, namespace, name, subresource))

    async def list(
        self,
        resource: str | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        resource_version: str = "",
        continue_: str = "",
    ) -> Object:
        """The List object: `items` and `metadata.resourceVersion`, `metadata.continue` when `limit` cut it."""
        query = _query(labelSelector=labels, fieldSelector=fields, limit=limit, resourceVersion=resource_version) | {"continue": continue_}
        answer = await self._json("GET", _target(_path(resource, namespace), query))
        answer["items"] = answer.get("items") or []
        return answer

    async def watch(
        self,
        resource: str | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
        bookmarks: bool = True,
        timeout_seconds: int | None = None,
    ) -> AsyncIterator[tuple[str, Object]]:
        """(type, object) of each event: ADDED, MODIFIED, DELETED, BOOKMARK. Ends when the server ends the stream; raises ApiError (410: list again)."""
        batches = self.watch_batches(
            resource, namespace, labels=labels, fields=fields, resource_version=resource_version, bookmarks=bookmarks, timeout_seconds=timeout_seconds
        )
        try:
            async for lines in batches:
                for line in lines:
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError.from_status(event["object"])
                    yield event["type"], event["object"]
        finally:
            await batches.aclose()  # type: ignore[attr-defined]

    async def watch_batches(
        self,
        resource: str | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
        bookmarks: bool = True,
        timeout_seconds: int | None = None,
    ) -> AsyncIterator[Lines]:
        """The watch as it comes off the wire: lists of whole lines, undecoded, one list per chunk (what informers read)."""
        query = _query(
            watch=1, labelSelector=labels, fieldSelector=fields, resourceVersion=resource_version,
            allowWatchBookmarks="true" if bookmarks else "", timeoutSeconds=timeout_seconds or 0,
        )  # fmt: skip
        stream = await self.transport.stream("GET", _target(_path(resource, namespace), query))
        try:
            if stream.status != 200:
                raise _error(stream.status, stream.headers, await stream.read())
            async for lines in split_lines(stream):
                yield lines
        finally:
            await stream.close()

    # --- writing ---

    async def create(
        self,
        resource: str | Resource,
        obj: Object,
        namespace: str | None = None,
        *,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Create; `name` and `subresource` for what is created under an object (binding, eviction, token)."""
        namespace = namespace or obj.get("metadata", {}).get("namespace")
        path = _path(resource, namespace, name, subresource)
        return await self._json("POST", path + "?dryRun=All" if dry_run else path, orjson.dumps(obj), _JSON)

    async def update(self, resource: str | Resource, obj: Object, *, subresource: str | None = None) -> Object:
        meta = obj["metadata"]
        return await self._json("PUT", _path(resource, meta.get("namespace"), meta["name"], subresource), orjson.dumps(obj), _JSON)

    async def patch(
        self,
        resource: str | Resource,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        kind: str = "merge",
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
    ) -> Object:
        """`kind`: merge, json, strategic or apply (server-side apply; wants `field_manager`)."""
        query = _query(fieldManager=field_manager or "", force="true" if force else "")
        return await self._json("PATCH", _target(_path(resource, namespace, name, subresource), query), orjson.dumps(patch), _PATCH[kind])

    async def delete(
        self,
        resource: str | Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_seconds: int | None = None,
        propagation: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> Object:
        """Delete one object; `uid` and `resource_version` are preconditions (409 when they do not hold)."""
        body = _delete_options(grace_seconds, propagation, uid, resource_version)
        return await self._json("DELETE", _path(resource, namespace, name), body, _JSON if body else None)

    async def delete_collection(
        self,
        resource: str | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Object:
        body = _delete_options(grace_seconds, propagation, None, None)
        target = _target(_path(resource, namespace), _query(labelSelector=labels, fieldSelector=fields))
        return await self._json("DELETE", target, body, _JSON if body else None)

    async def raw(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, Mapping[str, str], bytes]:
        """Any request, path with query; an answer of any status is returned as it is."""
        return await self.transport.request(method, path, body, headers)

    async def _json(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        for _ in range(RETRIES_MAX):
            status, answer_headers, data = await self.transport.request(method, target, body, headers)
            if status < 400:
                return orjson.loads(data) if data else {}
            if not (status == 429 or status >= 500) or "Retry-After" not in answer_headers:
                break
            await asyncio.sleep(min(_seconds(answer_headers["Retry-After"]), RETRY_AFTER_SECONDS_MAX))
        raise _error(status, answer_headers, data)


def _query(**params: Any) -> dict[str, Any]:
    return params


def _target(path: str, query: dict[str, Any]) -> str:
    chosen = {k: v for k, v in query.items() if v}
    return f"{path}?{urlencode(chosen)}" if chosen else path


def _delete_options(grace_seconds: int | None, propagation: str | None, uid: str | None, resource_version: str | None) -> bytes | None:
    options: Object = {}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    if propagation:
        options["propagationPolicy"] = propagation
    preconditions = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}
    if preconditions:
        options["preconditions"] = preconditions
    return orjson.dumps({"apiVersion": "v1", "kind": "DeleteOptions", **options}) if options else None


def _seconds(text: str) -> int:
    return int(text) if text.isdigit() else 1


def _error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The ApiError of a failed answer, also when a proxy in between did not answer with a Status."""
    try:
        decoded = orjson.loads(body)
    except orjson.JSONDecodeError:
        decoded = None
    if isinstance(decoded, dict) and decoded.get("kind") == "Status":
        return ApiError.from_status(decoded, status)
    return ApiError(status, "", body[:1024].decode(errors="replace").strip() or f"the server answered {status}")


async def split_lines(chunks: Stream | AsyncIterator[bytes]) -> AsyncIterator[Lines]:
    """Whole lines (newline taken off, empty ones left out) of a byte stream, one list per chunk that completes any.

    Raises ApiError when one line passes WATCH_LINE_BYTES_MAX. A last line without newline is dropped: the stream was cut.
    """
    held: list[bytes] = []
    held_bytes = 0
    async for chunk in chunks:
        if b"\n" not in chunk:
            held.append(chunk)
            held_bytes += len(chunk)
            if held_bytes > WATCH_LINE_BYTES_MAX:
                raise ApiError(500, "InternalError", f"a watch event is longer than {WATCH_LINE_BYTES_MAX} bytes")
            continue
        lines = chunk.split(b"\n")
        if held:
            lines[0] = b"".join([*held, lines[0]])
        rest = lines.pop()
        held = [rest] if rest else []
        held_bytes = len(rest)
        whole = [line for line in lines if line]
        if whole:
            yield whole
