"""OpenAPI v2 as protobuf: the form that older kubectl (up to 1.26) asks of /openapi/v2 and understands nothing else.

Messages and field numbers: google/gnostic openapiv2/OpenAPIv2.proto. Messages are written, never read; concatenating two Documents merges them, which is
how the definitions of custom resources come in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

Json = Any


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _string(number: int, text: str | None) -> bytes:
    return _message(number, text.encode()) if text else b""


def _strings(number: int, texts: Iterable[str] | None) -> bytes:
    return b"".join(_message(number, t.encode()) for t in texts or ())


def _bool(number: int, value: Any) -> bytes:
    return _varint(number << 3) + b"\x01" if value else b""


def _int(number: int, value: int | None) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF) if value else b""


def _double(number: int, value: float | None) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value) if value else b""


def _any(number: int, value: Json) -> bytes:
    """An Any: its YAML text (which JSON is)."""
    return _message(number, _message(2, orjson.dumps(value) + b"\n"))


def _named(number: int, items: Iterable[tuple[str, bytes]]) -> bytes:
    """A repeated NamedX: each a name and a message."""
    return b"".join(_message(number, _string(1, name) + _message(2, value)) for name, value in items)


def _extensions(number: int, of: Json) -> bytes:
    return b"".join(_message(number, _string(1, k) + _any(2, v)) for k, v in of.items() if k.startswith("x-"))


def schema(of: Json) -> bytes:
    """A Schema message."""
    out = [_string(1, of.get("$ref")), _string(2, of.get("format")), _string(3, of.get("title")), _string(4, of.get("description"))]
    if "default" in of:
        out.append(_any(5, of["default"]))
    out += [
        _double(6, of.get("multipleOf")),
        _double(7, of.get("maximum")),
        _bool(8, of.get("exclusiveMaximum")),
        _double(9, of.get("minimum")),
        _bool(10, of.get("exclusiveMinimum")),
        _int(11, of.get("maxLength")),
        _int(12, of.get("minLength")),
        _string(13, of.get("pattern")),
        _int(14, of.get("maxItems")),
        _int(15, of.get("minItems")),
        _bool(16, of.get("uniqueItems")),
        _int(17, of.get("maxProperties")),
        _int(18, of.get("minProperties")),
        _strings(19, of.get("required")),
        *(_any(20, v) for v in of.get("enum") or ()),
    ]
    additional = of.get("additionalProperties")
    if isinstance(additional, dict):
        out.append(_message(21, _message(1, schema(additional))))
    elif additional:
        out.append(_message(21, _bool(2, True)))
    if of.get("type"):
        out.append(_message(22, _string(1, of["type"])))
    if isinstance(of.get("items"), dict):
        out.append(_message(23, _message(1, schema(of["items"]))))
    out += [_message(24, schema(s)) for s in of.get("allOf") or ()]
    if of.get("properties"):
        out.append(_message(25, _named(1, ((k, schema(v)) for k, v in of["properties"].items()))))
    out.append(_extensions(31, of))
    return b"".join(out)


_IN = {"header": 1, "formData": 2, "query": 3, "path": 4}


def _parameter(of: Json) -> bytes:
    """A ParametersItem."""
    if "$ref" in of:
        return _message(2, _string(1, of["$ref"]))
    if of["in"] == "body":
        body = _string(1, of.get("description")) + _string(2, of["name"]) + _string(3, "body") + _bool(4, of.get("required"))
        return _message(1, _message(1, body + _message(5, schema(of.get("schema") or {}))))
    kind = _IN[of["in"]]
    out = _bool(1, of.get("required")) + _string(2, of["in"]) + _string(3, of.get("description")) + _string(4, of["name"])
    query = kind in (2, 3)  # these have allowEmptyValue, which shifts what follows by one
    out += _string(5 + query, of.get("type")) + _string(6 + query, of.get("format")) + _bool(19 + query, of.get("uniqueItems"))
    return _message(1, _message(2, _message(kind, out)))


def _responses(of: Json) -> Iterator[tuple[str, bytes]]:
    for code, response in of.items():
        body = _string(1, response.get("description"))
        if "schema" in response:
            body += _message(2, _message(1, schema(response["schema"])))
        yield code, _message(1, body)


def _operation(of: Json) -> bytes:
    return b"".join(
        [
            _strings(1, of.get("tags")),
            _string(3, of.get("description")),
            _string(5, of.get("operationId")),
            _strings(6, of.get("produces")),
            _strings(7, of.get("consumes")),
            *(_message(8, _parameter(p)) for p in of.get("parameters") or ()),
            _message(9, _named(1, _responses(of.get("responses") or {}))),
            _strings(10, of.get("schemes")),
            _bool(11, of.get("deprecated")),
            _extensions(13, of),
        ]
    )


_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "options": 6, "head": 7, "patch": 8}


def _path(of: Json) -> bytes:
    out = b"".join(_message(number, _operation(of[method])) for method, number in _METHODS.items() if method in of)
    return out + b"".join(_message(9, _parameter(p)) for p in of.get("parameters") or ()) + _extensions(10, of)


def document(of: Json) -> bytes:
    """A Document message; what `of` leaves out is left out, so that two can be concatenated."""
    out = [_string(1, of.get("swagger"))]
    if "info" in of:
        out.append(_message(2, _string(1, of["info"].get("title")) + _string(2, of["info"].get("version"))))
    if "paths" in of:
        out.append(_message(8, _named(2, ((k, _path(v)) for k, v in of["paths"].items()))))
    if "definitions" in of:
        out.append(_message(9, _named(1, ((k, schema(v)) for k, v in of["definitions"].items()))))
    if "parameters" in of:  # ParameterDefinitions hold a Parameter, which is what a ParametersItem has inside
        out.append(_message(10, _named(1, ((k, _inner(_parameter(v))) for k, v in of["parameters"].items()))))
    for requirement in of.get("security") or ():
        out.append(_message(12, _named(1, ((k, _strings(1, v)) for k, v in requirement.items()))))
    for name, d in (of.get("securityDefinitions") or {}).items():
        key = _string(1, d["type"]) + _string(2, d["name"]) + _string(3, d["in"]) + _string(4, d.get("description"))
        out.append(_message(13, _named(1, [(name, _message(2, key))])))
    return b"".join(out)


def _inner(item: bytes) -> bytes:
    """The payload of a message with one length-delimited field."""
    at = 1
    while item[at] & 0x80:
        at += 1
    return item[at + 1 :]
