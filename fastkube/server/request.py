"""What the pipeline knows of a request: who asks (User) and what for (RequestInfo, the authorizer's attributes)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastkube.api.resources import Resource


@dataclass(frozen=True, slots=True)
class User:
    """user.Info of k8s.io/apiserver. `groups` ends with system:authenticated (or system:unauthenticated for anonymous)."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False, compare=False)


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(slots=True)
class RequestInfo:
    """What a request's method and path say (k8s.io/apiserver/pkg/endpoints/request.RequestInfo).

    `verb` is the API's: get, list, watch, create, update, patch, delete, deletecollection for resources (connect-style subresources use
    the HTTP method's: get or create); the lower-case HTTP method for non-resource paths.
    """

    verb: str
    path: str
    is_resource: bool = False
    group: str = ""
    version: str = ""
    resource: str = ""  # plural
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    tail: str = ""  # for proxy subresources: the path behind
    spec: Resource | None = None  # None when nothing is served under this path
    field_selector: str = ""
    label_selector: str = ""


@dataclass(slots=True)
class AdmissionAttributes:
    """What an admission plugin sees of a write (admission.Attributes). `obj` may be changed in place by mutating plugins.

    `obj` is None for deletions, `old` is None for creations. `resource` is the requested one; `options` the decoded query options
    (dryRun, fieldManager, gracePeriodSeconds, propagationPolicy ...).
    """

    operation: str  # CREATE, UPDATE, DELETE, CONNECT
    resource: Resource
    subresource: str
    namespace: str
    name: str
    obj: dict[str, Any] | None
    old: dict[str, Any] | None
    user: User
    options: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)  # audit annotations
    rollbacks: list[Callable[[], None]] = field(default_factory=list)  # give back what plugins and allocators reserved for this write

    def undo(self) -> None:
        """Call once when the write failed after admission had begun (and for a dry run): reservations go back."""
        while self.rollbacks:
            self.rollbacks.pop()()
