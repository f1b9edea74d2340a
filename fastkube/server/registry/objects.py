"""Creating, updating and deleting: the one registry that all resources share (k8s.io/apiserver/pkg/registry/generic/registry.Store).

Laws:
- What differs from kind to kind is in its rules (api.kinds.base.Kind); this module only says when they are asked, in upstream's order.
- A write holds to what it has read: the store refuses it when the object has changed since, and it is made again from the new state (an update
  that names a resourceVersion is refused with 409 instead).
- An object whose deletion has begun goes in the same write that takes its last finalizer.
- A write that changes nothing is none: the resourceVersion stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastkube.api import codec, errors, managedfields, meta
from fastkube.api.errors import ApiError, FieldError
from fastkube.runtime import clock, entropy
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.expiry import Expiry
from fastkube.server.request import AdmissionAttributes, User
from fastkube.store.interface import CompareFailed, NoSpace, Overloaded, Store, StoreError, Unavailable

CONFLICT_RETRIES_MAX = 100  # of a write that names no resourceVersion, against others that are quicker
NAME_RETRIES_MAX = 8  # of a generateName whose name is taken

Object = dict[str, Any]
Make = Callable[[Object], Object]


class Admission(Protocol):
    async def admit(self, attributes: AdmissionAttributes) -> None: ...
    async def validate(self, attributes: AdmissionAttributes) -> None: ...


class Allocators(Protocol):
    """Addresses and ports of Services (server.allocators)."""

    def create(self, service: Object, rollbacks: list[Callable[[], None]]) -> None: ...
    def update(self, service: Object, old: Object, rollbacks: list[Callable[[], None]]) -> None: ...


@dataclass(slots=True)
class Call:
    """One write: of what, by whom, with which options."""

    endpoint: Endpoint
    user: User
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    dry_run: bool = False
    unconditional: bool = False  # the server's own change of what is there: made again when others were quicker
    manager: str = ""  # fieldManager or the user agent's; "": managedFields are left alone
    operation: str = "Update"  # of managedFields: Update or Apply
    validation: str = "Warn"
    options: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    admission: Admission | None = None  # None: the server's own writes

    def attributes(self, operation: str, obj: Object | None, old: Object | None) -> AdmissionAttributes:
        name = self.name or ((obj or {}).get("metadata") or {}).get("name") or ""
        return AdmissionAttributes(
            operation, self.endpoint.resource, self.subresource, self.namespace, name, obj, old, self.user, self.options, self.dry_run, self.warnings
        )


@dataclass(slots=True)
class Written:
    """A write's outcome: the stored version, or for a dry run the bytes that would have been."""

    value: bytes
    obj: Object | None  # decoded, when the writer has it
    created: bool = False
    deleted: bool = False


def refused(error: StoreError) -> ApiError:
    """What a client hears of a store that does not take a write."""
    if isinstance(error, NoSpace):
        return ApiError(507, "InsufficientStorage", f"the store's space is used up: {error}")
    if isinstance(error, Overloaded):
        return errors.too_many_requests("the store is overloaded, try again later", 1)
    if isinstance(error, Unavailable):
        return ApiError(503, "ServiceUnavailable", str(error))
    return errors.internal(str(error))


class Objects:
    """The registry. `allocators` holds hooks for kinds that allocate (services), by endpoint prefix."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.allocators: Allocators | None = None
        self.expiry: Expiry | None = None  # of events

    # ---- create

    async def create(self, call: Call, obj: Object) -> Written:
        """Store a new object (as `Endpoint.read` gives it: defaulted, in the stored version). ApiError 409, 422 and admission's."""
        endpoint = call.endpoint
        rules, namespaced = endpoint.rules, endpoint.resource.namespaced
        meta.prepare_create(obj, call.namespace, namespaced)
        self.manage(call, None, obj)
        attributes = call.attributes("CREATE", obj, None)
        try:
            if call.admission is not None:
                await call.admission.admit(attributes)
            generated = bool(obj["metadata"].get("generateName")) and not obj["metadata"].get("name")
            meta.fill_create(obj, clock.rfc3339(), entropy.uid(), entropy.suffix() if generated else "")
            obj["metadata"].pop("resourceVersion", None)
            rules.prepare_create(obj)
            if endpoint.plural == "certificatesigningrequests" and endpoint.group == "certificates.k8s.io":
                _requester(obj, call.user)
            if self.allocators is not None and endpoint.plural == "services" and not endpoint.group:
                self.allocators.create(obj, attributes.rollbacks)
            name = obj["metadata"].get("name") or ""
            problems = meta.validate_create(rules, obj, namespaced) + rules.validate_create(obj)
            if problems:
                raise errors.invalid(endpoint.kind, endpoint.error_group, "" if generated else name, problems)
            call.warnings += rules.warnings(obj)
            attributes.name = name
            if call.admission is not None:
                await call.admission.validate(attributes)
            written = await self._insert(call, obj, generated)
        except BaseException:
            attributes.undo()
            raise
        if call.dry_run:
            attributes.undo()
        return written

    async def _insert(self, call: Call, obj: Object, generated: bool) -> Written:
        endpoint, store = call.endpoint, self.store
        for left in range(NAME_RETRIES_MAX, -1, -1):
            name = obj["metadata"]["name"]
            key = endpoint.resource.key(call.namespace, name)
            data, at = codec.encode(obj)
            if call.dry_run:
                current = store.get(key)
                if current is None:
                    return Written(data.replace(b'"resourceVersion":"",', b"", 1), None, created=True)
            else:
                try:
                    kv = await store.put(key, data, expect=0, lease=await self._lease(endpoint), revision_at=at, attrs=endpoint.digest(obj))
                    return Written(kv.value, None, created=True)
                except CompareFailed as e:
                    current = e.current
                except StoreError as e:
                    raise refused(e) from e
            if not generated or not left:
                raise self._exists(endpoint, name, current)
            name = meta.generated_name(obj["metadata"]["generateName"], entropy.suffix())
            obj["metadata"]["name"] = name
        raise AssertionError("unreachable")

    @staticmethod
    def _exists(endpoint: Endpoint, name: str, current: Any) -> ApiError:
        error = errors.already_exists(endpoint.plural, endpoint.group, name)
        if current is not None and codec.metadata_of(current.value).get("deletionTimestamp"):
            error.message = f"object is being deleted: {error.message}"
        return error

    def manage(self, call: Call, old: Object | None, obj: Object) -> None:
        """Who owns which field after this write (only where the write says who makes it; apply has done so itself)."""
        if not call.manager or call.operation != "Update":
            return
        endpoint = call.endpoint
        ignore = managedfields.ignored(endpoint.group, endpoint.plural, call.subresource, endpoint.rules.has_status)
        before, after = (old and endpoint.shown(old), endpoint.shown(obj)) if endpoint.converts else (old, obj)
        entries = managedfields.update(
            before,
            after,
            call.manager,
            "Update",
            endpoint.api_version,
            call.subresource,
            clock.rfc3339(),
            endpoint.node,
            ignore=ignore,
            at_version=endpoint.at_version,
        )
        if entries:
            obj["metadata"]["managedFields"] = entries
        else:
            obj["metadata"].pop("managedFields", None)

    # ---- update

    async def update(
        self,
        call: Call,
        make: Callable[[Object], Object | Awaitable[Object]],
        *,
        prepare: Callable[[Object, Object], None] | None = None,
        validate: Callable[[Object, Object], list[FieldError]] | None = None,
        create: Callable[[], Object] | None = None,
        uid: str = "",
    ) -> Written:
        """Replace the object by `make(old)`; `prepare` and `validate` are the subresource's (default: the kind's for updates).

        `make` may be called again when others were quicker. Its resourceVersion, if any, must be the stored one's. `create`: what to store
        when there is nothing. `uid`: a precondition. ApiError 404, 409, 422 and admission's.
        """
        endpoint, store = call.endpoint, self.store
        key = endpoint.resource.key(call.namespace, call.name)
        kv = store.get(key)
        for _ in range(CONFLICT_RETRIES_MAX):
            if kv is None:
                if create is None:
                    raise errors.not_found(endpoint.plural, endpoint.group, call.name)
                return await self.create(call, create())
            outcome = await self._update_once(call, key, kv, make, prepare, validate, uid)
            if isinstance(outcome, Written):
                return outcome
            kv = outcome.current
        raise errors.conflict(endpoint.plural, endpoint.group, call.name, errors.MODIFIED)

    async def _update_once(self, call: Call, key: bytes, kv: Any, make: Any, prepare: Any, validate: Any, uid: str) -> Written | CompareFailed:
        """One try on the version `kv` -> what was written, or the refusal that says what stands there now."""
        endpoint = call.endpoint
        rules = endpoint.rules
        old = endpoint.stored(kv)
        self._check_uid(endpoint, call.name, old, uid)
        obj = make(old)
        if not isinstance(obj, dict):
            obj = await obj
        self._check_version(call, obj, kv)
        meta.prepare_update(obj, old, call.namespace, endpoint.resource.namespaced)
        self.manage(call, old, obj)
        attributes = call.attributes("UPDATE", obj, old)
        try:
            if call.admission is not None:
                await call.admission.admit(attributes)
            (prepare or rules.prepare_update)(obj, old)
            if self.allocators is not None and not call.subresource and endpoint.plural == "services" and not endpoint.group:
                self.allocators.update(obj, old, attributes.rollbacks)
            problems = meta.validate_update(obj, old) + (validate or rules.validate_update)(obj, old)
            if problems:
                raise errors.invalid(endpoint.kind, endpoint.error_group, call.name, problems)
            if not call.subresource:
                call.warnings += rules.warnings(obj, old)
            if call.admission is not None:
                await call.admission.validate(attributes)
            written = await self._replace(call, key, kv, obj)
        except CompareFailed as e:
            attributes.undo()
            call.warnings.clear()
            return e  # what names an older resourceVersion is refused at the next try; a patch is applied to what stands there now
        except BaseException:
            attributes.undo()
            raise
        if call.dry_run:
            attributes.undo()
        return written

    @staticmethod
    def _check_uid(endpoint: Endpoint, name: str, old: Object, uid: str) -> None:
        found = old["metadata"].get("uid", "")
        if uid and uid != found:
            raise errors.conflict(endpoint.plural, endpoint.group, name, f"Precondition failed: UID in precondition: {uid}, UID in object meta: {found}")

    @staticmethod
    def _check_version(call: Call, obj: Object, kv: Any) -> None:
        """The resourceVersion that the write names, if any, is the stored one's, or 409."""
        endpoint, metadata = call.endpoint, obj.setdefault("metadata", {})
        asked = metadata.get("resourceVersion") or ""
        if asked == "" or asked == "0" or call.unconditional:
            if not call.unconditional and not endpoint.rules.unconditional_update:
                problem = errors.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
                raise errors.invalid(endpoint.plural, endpoint.group, call.name, [problem])
            metadata["resourceVersion"] = str(kv.mod_revision)
        elif asked != str(kv.mod_revision):
            if not asked.isdecimal():
                raise errors.invalid(
                    endpoint.kind,
                    endpoint.error_group,
                    call.name,
                    [errors.invalid_value("metadata.resourceVersion", asked, f'strconv.ParseUint: parsing "{asked}": invalid syntax')],
                )
            raise errors.conflict(endpoint.plural, endpoint.group, call.name, errors.MODIFIED)

    async def _replace(self, call: Call, key: bytes, kv: Any, obj: Object) -> Written:
        """Write `obj` over `kv`; or remove it, when its deletion had begun and nothing holds it any more. Raises CompareFailed."""
        endpoint, store = call.endpoint, self.store
        data, at = codec.encode(obj)
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("deletionGracePeriodSeconds") and not held(endpoint, obj):
            value = b"%b%d%b" % (data[:at], kv.mod_revision, data[at:])
            if not call.dry_run:
                try:
                    await store.delete(key, expect=kv.mod_revision)
                except CompareFailed:
                    raise
                except StoreError as e:
                    raise refused(e) from e
            return Written(value, None, deleted=True)
        if b"%b%d%b" % (data[:at], kv.mod_revision, data[at:]) == kv.value:
            return Written(kv.value, None)
        if call.dry_run:
            return Written(b"%b%d%b" % (data[:at], kv.mod_revision, data[at:]), None)
        try:
            kv = await store.put(key, data, expect=kv.mod_revision, lease=await self._lease(endpoint), revision_at=at, attrs=endpoint.digest(obj))
        except CompareFailed:
            raise
        except StoreError as e:
            raise refused(e) from e
        return Written(kv.value, None)

    async def _lease(self, endpoint: Endpoint) -> int:
        return await self.expiry.lease() if self.expiry is not None and endpoint.expires else 0

    # ---- delete

    async def delete(self, call: Call, options: DeleteOptions) -> Written:
        """Delete, or begin to: see `deletion`. ApiError 404, 409 and admission's."""
        endpoint, store = call.endpoint, self.store
        key = endpoint.resource.key(call.namespace, call.name)
        kv = store.get(key)
        for _ in range(CONFLICT_RETRIES_MAX):
            if kv is None:
                raise errors.not_found(endpoint.plural, endpoint.group, call.name)
            try:
                return await self._delete_once(call, key, kv, options)
            except CompareFailed as e:
                kv = e.current
            except StoreError as e:
                raise refused(e) from e
        raise errors.conflict(endpoint.plural, endpoint.group, call.name, errors.MODIFIED)

    async def _delete_once(self, call: Call, key: bytes, kv: Any, options: DeleteOptions) -> Written:
        endpoint, store = call.endpoint, self.store
        old = endpoint.stored(kv)
        self._check_uid(endpoint, call.name, old, options.uid)
        if options.resource_version and options.resource_version != str(kv.mod_revision):
            text = f"Precondition failed: ResourceVersion in precondition: {options.resource_version}, ResourceVersion in object meta: {kv.mod_revision}"
            raise errors.conflict(endpoint.plural, endpoint.group, call.name, text)
        attributes = call.attributes("DELETE", None, old)
        if call.admission is not None:
            await call.admission.admit(attributes)
            await call.admission.validate(attributes)
        if _is_namespace(endpoint) and old["metadata"].get("deletionTimestamp") and held(endpoint, old):
            raise errors.conflict(endpoint.plural, "", call.name, _NAMESPACE_GOING)
        obj = endpoint.stored(kv)
        endpoint.rules.prepare_delete(obj)
        gone = deletion(endpoint, obj, options)
        if gone:
            value = kv.value
            if not call.dry_run:
                revision, _ = await store.delete(key, expect=kv.mod_revision)
                obj["metadata"]["resourceVersion"] = str(revision)
            return Written(value, obj, deleted=True)
        written = await self._replace(call, key, kv, obj)
        return written


@dataclass(slots=True)
class DeleteOptions:
    """metav1.DeleteOptions. `grace_seconds` None: the kind's default; `propagation` "": the kind's default."""

    grace_seconds: int | None = None
    propagation: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


_NAMESPACE_GOING = (
    "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace will automatically be purged by the system."
)
ORPHAN, FOREGROUND = meta.ORPHAN, meta.FOREGROUND
_WANTED: dict[str, Sequence[str]] = {"Orphan": (ORPHAN,), "Foreground": (FOREGROUND,), "Background": ()}


def deletion(endpoint: Endpoint, obj: Object, options: DeleteOptions) -> bool:
    """Mark `obj` as upstream's BeforeDelete and deletionFinalizersForGarbageCollection do -> whether it goes at once.

    Not at once: a grace period runs (deletionTimestamp lies ahead), or finalizers hold it. A later deletion may shorten the grace, never lengthen it.
    """
    metadata = obj["metadata"]
    finalizers = [f for f in metadata.get("finalizers") or () if not options.propagation or f not in (ORPHAN, FOREGROUND)]
    for name in _WANTED.get(options.propagation, ()):
        finalizers.append(name)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    rules, asked = endpoint.rules, options.grace_seconds
    begun = metadata.get("deletionTimestamp")
    left = metadata.get("deletionGracePeriodSeconds") or 0
    if begun and rules.grace_seconds_default is not None:
        if asked is None or asked >= left:
            return False
        metadata["deletionTimestamp"] = clock.rfc3339(clock.parse(begun) - left + asked)
        metadata["deletionGracePeriodSeconds"] = asked
        return not asked and not held(endpoint, obj)
    grace = rules.grace_seconds(obj, asked) or 0
    if not grace and not held(endpoint, obj):
        return True
    if not begun:
        metadata["deletionTimestamp"] = clock.rfc3339(clock.now() + grace)
        if metadata.get("generation"):
            metadata["generation"] += 1
        if _is_namespace(endpoint):
            obj["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}
    metadata["deletionGracePeriodSeconds"] = grace
    return False


def _is_namespace(endpoint: Endpoint) -> bool:
    return endpoint.plural == "namespaces" and not endpoint.group


def held(endpoint: Endpoint, obj: Object) -> bool:
    """Whether finalizers (of a namespace: also those of its spec) keep an object whose deletion has begun."""
    return bool(obj["metadata"].get("finalizers") or (_is_namespace(endpoint) and (obj.get("spec") or {}).get("finalizers")))


def _requester(csr: Object, user: User) -> None:
    """A certificate request tells who makes it, whatever it says itself (signers go by it)."""
    spec = csr["spec"]
    who = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": {k: list(v) for k, v in user.extra.items()}}
    for field_name, value in who.items():
        spec.pop(field_name, None)
        if value:
            spec[field_name] = value
