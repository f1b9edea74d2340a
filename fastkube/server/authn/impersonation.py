"""Acting as somebody else (Impersonate-* headers), for whom RBAC allows the verb `impersonate` on what is asked.

Guarantees: without the headers it costs one dictionary look-up; each name, group, uid and extra value is authorized on its own, before anything
is done in that name.
"""

from __future__ import annotations

from typing import Protocol

from fastkube.api.errors import ApiError, bad_request
from fastkube.server.authn.authenticator import AUTHENTICATED, UNAUTHENTICATED
from fastkube.server.authn.certificates import extras, split
from fastkube.server.authn.serviceaccounts import GROUP, USER_PREFIX
from fastkube.server.authz.decision import Decision, forbidden
from fastkube.server.request import RequestInfo, User

_USER, _GROUP, _UID, _EXTRA = "impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-"
AUTHENTICATION = "authentication.k8s.io"


class Authorizer(Protocol):
    def authorize(self, user: User, info: RequestInfo) -> Decision: ...


def apply(headers: dict[str, str], user: User, authorizer: Authorizer) -> User:
    """The user that the request is carried out as. ApiError 403 (not allowed) or 400 (groups without a user)."""
    if _USER not in headers:
        if _GROUP in headers or _UID in headers or any(name.startswith(_EXTRA) for name in headers):
            raise bad_request("requested [impersonation] without impersonating a user name")
        return user
    name, groups, uid, extra = headers[_USER].strip(), split(headers.get(_GROUP, "")), headers.get(_UID, ""), extras(headers, _EXTRA)
    if not name:
        raise bad_request("requested impersonation without a user name")
    account = _service_account(name)
    if account:
        _ask(authorizer, user, _info("", "serviceaccounts", account[1], namespace=account[0]))
    else:
        _ask(authorizer, user, _info("", "users", name))
    for group in groups:
        _ask(authorizer, user, _info("", "groups", group))
    if uid:
        _ask(authorizer, user, _info(AUTHENTICATION, "uids", uid))
    for key, values in extra.items():
        for value in values:
            _ask(authorizer, user, _info(AUTHENTICATION, "userextras", value, subresource=key))
    if account and not groups:
        groups = (GROUP, f"{GROUP}:{account[0]}")
    if name == "system:anonymous":
        groups = groups if UNAUTHENTICATED in groups else (*groups, UNAUTHENTICATED)
    elif AUTHENTICATED not in groups and UNAUTHENTICATED not in groups:
        groups = (*groups, AUTHENTICATED)
    return User(name, groups, uid, extra)


def _service_account(name: str) -> tuple[str, str] | None:
    namespace, colon, account = name.removeprefix(USER_PREFIX).partition(":")
    return (namespace, account) if name.startswith(USER_PREFIX) and colon and namespace and account and ":" not in account else None


def _info(group: str, resource: str, name: str, *, namespace: str = "", subresource: str = "") -> RequestInfo:
    return RequestInfo("impersonate", "", True, group, "v1", resource, subresource, namespace, name)


def _ask(authorizer: Authorizer, user: User, info: RequestInfo) -> None:
    decision = authorizer.authorize(user, info)
    if not decision.allowed:
        error: ApiError = forbidden(user, info, decision.reason)
        raise error
