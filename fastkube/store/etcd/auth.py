"""Auth: users, roles, permissions on key ranges, tokens.

Once enabled, a request needs a token (or a client certificate's common name, where certificates authenticate); what it may touch is the union of the
ranges of its user's roles; root may everything. Passwords are kept as scrypt hashes; simple tokens are random, in memory, and end with their user's
password or five minutes after the last use.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jwt

from fastkube.runtime import clock
from fastkube.store.etcd import errors, messages
from fastkube.store.etcd.member import Member
from fastkube.store.interface import LeaseNotFound
from fastkube.store.segments import in_thread

READ, WRITE = 0, 1
READWRITE = 2
ROOT = "root"
TOKENS_MAX = 100_000
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}
INFINITY: tuple[int, bytes] = (1, b"")  # above every key; a key is (0, key)

Bound = tuple[int, bytes]


class Caller(Protocol):
    """Who sends a request, as the transport knows it."""

    def token(self) -> str: ...

    def common_name(self) -> str:
        """Of the verified client certificate; "" without one."""
        ...


class Tokens(Protocol):
    def issue(self, user: str, revision: int) -> str: ...

    def user(self, token: str, revision: int) -> str:
        """Raises EtcdError for a token that is not, or no longer, good."""
        ...

    def forget(self, user: str | None) -> None:
        """End the tokens of a user, of all for None."""
        ...


class SimpleTokens:
    def __init__(self, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._tokens: dict[str, tuple[str, float]] = {}  # -> (user, deadline); the longest unused in front

    def issue(self, user: str, revision: int) -> str:
        now = clock.monotonic()
        while self._tokens and (len(self._tokens) >= TOKENS_MAX or next(iter(self._tokens.values()))[1] <= now):
            del self._tokens[next(iter(self._tokens))]
        token = f"{secrets.token_urlsafe(24)}.{revision}"
        self._tokens[token] = (user, now + self._ttl)
        return token

    def user(self, token: str, revision: int) -> str:
        found = self._tokens.pop(token, None)
        now = clock.monotonic()
        if found is None or found[1] <= now:
            raise errors.INVALID_AUTH_TOKEN
        self._tokens[token] = (found[0], now + self._ttl)
        return found[0]

    def forget(self, user: str | None) -> None:
        self._tokens = {} if user is None else {token: entry for token, entry in self._tokens.items() if entry[0] != user}


class JwtTokens:
    """etcd's `--auth-token jwt,pub-key=...,priv-key=...,sign-method=...,ttl=...`. A token made before the last change of users or roles is refused."""

    def __init__(self, options: Mapping[str, str], ttl_seconds: float) -> None:
        """Raises ValueError, OSError."""
        self._method = options.get("sign-method", "")
        if not self._method:
            raise ValueError("--auth-token jwt: sign-method is required")
        symmetric = self._method.startswith("HS")
        private, public = options.get("priv-key", ""), options.get("pub-key", "")
        self._sign = Path(private).read_bytes() if private else None
        self._verify = self._sign if symmetric or not public else Path(public).read_bytes()
        if self._verify is None:
            raise ValueError("--auth-token jwt: pub-key or priv-key is required")
        self._ttl = ttl_seconds

    def issue(self, user: str, revision: int) -> str:
        if self._sign is None:
            raise errors.AUTH_FAILED
        return jwt.encode({"username": user, "revision": revision, "exp": int(clock.now() + self._ttl)}, self._sign, algorithm=self._method)

    def user(self, token: str, revision: int) -> str:
        assert self._verify is not None
        try:
            claims = jwt.decode(token, self._verify, algorithms=[self._method])
            user, made_at = str(claims["username"]), int(claims["revision"])
        except (jwt.InvalidTokenError, KeyError, ValueError, TypeError):
            raise errors.INVALID_AUTH_TOKEN from None
        if made_at < revision:
            raise errors.EtcdError("INVALID_ARGUMENT", "etcdserver: revision of auth store is old")
        return user

    def forget(self, user: str | None) -> None:
        """They end by themselves, and with the next change of users or roles."""


def tokens_of(text: str, ttl_seconds: float) -> Tokens:
    """From etcd's --auth-token. Raises ValueError, OSError."""
    kind, *parts = text.split(",")
    if kind == "simple" and not parts:
        return SimpleTokens(ttl_seconds)
    if kind == "jwt" and all("=" in part for part in parts):
        options = dict(part.split("=", 1) for part in parts)
        ttl = options.get("ttl", "")
        return JwtTokens(options, _go_seconds(ttl) if ttl else ttl_seconds)
    raise ValueError(f'--auth-token "{text}" is neither simple nor jwt,OPTION=VALUE,...')


def _go_seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    if text[-1:] not in units:
        raise ValueError(f'"{text}" is no duration')
    return float(text[:-1]) * units[text[-1]]


class Ranges:
    """A union of key ranges: what a user may read, or write."""

    def __init__(self, ranges: Iterable[tuple[bytes, bytes]]) -> None:
        self._starts: list[Bound] = []
        self._ends: list[Bound] = []
        for start, end in sorted(map(_bounds, ranges)):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def cover(self, key: bytes, range_end: bytes) -> bool:
        start, end = _bounds((key, range_end))
        at = bisect.bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]


def _bounds(keys: tuple[bytes, bytes]) -> tuple[Bound, Bound]:
    key, range_end = keys
    if not range_end:
        return (0, key), (0, key + b"\0")
    return (0, key), INFINITY if range_end == b"\0" else (0, range_end)


class Auth:
    """The state is in Member.state.auth: enabled, revision, users (password hash, roles), roles (permissions as [type, key, range_end] in hexadecimal)."""

    def __init__(self, member: Member) -> None:
        """Raises ValueError, OSError for a bad --auth-token."""
        self._member = member
        self._state = member.state.auth
        for name, value in (("enabled", False), ("revision", 1), ("users", {}), ("roles", {})):
            self._state.setdefault(name, value)
        self.enabled: bool = self._state["enabled"]
        self._tokens = tokens_of(member.options.auth_token, member.options.auth_token_ttl_seconds)
        self._ranges: dict[tuple[str, int], Ranges] = {}  # (user, READ or WRITE) ->, made when asked for
        self._decoy = _hash(secrets.token_urlsafe())

    # What the services ask

    def user(self, caller: Caller) -> str:
        """Who it is. Raises EtcdError when nobody says so."""
        token = caller.token()
        if token:
            return self._tokens.user(token, self._state["revision"])
        name = caller.common_name() if self._member.options.client_cert_auth else ""
        if not name:
            raise errors.USER_EMPTY
        return name

    def _roles(self, user: str) -> list[str]:
        try:
            return self._state["users"][user]["roles"]
        except KeyError:
            raise errors.PERMISSION_DENIED from None

    def check(self, caller: Caller, key: bytes, range_end: bytes, kind: int) -> None:
        """May it read or write the range? Raises EtcdError when not. Once per request and range, and only while auth is enabled."""
        user = self.user(caller)
        if ROOT not in self._roles(user) and not self._allowed(user, kind).cover(key, range_end):
            raise errors.PERMISSION_DENIED

    def check_lease(self, caller: Caller, lease: int) -> None:
        """May it delete every key of the lease?"""
        try:
            keys = self._member.store.lease_status(lease).keys
        except LeaseNotFound:
            return
        for key in keys:
            self.check(caller, key, b"", WRITE)

    def check_lease_read(self, caller: Caller, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.check(caller, key, b"", READ)

    def check_admin(self, caller: Caller) -> None:
        if self.enabled and ROOT not in self._roles(self.user(caller)):
            raise errors.PERMISSION_DENIED

    def _allowed(self, user: str, kind: int) -> Ranges:
        found = self._ranges.get((user, kind))
        if found is None:
            permissions = (p for role in self._roles(user) for p in self._state["roles"].get(role, ()))
            found = self._ranges[user, kind] = Ranges((bytes.fromhex(k), bytes.fromhex(e)) for t, k, e in permissions if t in (kind, READWRITE))
        return found

    async def _changed(self) -> None:
        self._state["revision"] += 1
        self._ranges.clear()
        await self._member.save()

    # The service

    async def AuthEnable(self, r: Any, caller: Caller) -> Any:
        if not self.enabled:
            root = self._state["users"].get(ROOT)
            if root is None:
                raise errors.ROOT_USER_NOT_EXIST
            if ROOT not in root["roles"]:
                raise errors.ROOT_ROLE_NOT_EXIST
            self.enabled = self._state["enabled"] = True
            self._tokens.forget(None)
            await self._member.save()
        return self._member.answer(messages.AuthEnableResponse)

    async def AuthDisable(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if self.enabled:
            self.enabled = self._state["enabled"] = False
            self._tokens.forget(None)
            await self._changed()
        return self._member.answer(messages.AuthDisableResponse)

    async def AuthStatus(self, r: Any, caller: Caller) -> Any:
        return self._member.answer(messages.AuthStatusResponse, enabled=self.enabled, authRevision=self._state["revision"])

    async def Authenticate(self, r: Any, caller: Caller) -> Any:
        if not self.enabled:
            raise errors.AUTH_NOT_ENABLED
        user = self._state["users"].get(r.name)
        known = user is not None and bool(user["password"])
        good = await in_thread(_verify, r.password, user["password"] if known else self._decoy)  # as long for a user that is not
        if not (known and good and self._state["users"].get(r.name) == user):
            raise errors.AUTH_FAILED
        return self._member.answer(messages.AuthenticateResponse, token=self._tokens.issue(r.name, self._state["revision"]))

    def _user(self, name: str) -> Any:
        user = self._state["users"].get(name)
        if user is None:
            raise errors.USER_NOT_FOUND
        return user

    def _role(self, name: str) -> Any:
        role = self._state["roles"].get(name)
        if role is None:
            raise errors.ROLE_NOT_FOUND
        return role

    async def UserAdd(self, r: Any, caller: Caller) -> Any:
        if not r.name:
            raise errors.USER_EMPTY
        self.check_admin(caller)
        password = "" if r.options.no_password else await in_thread(_hash, r.password)
        if r.name in self._state["users"]:
            raise errors.USER_EXISTS
        self._state["users"][r.name] = {"password": password, "roles": []}
        await self._changed()
        return self._member.answer(messages.AuthUserAddResponse)

    async def UserGet(self, r: Any, caller: Caller) -> Any:
        if not (self.enabled and self.user(caller) == r.name):
            self.check_admin(caller)
        return self._member.answer(messages.AuthUserGetResponse, roles=self._user(r.name)["roles"])

    async def UserList(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        return self._member.answer(messages.AuthUserListResponse, users=sorted(self._state["users"]))

    async def UserDelete(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if self.enabled and r.name == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT
        self._user(r.name)
        del self._state["users"][r.name]
        self._tokens.forget(r.name)
        await self._changed()
        return self._member.answer(messages.AuthUserDeleteResponse)

    async def UserChangePassword(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        self._user(r.name)
        password = await in_thread(_hash, r.password)
        self._user(r.name)["password"] = password
        self._tokens.forget(r.name)
        await self._changed()
        return self._member.answer(messages.AuthUserChangePasswordResponse)

    async def UserGrantRole(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        user = self._user(r.user)
        if r.role != ROOT:
            self._role(r.role)
        if r.role not in user["roles"]:
            user["roles"] = sorted([*user["roles"], r.role])
            await self._changed()
        return self._member.answer(messages.AuthUserGrantRoleResponse)

    async def UserRevokeRole(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if self.enabled and r.name == ROOT and r.role == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT
        user = self._user(r.name)
        if r.role not in user["roles"]:
            raise errors.ROLE_NOT_GRANTED
        user["roles"] = [role for role in user["roles"] if role != r.role]
        await self._changed()
        return self._member.answer(messages.AuthUserRevokeRoleResponse)

    async def RoleAdd(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if not r.name:
            raise errors.ROLE_EMPTY
        if r.name in self._state["roles"]:
            raise errors.ROLE_EXISTS
        self._state["roles"][r.name] = []
        await self._changed()
        return self._member.answer(messages.AuthRoleAddResponse)

    async def RoleGet(self, r: Any, caller: Caller) -> Any:
        if not (self.enabled and r.role in self._roles(self.user(caller))):
            self.check_admin(caller)
        permissions = [messages.Permission(permType=t, key=bytes.fromhex(k), range_end=bytes.fromhex(e)) for t, k, e in self._role(r.role)]
        return self._member.answer(messages.AuthRoleGetResponse, perm=permissions)

    async def RoleList(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        return self._member.answer(messages.AuthRoleListResponse, roles=sorted(self._state["roles"]))

    async def RoleDelete(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if self.enabled and r.role == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT
        self._role(r.role)
        del self._state["roles"][r.role]
        for user in self._state["users"].values():
            user["roles"] = [role for role in user["roles"] if role != r.role]
        await self._changed()
        return self._member.answer(messages.AuthRoleDeleteResponse)

    async def RoleGrantPermission(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        if not r.HasField("perm"):
            raise errors.PERMISSION_NOT_GIVEN
        role = self._role(r.name)
        key, end = r.perm.key.hex(), r.perm.range_end.hex()
        role[:] = sorted([p for p in role if p[1:] != [key, end]] + [[int(r.perm.permType), key, end]], key=lambda p: p[1])
        await self._changed()
        return self._member.answer(messages.AuthRoleGrantPermissionResponse)

    async def RoleRevokePermission(self, r: Any, caller: Caller) -> Any:
        self.check_admin(caller)
        role = self._role(r.role)
        kept = [p for p in role if p[1:] != [r.key.hex(), r.range_end.hex()]]
        if len(kept) == len(role):
            raise errors.PERMISSION_NOT_GRANTED
        role[:] = kept
        await self._changed()
        return self._member.answer(messages.AuthRoleRevokePermissionResponse)


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **SCRYPT).hex()}"


def _verify(password: str, stored: str) -> bool:
    if not stored.startswith("scrypt$"):
        return False  # a real etcd's, restored: to be set anew
    _, salt, digest = stored.split("$")
    return hmac.compare_digest(hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **SCRYPT).hex(), digest)
