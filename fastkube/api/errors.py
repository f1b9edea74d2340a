"""Errors as the API speaks them: metav1.Status and field.Error (k8s.io/apimachinery api/errors and util/validation/field).

Raised by the server's pipeline, turned into a Status answer at its edge, and raised again by the client on the other side: one
class on both ends of the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# field.ErrorType -> the words that open its message
_WORDS = {
    "FieldValueNotFound": "Not found",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
    "InternalError": "Internal error",
    "FieldValueTypeInvalid": "Invalid value",
}


@dataclass(slots=True)
class FieldError:
    """One cause: `field` is the path (`spec.containers[0].name`), `message` everything after it, upstream's words."""

    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def _quoted(value: Any) -> str:
    """A value as Go prints it in a field.Error: strings quoted, composites as JSON."""
    import orjson

    if isinstance(value, str):
        return orjson.dumps(value).decode()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    return orjson.dumps(value).decode().replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, f"Invalid value: {_quoted(value)}: {detail}")


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, "Required value" + (f": {detail}" if detail else ""))


def forbidden_field(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, "Forbidden" + (f": {detail}" if detail else ""))


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {_quoted(value)}")


def not_found_field(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", field, f"Not found: {_quoted(value)}")


def not_supported(field: str, value: Any, supported: Sequence[str]) -> FieldError:
    options = ", ".join(_quoted(s) for s in supported)
    return FieldError("FieldValueNotSupported", field, f"Unsupported value: {_quoted(value)}" + (f": supported values: {options}" if supported else ""))


def too_long(field: str, limit: int) -> FieldError:
    return FieldError("FieldValueTooLong", field, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, actual: int, limit: int) -> FieldError:
    return FieldError("FieldValueTooMany", field, f"Too many: {actual}: must have at most {limit} items")


class ApiError(Exception):
    """An answer that is a Status of failure."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = tuple(headers)

    def status(self) -> dict[str, Any]:
        """The metav1.Status object."""
        status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status

    @classmethod
    def from_status(cls, status: dict[str, Any], code: int = 500) -> ApiError:
        """The error that an answer's Status object stands for."""
        return cls(status.get("code") or code, status.get("reason") or "", status.get("message") or "", status.get("details"))

    @property
    def retry_after(self) -> int:
        """Seconds the server asks to wait; 0 when it does not say."""
        return int((self.details or {}).get("retryAfterSeconds") or 0)


def _qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def _details(name: str, group: str, kind: str, **more: Any) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    details.update(more)
    return details


def not_found(resource: str, group: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{_qualified(resource, group)} "{name}" not found', _details(name, group, resource))


def already_exists(resource: str, group: str, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{_qualified(resource, group)} "{name}" already exists', _details(name, group, resource))


def conflict(resource: str, group: str, name: str, why: str) -> ApiError:
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {_qualified(resource, group)} "{name}": {why}', _details(name, group, resource))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422: all of an object's field errors at once."""
    told = list(dict.fromkeys(str(e) for e in errors))
    text = told[0] if len(told) == 1 else "[" + ", ".join(told) + "]"
    causes = [{"reason": e.reason, "message": e.message, "field": e.field} for e in errors]
    return ApiError(422, "Invalid", f'{_qualified(kind, group)} "{name}" is invalid: {text}', _details(name, group, kind, causes=causes))


def forbidden(resource: str, group: str, name: str, why: str) -> ApiError:
    subject = f'{_qualified(resource, group)} "{name}" is forbidden' if name else f"{_qualified(resource, group)} is forbidden"
    return ApiError(403, "Forbidden", f"{subject}: {why}", _details(name, group, resource))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_supported(resource: str, group: str, verb: str) -> ApiError:
    return ApiError(405, "MethodNotAllowed", f'{verb} is not supported on resources of kind "{_qualified(resource, group)}"', _details("", group, resource))


def gone(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def too_large(message: str = "Request entity too large: limit is 3145728") -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", message)


def not_acceptable(message: str) -> ApiError:
    return ApiError(406, "NotAcceptable", message)


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def too_many_requests(message: str, seconds: int) -> ApiError:
    return ApiError(429, "TooManyRequests", message, {"retryAfterSeconds": seconds}, [("Retry-After", str(seconds))])


def server_timeout(resource: str, group: str, operation: str, seconds: int) -> ApiError:
    return ApiError(
        504,
        "ServerTimeout",
        f"The {operation} operation against {_qualified(resource, group)} could not be completed at this time, please try again.",
        _details("", group, resource, retryAfterSeconds=seconds),
    )


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {message}", {"causes": [{"message": message}]})
