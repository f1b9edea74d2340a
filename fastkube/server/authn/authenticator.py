"""The union of all ways to say who one is, and its cache.

Laws:
1. The first method that knows the request wins; a credential that was shown and is wrong is a 401, never anonymous.
2. `system:authenticated` is added to every user but the anonymous one.
3. A cached answer lives until the credential expires or a `Dependency` of it changes; the cache is bounded (oldest first out).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from fastkube.api.errors import unauthorized
from fastkube.runtime import clock
from fastkube.server.authn.certificates import Certificates
from fastkube.server.request import ANONYMOUS, User

TOKENS_MAX = 16384
TOKEN_BYTES_MAX = 16384  # longer ones are not looked at
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."

Dependency = tuple[str, str, str]  # (plural, namespace, name) of a stored object


class Verdict(NamedTuple):
    """What a token method says of a token it accepts."""

    user: User
    audiences: tuple[str, ...] = ()  # those of the asked ones that the token is for; empty: the method knows no audiences
    expires: float = float("inf")  # wall seconds
    depends: tuple[Dependency, ...] = ()


class InvalidToken(Exception):
    """The method knows this kind of token, and it is not good; the text is for TokenReview and the log."""


class TokenMethod(Protocol):
    def authenticate(self, token: str, audiences: tuple[str, ...]) -> Verdict | None:
        """None: not this method's kind of token. Raises InvalidToken."""
        ...

    def watch(self, changed: Any) -> None:
        """Call `changed(dependency)` whenever a stored object that a verdict may depend on changes in what matters to verdicts."""
        ...


def authenticated(user: User) -> User:
    """`user` in group system:authenticated."""
    if AUTHENTICATED in user.groups or UNAUTHENTICATED in user.groups:
        return user
    return User(user.name, (*user.groups, AUTHENTICATED), user.uid, user.extra)


class Authenticator:
    def __init__(
        self,
        *,
        certificates: Certificates,
        static: TokenMethod,
        service_accounts: TokenMethod | None,
        bootstrap: TokenMethod | None,
        audiences: tuple[str, ...] = (),
        anonymous: bool = True,
    ) -> None:
        self.audiences = audiences
        self._certificates = certificates
        self._methods = [m for m in (static, service_accounts, bootstrap) if m is not None]
        self._anonymous = anonymous
        self._tokens: dict[str, Verdict] = {}  # by the whole Authorization header
        self._dependents: dict[Dependency, set[str]] = {}
        for method in self._methods:
            method.watch(self._changed)

    def authenticate(self, request: Any) -> User:
        """The user of a `fastkube.http.message.Request`. ApiError 401."""
        headers = request.headers
        der = request.peer_certificate
        if der is not None:
            user = self._certificates.authenticate(der, headers)
            if user is not None:
                return user
        header = headers.get("authorization")
        if header is None:
            return self._without_header(headers, der is not None)
        verdict = self._tokens.get(header)
        if verdict is not None:
            if verdict.expires > clock.now():
                return verdict.user
            self._forget(header)
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return self._without_header(headers, der is not None)
        return self._verify(header, token)

    def review(self, token: str, audiences: Iterable[str] = ()) -> Verdict | None:
        """What TokenReview asks: None when no method knows the token. Raises InvalidToken."""
        asked = tuple(audiences) or self.audiences
        if len(token) > TOKEN_BYTES_MAX:
            return None
        failure: InvalidToken | None = None
        for method in self._methods:
            try:
                verdict = method.authenticate(token, asked)
            except InvalidToken as e:
                failure = e
                continue
            if verdict is not None:
                return verdict._replace(user=authenticated(verdict.user))
        if failure:
            raise failure
        return None

    def _without_header(self, headers: dict[str, str], certificate: bool) -> User:
        protocols = headers.get("sec-websocket-protocol")
        if protocols and WEBSOCKET_BEARER in protocols:
            return self._websocket(protocols)
        if certificate or not self._anonymous:
            raise unauthorized()
        return ANONYMOUS

    def _websocket(self, protocols: str) -> User:
        """Browsers cannot set Authorization: the token comes as a sub-protocol (beside a real one)."""
        offered = [p.strip() for p in protocols.split(",")]
        tokens = [p[len(WEBSOCKET_BEARER) :] for p in offered if p.startswith(WEBSOCKET_BEARER)]
        if len(tokens) != 1 or len(offered) < 2:
            raise unauthorized()
        try:
            token = base64.b64decode(tokens[0] + "=" * (-len(tokens[0]) % 4), b"-_", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise unauthorized() from None
        header = f"Bearer {token}"
        verdict = self._tokens.get(header)
        return verdict.user if verdict is not None and verdict.expires > clock.now() else self._verify(header, token)

    def _verify(self, header: str, token: str) -> User:
        try:
            verdict = self.review(token)
        except InvalidToken:
            verdict = None
        if verdict is None:
            raise unauthorized()
        while len(self._tokens) >= TOKENS_MAX:
            self._forget(next(iter(self._tokens)))
        self._tokens[header] = verdict
        for dependency in verdict.depends:
            self._dependents.setdefault(dependency, set()).add(header)
        return verdict.user

    def _forget(self, header: str) -> None:
        verdict = self._tokens.pop(header, None)
        for dependency in verdict.depends if verdict else ():
            headers = self._dependents.get(dependency)
            if headers is not None:
                headers.discard(header)
                if not headers:
                    del self._dependents[dependency]

    def _changed(self, dependency: Dependency) -> None:
        headers = self._dependents.get(dependency)
        if headers:
            for header in tuple(headers):
                self._forget(header)
