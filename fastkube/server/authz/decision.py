"""What an authorizer answers, and the refusal a client reads."""

from __future__ import annotations

from typing import NamedTuple

from fastkube.api.errors import ApiError
from fastkube.api.errors import forbidden as forbidden_object
from fastkube.server.request import RequestInfo, User


class Decision(NamedTuple):
    """`allowed`; `reason` says why for reviews and refusals; `error` what kept the authorizer from looking at everything; `denied`: not only no opinion."""

    allowed: bool
    reason: str = ""
    error: str = ""
    denied: bool = False


DENIED = Decision(False)


def forbidden(user: User, info: RequestInfo, reason: str = "") -> ApiError:
    """403 with upstream's words (k8s.io/apiserver/pkg/endpoints/handlers/responsewriters)."""
    text = message(user, info) + (f": {reason}" if reason else "")
    if info.is_resource:
        return forbidden_object(info.resource, info.group, info.name, text)
    return ApiError(403, "Forbidden", f"forbidden: {text}", {})


def message(user: User, info: RequestInfo) -> str:
    if not info.is_resource:
        return f'User "{user.name}" cannot {info.verb} path "{info.path}"'
    resource = f"{info.resource}/{info.subresource}" if info.subresource else info.resource
    where = f'in the namespace "{info.namespace}"' if info.namespace else "at the cluster scope"
    return f'User "{user.name}" cannot {info.verb} resource "{resource}" in API group "{info.group}" {where}'
