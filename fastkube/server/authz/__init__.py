"""Who may do what: upstream's authorizers in upstream's order (system:masters, Node, RBAC), default deny.

    authorizer = authz.build(Config(), reader)
    decision = authorizer.authorize(user, info)      # synchronous, about a microsecond when seen before
    if not decision.allowed: raise forbidden(user, info, decision.reason)

`info` is a RequestInfo; upstream sets its `name` also for a list, watch or deletecollection with the field selector metadata.name=NAME (so does
`routing` here), and `field_selector` is what the Node authorizer reads. `reviews` answers the SubjectAccessReview family, `escalation` holds
writers of roles and bindings to what they may do themselves.

Guarantee: a decision is never older than the visible revision: what it was derived from tells of its changes, and the caches are emptied by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fastkube.server.authz.decision import DENIED, Decision, forbidden, message
from fastkube.server.authz.node import NodeAuthorizer
from fastkube.server.authz.rbac import RbacAuthorizer
from fastkube.server.reader import Reader
from fastkube.server.request import RequestInfo, User

__all__ = ["Authorizer", "Config", "Decision", "build", "forbidden", "message"]

MASTERS = "system:masters"
MODES = ("Node", "RBAC", "AlwaysAllow", "AlwaysDeny")


@dataclass(slots=True)
class Config:
    modes: Sequence[str] = ("Node", "RBAC")  # --authorization-mode


class Mode(Protocol):
    def authorize(self, user: User, info: RequestInfo) -> Decision: ...


class _AlwaysAllow:
    def authorize(self, user: User, info: RequestInfo) -> Decision:
        return Decision(True)


class _AlwaysDeny:
    def authorize(self, user: User, info: RequestInfo) -> Decision:
        return Decision(False, "Everything is forbidden.")


class Authorizer:
    """The union: the first mode that allows or denies has its say; without one it is no, with all reasons."""

    def __init__(self, modes: Sequence[Mode], rbac: RbacAuthorizer) -> None:
        self._modes = tuple(modes)
        self.rbac = rbac  # also for rule reviews and escalation checks

    def authorize(self, user: User, info: RequestInfo) -> Decision:
        if MASTERS in user.groups:
            return _MASTER
        reasons = errors = ""
        for mode in self._modes:
            decision = mode.authorize(user, info)
            if decision.allowed or decision.denied:
                return decision
            if decision.reason:
                reasons += ("\n" if reasons else "") + decision.reason
            if decision.error:
                errors += (", " if errors else "") + decision.error
        return Decision(False, reasons, errors) if reasons or errors else DENIED


_MASTER = Decision(True)


def build(config: Config, reader: Reader) -> Authorizer:
    """Raises ValueError when a mode is unknown."""
    rbac = RbacAuthorizer(reader)
    modes: list[Mode] = []
    for name in config.modes:
        if name == "Node":
            modes.append(NodeAuthorizer(reader))
        elif name == "RBAC":
            modes.append(rbac)
        elif name in ("AlwaysAllow", "AlwaysDeny"):
            modes.append(_AlwaysAllow() if name == "AlwaysAllow" else _AlwaysDeny())
        else:
            raise ValueError(f'authorization-mode "{name}" is not a valid mode: one of {", ".join(MODES)}')
    return Authorizer(modes, rbac)
