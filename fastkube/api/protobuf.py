"""application/vnd.kubernetes.protobuf: the form in which Go clients send and like to get built-in objects.

A body is the four bytes `k8s\\0`, then a runtime.Unknown: apiVersion and kind, and the message itself as `raw`
(https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding). The tables come out of `data/protobuf.json` (tools/gen_data.py);
a message's table is made when it is first needed. Custom resources have no such form.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any

import orjson

from fastkube._ext import protobuf as kernel
from fastkube._ext.protobuf import DecodeError, EncodeError, Field, Kind, Message

__all__ = ["MAGIC", "MEDIA_TYPE", "DecodeError", "EncodeError", "decode", "encode", "message_of", "watch_frame"]

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\0"

_KINDS = {
    "string": Kind.STRING, "bytes": Kind.BYTES, "bool": Kind.BOOL, "int32": Kind.INT32, "int64": Kind.INT64, "double": Kind.DOUBLE,
    "message": Kind.MESSAGE, "quantity": Kind.QUANTITY, "intstr": Kind.INTSTR, "time": Kind.TIME, "microtime": Kind.MICROTIME, "raw": Kind.RAW,
    "strings": Kind.STRINGS, "schema-or-array": Kind.SCHEMA_OR_ARRAY, "schema-or-bool": Kind.SCHEMA_OR_BOOL, "schema-or-strings": Kind.SCHEMA_OR_STRINGS,
}  # fmt: skip
# Kinds that every group and version shares (metav1).
_META_KINDS = {"Status", "DeleteOptions", "ListOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "Table", "PartialObjectMetadata"}


@functools.cache
def _tables() -> dict[str, list[list[Any]]]:
    return orjson.loads((importlib.resources.files("fastkube.api.data") / "protobuf.json").read_bytes())


@functools.cache
def _definitions() -> dict[str, str]:
    """`GROUP/VERSION/KIND` -> the name of its message."""
    return orjson.loads((importlib.resources.files("fastkube.api.data") / "schema.json").read_bytes())["kinds"]


_messages: dict[str, Message] = {}


def _message(name: str) -> Message:
    message = _messages.get(name)
    if message is None:
        message = _messages[name] = Message(name)
        for number, json_name, kind, target, flags in _tables()[name]:
            field = Field(number, json_name, _KINDS[kind], flags)
            if target:
                field.message = _message(target)
            message.add(field)
    return message


@functools.cache
def message_of(api_version: str, kind: str) -> Message | None:
    """The message of a built-in kind or of its list; None for what has none."""
    group, _, version = api_version.rpartition("/")
    definitions, tables = _definitions(), _tables()
    name = definitions.get(f"{group}/{version}/{kind}")
    if name is None and kind.endswith("List") and (item := definitions.get(f"{group}/{version}/{kind.removesuffix('List')}")):
        name = f"{item}List"
    if name is None and kind in _META_KINDS:
        name = f"meta.v1.{kind}"
    return _message(name) if name in tables else None


def decode(body: bytes) -> dict[str, Any]:
    """The object of a body, apiVersion and kind in place. Raises DecodeError."""
    if not body.startswith(MAGIC):
        raise DecodeError("provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00")
    envelope = kernel.pieces(body[len(MAGIC) :])
    meta = kernel.pieces(envelope.get(1, b""))
    api_version, kind = meta.get(1, b"").decode(errors="replace"), meta.get(2, b"").decode(errors="replace")
    message = message_of(api_version, kind)
    if message is None:
        raise DecodeError(f'no kind "{kind}" is registered for version "{api_version}"')
    return {"apiVersion": api_version, "kind": kind, **kernel.decode(message, envelope.get(2, b""))}


def encode(obj: dict[str, Any]) -> bytes:
    """An object (or list) as a body. Raises EncodeError when its kind has no protobuf form or it does not fit it."""
    api_version, kind = obj.get("apiVersion", ""), obj.get("kind", "")
    message = message_of(api_version, kind)
    if message is None:
        raise EncodeError(f"{api_version} {kind} has no protobuf form")
    raw = kernel.encode(message, obj)
    head = _piece(1, _piece(1, api_version.encode()) + _piece(2, kind.encode()))
    return MAGIC + head + _piece(2, raw) + _piece(3, b"") + _piece(4, b"")


def watch_frame(event: str, obj: bytes) -> bytes:
    """One frame of a watch (`;stream=watch`): its length in four bytes, then a metav1.WatchEvent around the encoded object."""
    frame = _piece(1, event.encode()) + _piece(2, _piece(1, obj))
    return len(frame).to_bytes(4, "big") + frame


def _piece(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    size, head = len(data), bytearray((number << 3 | 2,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data
