"""The container runtime over CRI v1 (k8s.io/cri-api runtime/v1): one method per call, messages as they are in the protocol.

Guarantees: every call has a deadline, and every failure is a `CriError` with the runtime's gRPC code and text. Nothing is retried here: the
pod workers are level-triggered and come back by themselves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # children only exec: no fork handlers, no warnings about them

import grpc
import grpc.aio
from cri_api.v1 import api_pb2 as pb
from cri_api.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub

CALL_SECONDS_MAX = 120.0  # as the kubelet's --runtime-request-timeout default
PULL_SECONDS_MAX = 3600.0
MESSAGE_BYTES_MAX = 16 * 1024 * 1024

_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class CriError(Exception):
    """What the runtime answered instead. `code` is the gRPC code's name ("NOT_FOUND", "UNAVAILABLE" ...)."""

    def __init__(self, call: str, code: str, details: str) -> None:
        super().__init__(f"rpc error: code = {_go_name(code)} desc = {details}")
        self.call = call
        self.code = code
        self.details = details

    @property
    def gone(self) -> bool:
        return self.code == "NOT_FOUND"


def _go_name(code: str) -> str:
    """gRPC-Go's spelling of a code: NOT_FOUND -> NotFound."""
    return "".join(part.capitalize() for part in code.split("_"))


class Cri:
    """A connection to the runtime behind `endpoint` (`unix:///path` or a plain path)."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint if "://" in endpoint else f"unix://{endpoint}"
        self._channel = grpc.aio.insecure_channel(self.endpoint, options=_OPTIONS)
        self._runtime = RuntimeServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, name: str, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except grpc.aio.AioRpcError as e:
            raise CriError(name, e.code().name, e.details() or "") from None
        except grpc.aio.UsageError as e:  # the channel was closed under us
            raise CriError(name, "UNAVAILABLE", str(e)) from None

    def _run(self, name: str, request: Any, seconds: float = CALL_SECONDS_MAX) -> Awaitable[Any]:
        return self._call(name, getattr(self._runtime, name)(request, timeout=seconds))

    def _image(self, name: str, request: Any, seconds: float = CALL_SECONDS_MAX) -> Awaitable[Any]:
        return self._call(name, getattr(self._images, name)(request, timeout=seconds))

    # The runtime itself
    async def version(self) -> pb.VersionResponse:
        return await self._run("Version", pb.VersionRequest(), 5)

    async def status(self) -> pb.StatusResponse:
        return await self._run("Status", pb.StatusRequest(), 10)

    async def update_runtime_config(self, pod_cidr: str) -> None:
        config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=pod_cidr))
        await self._run("UpdateRuntimeConfig", pb.UpdateRuntimeConfigRequest(runtime_config=config))

    # Sandboxes
    async def run_sandbox(self, config: pb.PodSandboxConfig, handler: str = "") -> str:
        return (await self._run("RunPodSandbox", pb.RunPodSandboxRequest(config=config, runtime_handler=handler), 2 * CALL_SECONDS_MAX)).pod_sandbox_id

    async def stop_sandbox(self, id: str) -> None:
        await self._run("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=id))

    async def remove_sandbox(self, id: str) -> None:
        await self._run("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=id))

    async def sandbox_status(self, id: str, verbose: bool = False) -> pb.PodSandboxStatusResponse:
        return await self._run("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=id, verbose=verbose))

    async def list_sandboxes(self) -> list[pb.PodSandbox]:
        return list((await self._run("ListPodSandbox", pb.ListPodSandboxRequest())).items)

    # Containers
    async def create_container(self, sandbox: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=sandbox_config)
        return (await self._run("CreateContainer", request)).container_id

    async def start_container(self, id: str) -> None:
        await self._run("StartContainer", pb.StartContainerRequest(container_id=id))

    async def stop_container(self, id: str, grace_seconds: int) -> None:
        await self._run("StopContainer", pb.StopContainerRequest(container_id=id, timeout=grace_seconds), grace_seconds + CALL_SECONDS_MAX)

    async def remove_container(self, id: str) -> None:
        await self._run("RemoveContainer", pb.RemoveContainerRequest(container_id=id))

    async def list_containers(self) -> list[pb.Container]:
        return list((await self._run("ListContainers", pb.ListContainersRequest())).containers)

    async def container_status(self, id: str, verbose: bool = False) -> pb.ContainerStatusResponse:
        return await self._run("ContainerStatus", pb.ContainerStatusRequest(container_id=id, verbose=verbose))

    async def update_resources(self, id: str, resources: pb.LinuxContainerResources) -> None:
        await self._run("UpdateContainerResources", pb.UpdateContainerResourcesRequest(container_id=id, linux=resources))

    async def reopen_log(self, id: str) -> None:
        await self._run("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=id))

    async def container_stats(self) -> list[pb.ContainerStats]:
        return list((await self._run("ListContainerStats", pb.ListContainerStatsRequest())).stats)

    async def exec_sync(self, id: str, command: list[str], seconds: int) -> pb.ExecSyncResponse:
        """Run a command to its end. When it takes longer than `seconds`, CriError DEADLINE_EXCEEDED (0: no limit of the runtime's)."""
        request = pb.ExecSyncRequest(container_id=id, cmd=command, timeout=seconds)
        return await self._run("ExecSync", request, seconds + 10 if seconds else CALL_SECONDS_MAX)

    # Streams: the answer is a URL on the runtime's own streaming server
    async def exec_url(self, id: str, command: list[str], *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> str:
        request = pb.ExecRequest(container_id=id, cmd=command, stdin=stdin, stdout=stdout, stderr=stderr and not tty, tty=tty)
        return (await self._run("Exec", request)).url

    async def attach_url(self, id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> str:
        request = pb.AttachRequest(container_id=id, stdin=stdin, stdout=stdout, stderr=stderr and not tty, tty=tty)
        return (await self._run("Attach", request)).url

    async def port_forward_url(self, sandbox: str, ports: list[int]) -> str:
        return (await self._run("PortForward", pb.PortForwardRequest(pod_sandbox_id=sandbox, port=ports))).url

    # Images
    async def list_images(self) -> list[pb.Image]:
        return list((await self._image("ListImages", pb.ListImagesRequest())).images)

    async def image_status(self, image: str, verbose: bool = False) -> pb.ImageStatusResponse:
        """The answer's `image` has no id when the image is not there."""
        return await self._image("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image=image), verbose=verbose))

    async def pull_image(self, image: str, auth: pb.AuthConfig | None, sandbox_config: pb.PodSandboxConfig | None) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image), auth=auth, sandbox_config=sandbox_config)
        return (await self._image("PullImage", request, PULL_SECONDS_MAX)).image_ref

    async def remove_image(self, image: str) -> None:
        await self._image("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))

    async def image_fs(self) -> list[pb.FilesystemUsage]:
        return list((await self._image("ImageFsInfo", pb.ImageFsInfoRequest())).image_filesystems)

    # Events: a hint that something changed; what changed is read by a relist
    async def changes(self) -> AsyncIterator[str]:
        """Yields the topic of each change in the runtime: CRI's GetContainerEvents where it is implemented, else containerd's own event
        service, else CriError UNIMPLEMENTED (the caller then polls). Ends with CriError when the connection does."""
        try:
            async for _ in self._events(self._runtime.GetContainerEvents(pb.GetEventsRequest())):
                yield "container"
        except CriError as e:
            if e.code != "UNIMPLEMENTED":
                raise
        subscribe = self._channel.unary_stream("/containerd.services.events.v1.Events/Subscribe", request_serializer=bytes, response_deserializer=_topic)
        async for topic in self._events(subscribe(_SUBSCRIBE_TASKS)):
            if topic:
                yield topic

    async def _events(self, stream: Any) -> AsyncIterator[Any]:
        try:
            async for item in stream:
                yield item
        except grpc.aio.AioRpcError as e:
            raise CriError("events", e.code().name, e.details() or "") from None
        except asyncio.CancelledError:
            stream.cancel()
            raise


def _filter(expression: str) -> bytes:
    data = expression.encode()
    return bytes((0x0A, len(data))) + data


# containerd's SubscribeRequest{repeated string filters = 1}: tasks of CRI's namespace only, nothing of images, snapshots and content
_SUBSCRIBE_TASKS = _filter('namespace==k8s.io,topic~="^/tasks/(start|exit|delete|oom|paused|resumed)$"')


def _topic(envelope: bytes) -> str:
    """Field 3 (topic) of containerd.services.events.v1.Envelope; "" for the end of an exec's process, which changes no container."""
    fields = _fields(envelope)
    topic = fields.get(3, b"").decode("utf-8", "replace")
    if topic in ("/tasks/exit", "/tasks/delete"):
        event = _fields(_fields(fields.get(4, b"")).get(2, b""))  # Any{value = 2} of TaskExit{container_id = 1, id = 2}, TaskDelete{container_id = 1, id = 5}
        process = event.get(2) if topic == "/tasks/exit" else event.get(5)
        if process and process != event.get(1):
            return ""
    return topic


def _fields(message: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a protobuf message, by number."""
    out: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            length, at = _varint(message, at)
            out[tag >> 3] = message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(message, at)
        else:
            at += {1: 8, 5: 4}.get(wire, len(message))
    return out


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
    return value, at
