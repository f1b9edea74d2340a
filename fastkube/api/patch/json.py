"""JSON patch (RFC 6902): a list of operations, all of them or none.

As upstream's library has it, beyond the RFC: an array index may be negative (counted from the end), and `test` for null holds for
an absent member. What upstream says of an operation that does not apply is 422 and nothing more.
"""

from __future__ import annotations

from typing import Any

import orjson

from fastkube.api.errors import ApiError
from fastkube.api.patch import Object, bounded, decode, go_name, rejected

OPERATIONS_MAX = 10_000
COPIED_BYTES_MAX = 3 * 1024 * 1024  # what all copies of one patch may add up to, the size limit of a request

_OPS = ("add", "remove", "replace", "move", "copy", "test")


@bounded
def apply(obj: Object, patch: bytes) -> Object:
    """`obj` (owned) after the operations of `patch`. ApiError 400 (no JSON patch), 413 (too many operations), 422 (one does not apply)."""
    document: Any = obj
    copied = 0
    for operation in parse(patch):
        op, path = operation.get("op"), _pointer(operation.get("path"))
        if op == "test":
            if not equal(_find(document, path, None), operation.get("value")):
                raise rejected()
        elif op == "remove":
            _remove(document, path)
        elif op == "add":
            document = _add(document, path, operation["value"]) if "value" in operation else _fail()
        elif op == "replace":
            _find(document, path)
            value = operation["value"] if "value" in operation else _fail()
            document = _replace(document, path, value)
        elif op == "move":
            document = _add(document, path, _remove(document, _pointer(operation.get("from"))))
        elif op == "copy":
            raw = orjson.dumps(_find(document, _pointer(operation.get("from"))))
            copied += len(raw)
            if copied > COPIED_BYTES_MAX:
                raise rejected()
            document = _add(document, path, orjson.loads(raw))
        else:
            raise rejected()
    if not isinstance(document, dict):
        raise rejected()
    return document


def parse(patch: bytes) -> list[dict[str, Any]]:
    """The operations, their outer form checked."""
    operations = decode(patch, list, "[]handlers.jsonPatchOp")
    if len(operations) > OPERATIONS_MAX:
        message = f"The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {len(operations)}"
        raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: {message}")
    for operation in operations:
        if not isinstance(operation, dict):
            raise ApiError(400, "BadRequest", f"error decoding patch: json: cannot unmarshal {go_name(operation)} into Go value of type handlers.jsonPatchOp")
        for name in ("op", "from", "path"):
            value = operation.get(name, "")
            if not isinstance(value, str):
                message = f"json: cannot unmarshal {go_name(value)} into Go struct field jsonPatchOp.{name} of type string"
                raise ApiError(400, "BadRequest", f"error decoding patch: {message}")
    return operations


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: like Python's, but true is not 1 and 1 is not 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(k in b and equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def _fail() -> Any:
    raise rejected()


def _pointer(text: Any) -> list[str]:
    """The reference tokens of a JSON pointer (RFC 6901)."""
    if text == "":
        return []
    if not isinstance(text, str) or not text.startswith("/"):
        raise rejected()
    return [token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/")]


def _index(token: str, length: int) -> int:
    """The position in an array of `length` items that may be used; a negative token counts from the end."""
    digits = token.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise rejected()
    at = int(token)
    at = at + length if at < 0 else at
    if not 0 <= at < length:
        raise rejected()
    return at


def _find(document: Any, path: list[str], *absent: Any) -> Any:
    """The value at `path`; one that is not there is `absent` when that is given and everything above it is."""
    for depth, token in enumerate(path):
        if isinstance(document, dict):
            if token not in document:
                return absent[0] if absent and depth == len(path) - 1 else _fail()
            document = document[token]
        elif isinstance(document, list):
            document = document[_index(token, len(document))]
        else:
            raise rejected()
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, token = _find(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[token] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if token == "-" else _index(token, len(parent) + 1), value)
    else:
        raise rejected()
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, token = _find(document, path[:-1]), path[-1]
    parent[token if isinstance(parent, dict) else _index(token, len(parent))] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        raise rejected()
    parent, token = _find(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        return parent.pop(token) if token in parent else _fail()
    if isinstance(parent, list):
        return parent.pop(_index(token, len(parent)))
    raise rejected()
