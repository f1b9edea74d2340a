"""/containerLogs/NAMESPACE/POD/CONTAINER: v1.PodLogOptions from a query, and the log as an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.node import containerlogs
from fastkube.node.containerlogs import LogOptions
from fastkube.node.model import Container, RuntimePod
from fastkube.runtime import clock

Object = dict[str, Any]


def options_of(query: Mapping[str, str]) -> tuple[LogOptions, bool]:
    """(options, whether the previous run is meant). ApiError 400."""
    since = 0.0
    if query.get("sinceTime"):
        try:
            since = clock.parse(query["sinceTime"])
        except ValueError:
            raise ApiError(400, "BadRequest", f"unable to decode query: sinceTime {query['sinceTime']!r} is no time") from None
    elif query.get("sinceSeconds"):
        since = clock.now() - _number(query, "sinceSeconds")
    stream = query.get("stream") or "All"
    if stream not in ("All", "Stdout", "Stderr"):
        raise ApiError(400, "BadRequest", f"invalid stream {stream!r}: All, Stdout or Stderr is wanted")
    tail = _number(query, "tailLines") if query.get("tailLines") else -1
    limit = _number(query, "limitBytes") if query.get("limitBytes") else 0
    return LogOptions(_flag(query, "follow"), _flag(query, "timestamps"), since, tail, limit, stream), _flag(query, "previous")


def _number(query: Mapping[str, str], name: str) -> int:
    if not query[name].isdecimal():
        raise ApiError(400, "BadRequest", f"invalid {name} {query[name]!r}: must be a number not less than 0")
    return int(query[name])


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("true", "1")


def run_of(pod: Object, runtime: RuntimePod, name: str, previous: bool) -> Container:
    """The run whose log is meant. ApiError 400 with upstream's words when there is none."""
    runs = runtime.runs(name)
    pod_name = pod["metadata"]["name"]
    if previous:
        ended = [r for r in runs if r.dead]
        if runs and runs[0].dead:
            ended = ended[1:] or ended if _waits(pod, name) else ended[1:]
        if not ended:
            raise ApiError(400, "BadRequest", f'previous terminated container "{name}" in pod "{pod_name}" not found')
        return ended[0]
    if not runs or runs[0].phase == "created":
        raise ApiError(400, "BadRequest", f'container "{name}" in pod "{pod_name}" is waiting to start: {_why(pod, name)}')
    return runs[0]


def _status(pod: Object, name: str) -> Object:
    status = pod.get("status") or {}
    for where in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for each in status.get(where) or ():
            if each["name"] == name:
                return each
    return {}


def _waits(pod: Object, name: str) -> bool:
    return "waiting" in (_status(pod, name).get("state") or {})


def _why(pod: Object, name: str) -> str:
    waiting = (_status(pod, name).get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "ContainerCreating")
    if reason in ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"):
        return "trying and failing to pull image" if reason != "ErrImageNeverPull" else "image can't be pulled"
    return reason


async def lines(run: Container, options: LogOptions, alive: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The log in chunks; ApiError 404 (before the first) when its file is gone."""
    source = containerlogs.read(run.log_path, options, alive)
    try:
        first = await anext(source, b"")
    except FileNotFoundError:
        raise ApiError(404, "NotFound", f"the log of container {run.name} is gone") from None

    async def rest() -> AsyncIterator[bytes]:
        try:
            if first:
                yield first
            async for chunk in source:
                yield chunk
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    return rest()
