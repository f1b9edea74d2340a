"""The three patch formats of a PATCH request as pure functions: JSON patch, JSON merge patch, strategic merge patch.

All take the object as a freshly decoded dict that they own (it is changed in place) and the patch as the bytes of the request, so
that a retry after a conflict starts from both anew, and return the patched object. What is wrong with the patch is an ApiError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import orjson

from fastkube.api.errors import ApiError

Object = dict[str, Any]

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

_GO_NAMES: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}


def go_name(value: Any) -> str:
    """What Go's encoding/json calls the JSON type of `value`."""
    return _GO_NAMES.get(type(value), "null")


def decode(patch: bytes, want: type, go_type: str) -> Any:
    """The decoded patch, a `want`; ApiError 400 in the words of Go's decoder otherwise."""
    try:
        value = orjson.loads(patch)
    except orjson.JSONDecodeError as e:
        raise ApiError(400, "BadRequest", f"error decoding patch: {e.msg}") from None
    if not isinstance(value, want):
        raise ApiError(400, "BadRequest", f"error decoding patch: json: cannot unmarshal {go_name(value)} into Go value of type {go_type}")
    return value


def rejected() -> ApiError:
    """A patch that reads well but does not fit the object: 422 without a word on why, as upstream."""
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})


F = TypeVar("F", bound=Callable[..., Any])


def bounded(function: F) -> F:
    """Make nesting that is deeper than our recursion goes the client's mistake."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RecursionError:
            raise ApiError(400, "BadRequest", "error decoding patch: exceeded max depth") from None

    return guarded  # type: ignore[return-value]
