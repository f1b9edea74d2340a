"""What users may ask about identities: TokenReview, SelfSubjectReview, TokenRequest. Created, never stored: the object comes back with its status.

`answer(plural, user, namespace, name, obj)` fills `obj` in place and returns it; "serviceaccounts/token" is the TokenRequest of account `name`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkube.api import errors, resources
from fastkube.api.errors import ApiError, FieldError
from fastkube.runtime import clock
from fastkube.server.authn.authenticator import Authenticator, InvalidToken
from fastkube.server.authn.serviceaccounts import BOUND, SERVICE_ACCOUNTS, Issuer
from fastkube.server.reader import Object, Reader
from fastkube.server.request import User

GROUP = "authentication.k8s.io"
EXPIRATION_SECONDS_DEFAULT = 3600
EXPIRATION_SECONDS_MIN = 600
EXPIRATION_SECONDS_MAX = 2**32
NODES = resources.parse("v1/nodes")


class Reviews:
    def __init__(self, reader: Reader, authenticator: Authenticator, issuer: Issuer | None) -> None:
        self._reader, self._authenticator, self._issuer = reader, authenticator, issuer
        self._answers: dict[str, Callable[[User, str, str, Object], Object]] = {
            "tokenreviews": self._token_review,
            "selfsubjectreviews": self._self_subject_review,
            "serviceaccounts/token": self._token_request,
        }

    def answer(self, plural: str, user: User, namespace: str, name: str, obj: Object) -> Object:
        """Raises ApiError; KeyError when `plural` is none of these."""
        return self._answers[plural](user, namespace, name, obj)

    def _token_review(self, user: User, namespace: str, name: str, obj: Object) -> Object:
        spec = obj.get("spec") or {}
        if not spec.get("token"):
            raise errors.bad_request("token is required for TokenReview in authentication")
        audiences = tuple(spec.get("audiences") or ())
        try:
            verdict = self._authenticator.review(spec["token"], audiences)
        except InvalidToken as e:
            obj["status"] = {"user": {}, "error": f"[invalid bearer token, {e}]"}
            return obj
        if verdict is None or (audiences and not set(verdict.audiences) & set(audiences)):
            obj["status"] = {"user": {}, "error": "invalid bearer token"}
            return obj
        status: Object = {"authenticated": True, "user": user_info(verdict.user)}
        if verdict.audiences:
            status["audiences"] = list(verdict.audiences)
        obj["status"] = status
        return obj

    def _self_subject_review(self, user: User, namespace: str, name: str, obj: Object) -> Object:
        obj["metadata"] = {"creationTimestamp": clock.rfc3339()}
        obj["status"] = {"userInfo": user_info(user)}
        return obj

    def _token_request(self, user: User, namespace: str, name: str, obj: Object) -> Object:
        if self._issuer is None:
            raise errors.not_found("serviceaccounts/token", "", name)
        account = self._reader.get(SERVICE_ACCOUNTS, namespace, name)
        if account is None:
            raise errors.not_found("serviceaccounts", "", name)
        meta: Object = obj.get("metadata") or {}
        if meta.get("name") not in (None, "", name):
            raise errors.bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
        if meta.get("namespace") not in (None, "", namespace):
            raise errors.bad_request("the namespace of the provided object does not match the namespace sent on the request")
        spec: Object = obj.get("spec") or {}
        seconds = _seconds(spec)
        bound = self._bound_object(spec.get("boundObjectRef"), namespace, name)
        node = None
        if bound is not None and bound["kind"] == "Pod" and bound["spec"].get("nodeName"):
            node = self._reader.get(NODES, None, bound["spec"]["nodeName"])
        audiences = spec.get("audiences") or list(self._issuer.audiences)
        token, expires = self._issuer.sign(account, audiences, seconds, bound, node)
        obj["metadata"] = {**meta, "name": name, "namespace": namespace, "creationTimestamp": clock.rfc3339()}
        obj["spec"] = {**spec, "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec.get("boundObjectRef")}
        obj["status"] = {"token": token, "expirationTimestamp": clock.rfc3339(expires)}
        return obj

    def _bound_object(self, reference: Object | None, namespace: str, account: str) -> Object | None:
        """The object that a token is to be bound to, checked. It is given its kind (stored objects may lack it)."""
        if not reference:
            return None
        version, kind, name = reference.get("apiVersion") or "", reference.get("kind") or "", reference.get("name") or ""
        if kind not in BOUND or version != "v1":
            group, _, bare = version.rpartition("/")
            raise errors.bad_request(f"cannot bind token to object of type {group}/{bare}, Kind={kind}")
        resource = BOUND[kind]
        found = self._reader.get(resource, namespace if resource.namespaced else None, name)
        if found is None:
            raise errors.not_found(resource.plural, "", name)
        if kind == "Pod" and (found["spec"].get("serviceAccountName") or "default") != account:
            raise errors.bad_request(f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.')
        uid = reference.get("uid")
        if uid and uid != found["metadata"]["uid"]:
            why = f"the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            raise errors.conflict(kind, "", name, why)
        return {**found, "kind": kind}


def _seconds(spec: Object) -> int:
    seconds = spec.get("expirationSeconds")
    if seconds is None:
        return EXPIRATION_SECONDS_DEFAULT
    problem: FieldError | None = None
    if seconds < EXPIRATION_SECONDS_MIN:
        problem = errors.invalid_value("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
    elif seconds > EXPIRATION_SECONDS_MAX:
        problem = errors.invalid_value("spec.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds")
    if problem:
        raise _invalid(problem)
    return seconds


def _invalid(problem: FieldError) -> ApiError:
    return errors.invalid("TokenRequest", GROUP, "", [problem])


def user_info(user: User) -> dict[str, Any]:
    """authentication.k8s.io/v1 UserInfo."""
    info: dict[str, Any] = {}
    if user.name:
        info["username"] = user.name
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in sorted(user.extra.items())}
    return info
