"""What etcd refuses, with the gRPC codes and texts that clients compare with (etcd api/v3rpc/rpctypes/error.go)."""

from __future__ import annotations

from fastkube.store import interface


class EtcdError(Exception):
    """`code` is a gRPC status code's name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class ListenError(Exception):
    """An address cannot be listened on, or a certificate cannot be read."""


def _error(code: str, text: str) -> EtcdError:
    return EtcdError(code, f"etcdserver: {text}")


EMPTY_KEY = _error("INVALID_ARGUMENT", "key is not provided")
KEY_NOT_FOUND = _error("INVALID_ARGUMENT", "key not found")
VALUE_PROVIDED = _error("INVALID_ARGUMENT", "value is provided")
LEASE_PROVIDED = _error("INVALID_ARGUMENT", "lease is provided")
TOO_MANY_OPS = _error("INVALID_ARGUMENT", "too many operations in txn request")
DUPLICATE_KEY = _error("INVALID_ARGUMENT", "duplicate key given in txn request")
INVALID_SORT = _error("INVALID_ARGUMENT", "invalid sort option")
COMPACTED = _error("OUT_OF_RANGE", "mvcc: required revision has been compacted")
FUTURE_REVISION = _error("OUT_OF_RANGE", "mvcc: required revision is a future revision")
NO_SPACE = _error("RESOURCE_EXHAUSTED", "mvcc: database space exceeded")
LEASE_NOT_FOUND = _error("NOT_FOUND", "requested lease not found")
LEASE_EXISTS = _error("FAILED_PRECONDITION", "lease already exists")
LEASE_TTL_TOO_LARGE = _error("OUT_OF_RANGE", "too large lease TTL")
REQUEST_TOO_LARGE = _error("INVALID_ARGUMENT", "request is too large")
TOO_MANY_REQUESTS = _error("RESOURCE_EXHAUSTED", "too many requests")
STOPPED = _error("UNAVAILABLE", "server stopped")
MEMBER_EXISTS = _error("FAILED_PRECONDITION", "member ID already exist")
PEER_URL_EXISTS = _error("FAILED_PRECONDITION", "Peer URLs already exists")
MEMBER_NOT_ENOUGH_STARTED = _error("FAILED_PRECONDITION", "re-configuration failed due to not enough started members")
MEMBER_BAD_URLS = _error("INVALID_ARGUMENT", "given member URLs are invalid")
MEMBER_NOT_FOUND = _error("NOT_FOUND", "member not found")
MEMBER_NOT_LEARNER = _error("FAILED_PRECONDITION", "can only promote a learner member")
BAD_LEADER_TRANSFEREE = _error("FAILED_PRECONDITION", "bad leader transferee")
UNHEALTHY = _error("UNAVAILABLE", "unhealthy cluster")
WRONG_DOWNGRADE_VERSION = _error("INVALID_ARGUMENT", "wrong downgrade target version format")
INVALID_DOWNGRADE_TARGET = _error("INVALID_ARGUMENT", "invalid downgrade target version")
NO_INFLIGHT_DOWNGRADE = _error("FAILED_PRECONDITION", "no inflight downgrade job")
ROOT_USER_NOT_EXIST = _error("FAILED_PRECONDITION", "root user does not exist")
ROOT_ROLE_NOT_EXIST = _error("FAILED_PRECONDITION", "root user does not have root role")
USER_EXISTS = _error("FAILED_PRECONDITION", "user name already exists")
USER_EMPTY = _error("INVALID_ARGUMENT", "user name is empty")
USER_NOT_FOUND = _error("FAILED_PRECONDITION", "user name not found")
ROLE_EXISTS = _error("FAILED_PRECONDITION", "role name already exists")
ROLE_NOT_FOUND = _error("FAILED_PRECONDITION", "role name not found")
ROLE_EMPTY = _error("INVALID_ARGUMENT", "role name is empty")
AUTH_FAILED = _error("INVALID_ARGUMENT", "authentication failed, invalid user ID or password")
PERMISSION_DENIED = _error("PERMISSION_DENIED", "permission denied")
PERMISSION_NOT_GIVEN = _error("INVALID_ARGUMENT", "permission not given")
ROLE_NOT_GRANTED = _error("FAILED_PRECONDITION", "role is not granted to the user")
PERMISSION_NOT_GRANTED = _error("FAILED_PRECONDITION", "permission is not granted to the role")
AUTH_NOT_ENABLED = _error("FAILED_PRECONDITION", "authentication is not enabled")
INVALID_AUTH_TOKEN = _error("UNAUTHENTICATED", "invalid auth token")
INVALID_AUTH_MANAGEMENT = _error("INVALID_ARGUMENT", "invalid auth management")

_OF_STORE: dict[type[interface.StoreError], EtcdError] = {
    interface.Compacted: COMPACTED,
    interface.FutureRevision: FUTURE_REVISION,
    interface.NoSpace: NO_SPACE,
    interface.Unavailable: STOPPED,
    interface.Overloaded: TOO_MANY_REQUESTS,
    interface.TooLarge: REQUEST_TOO_LARGE,
    interface.KeyNotFound: KEY_NOT_FOUND,
    interface.LeaseNotFound: LEASE_NOT_FOUND,
    interface.LeaseExists: LEASE_EXISTS,
    interface.DuplicateKey: DUPLICATE_KEY,
}


def of(error: interface.StoreError) -> EtcdError:
    """The store's refusal, as etcd says it."""
    return _OF_STORE.get(type(error)) or EtcdError("UNKNOWN", f"etcdserver: {error}")
