"""create, update, patch, delete, deletecollection: bodies and options in, `registry.objects` in the middle, the written version out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from fastkube.api import apply as server_side
from fastkube.api import codec, errors, managedfields, meta, schema
from fastkube.api.errors import ApiError, bad_request
from fastkube.api.patch import json as json_patch
from fastkube.api.patch import merge as merge_patch
from fastkube.api.patch import strategic
from fastkube.http.message import Request, Response
from fastkube.runtime import clock
from fastkube.server.handlers.negotiation import JSON, Form, content_type, negotiate
from fastkube.server.handlers.read import DECODED_ITEMS_MAX, find, list_body, list_form, list_options, shown
from fastkube.server.handlers.selecting import select
from fastkube.server.registry import pods
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.objects import Admission, Call, DeleteOptions, Object, Objects, Written

PATCH_TYPES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
VALIDATIONS = ("", "Ignore", "Warn", "Strict")
PROPAGATIONS = ("Orphan", "Background", "Foreground")
DELETE_CONCURRENT_MAX = 32  # of a collection, at a time

# Deletions that are answered with the object rather than with a Status (ReturnDeletedObject of upstream's storages).
_RETURNED = {("", n) for n in ("pods", "services", "serviceaccounts", "persistentvolumes", "persistentvolumeclaims", "podtemplates", "resourcequotas")}
_ORPHANING = {("", "replicationcontrollers"), ("batch", "jobs")}


def call_of(endpoint: Endpoint, request: Request, admission: Admission | None, operation: str) -> Call:
    """The write's options from the query. ApiError 400, 422."""
    info = request.info
    call = Call(endpoint, request.user, info.namespace if endpoint.resource.namespaced else "", info.name, info.subresource, admission=admission)
    problems = []
    if request.raw_query:
        dry = request.params("dryRun")
        if dry:
            if dry != ["All"] * len(dry):
                bad = [v for v in dry if v != "All"]
                problems.append(errors.not_supported("dryRun", bad[0] if len(bad) == 1 else bad, ["All"]))
            call.dry_run = True
            call.options["dryRun"] = ["All"]
        call.manager = request.param("fieldManager")
        call.validation = request.param("fieldValidation") or "Warn"
        if call.validation not in VALIDATIONS:
            problems.append(errors.not_supported("fieldValidation", call.validation, ["", *VALIDATIONS[1:]]))
    if call.manager:
        problems += managedfields.validate_manager(call.manager)
        call.options["fieldManager"] = call.manager
    if problems:
        raise errors.invalid(operation, "meta.k8s.io", "", problems)
    call.manager = managedfields.manager_of(call.manager, request.headers.get("user-agent", ""))
    return call


def warning_headers(warnings: list[str]) -> list[tuple[str, str]]:
    """RFC 7234 warnings with code 299, each once."""
    return [("Warning", '299 - "' + text.replace("\\", "\\\\").replace('"', '\\"') + '"') for text in dict.fromkeys(warnings)]


def answer(call: Call, request: Request, written: Written, status: int) -> Response:
    """The written object in the form asked for."""
    headers = warning_headers(call.warnings) if call.warnings else ()
    endpoint, value = call.endpoint, written.value
    if endpoint.converts:
        value = orjson.dumps(endpoint.from_storage(orjson.loads(value)))
    return shown(request, value, endpoint.printer, status, headers)


async def create(objects: Objects, endpoint: Endpoint, request: Request, admission: Admission | None) -> Response:
    negotiate(request)
    call = call_of(endpoint, request, admission, "CreateOptions")
    obj, warnings = endpoint.read(request.body, content_type(request), call.validation)
    call.warnings += warnings
    if (obj.get("metadata") or {}).get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    written = await objects.create(call, obj)
    return answer(call, request, written, 201)


async def update(objects: Objects, endpoint: Endpoint, request: Request, admission: Admission | None) -> Response:
    negotiate(request)
    call = call_of(endpoint, request, admission, "UpdateOptions")
    obj, warnings = endpoint.read(request.body, content_type(request), call.validation)
    call.warnings += warnings
    meta.check_update_name(obj, call.name)
    given = obj["metadata"].get("namespace") or ""
    if endpoint.resource.namespaced and given and given != call.namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    written = await put(objects, call, obj)
    return answer(call, request, written, 201 if written.created else 200)


async def put(objects: Objects, call: Call, obj: Object) -> Written:
    """Replace the stored object by `obj` (through `call.subresource`)."""
    endpoint = call.endpoint
    body = orjson.dumps(obj)
    fresh: list[Object] = [obj]

    def make(old: Object) -> Object:
        return fresh.pop() if fresh else orjson.loads(body)

    may_create = endpoint.rules.create_on_update and not call.subresource and (obj["metadata"].get("resourceVersion") or "0") == "0"
    prepare, validate = strategy(endpoint, call.subresource)
    uid = obj["metadata"].get("uid") or ""
    return await objects.update(call, make, prepare=prepare, validate=validate, create=(lambda: orjson.loads(body)) if may_create else None, uid=uid)


def strategy(endpoint: Endpoint, subresource: str) -> tuple[Any, Any]:
    """The kind's (prepare, validate) of an update through a subresource; (None, None) for the resource itself."""
    if not subresource:
        return None, None
    rules: Any = endpoint.rules
    if endpoint.plural == "pods" and subresource in ("ephemeralcontainers", "resize"):
        if subresource == "resize":
            return pods.prepare_resize, rules.validate_resize
        return pods.prepare_ephemeralcontainers, rules.validate_ephemeral
    return getattr(rules, f"prepare_{subresource}", None), getattr(rules, f"validate_{subresource}", None)


# ---- patch


def patcher(endpoint: Endpoint, call: Call, kind: str, body: bytes, force: bool) -> Callable[[Object], Object]:
    """old -> patched object, checked and defaulted. ApiError 400, 409, 422 when called."""
    if kind == "apply":
        return _applier(endpoint, call, body, force)
    warned: list[str] = []

    def make(old: Object) -> Object:
        obj = endpoint.shown(old)
        if kind == "json":
            obj = json_patch.apply(obj, body)
        elif kind == "merge":
            obj = merge_patch.apply(obj, body)
        else:
            if endpoint.node is None or endpoint.resource.custom:
                raise errors.unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                )
            obj = strategic.apply(obj, body, endpoint.node)
        _same_identity(obj, call)
        obj, warned[:] = endpoint.reread(obj, call.validation)
        call.warnings[:] = list(dict.fromkeys(call.warnings + warned))
        return obj

    return make


def patched_scale(current: Object, kind: str, body: bytes, call: Call) -> Object:
    """A Scale after a patch. ApiError 400, 415, 422."""
    node = schema.of("autoscaling", "v1", "Scale")
    if kind == "json":
        current = json_patch.apply(current, body)
    elif kind == "merge":
        current = merge_patch.apply(current, body)
    elif kind == "strategic":
        current = strategic.apply(current, body, node)
    else:
        value = codec.load(body, "application/yaml")
        current = {**current, "spec": (value or {}).get("spec") or {}}
    try:
        schema.decode(node, current, False)
    except schema.DecodeError as e:
        raise bad_request(f'Scale in version "v1" cannot be handled as a Scale: {e}') from None
    return current


def _same_identity(obj: Object, call: Call) -> None:
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object")
    meta.check_name(obj, call.name)


def _applier(endpoint: Endpoint, call: Call, body: bytes, force: bool) -> Callable[[Object | None], Object]:
    """Server-side apply of `body` to what is there (None: nothing)."""
    try:
        applied = codec.load(body, "application/apply-patch+yaml")
    except ValueError as e:
        raise bad_request(f"error decoding YAML: {e}") from None
    if not isinstance(applied, dict) or not isinstance(applied.get("metadata") or {}, dict):
        raise bad_request("error decoding YAML: the document is no object")
    call.operation = "Apply"
    ignore = managedfields.ignored(endpoint.group, endpoint.plural, call.subresource, endpoint.rules.has_status)

    def make(old: Object | None) -> Object:
        obj = server_side.apply(
            old and endpoint.shown(old), orjson.loads(orjson.dumps(applied)), call.manager, force, endpoint.node, api_version=endpoint.api_version, time=clock.rfc3339(),
            subresource=call.subresource, ignore=ignore, at_version=endpoint.at_version,
        )  # fmt: skip
        if old is None:
            obj.setdefault("metadata", {}).setdefault("name", call.name)
        meta.check_name(obj, call.name)
        obj, _ = endpoint.reread(orjson.loads(orjson.dumps(obj)), "Ignore")
        if old is not None:
            managedfields.keep_times(old, obj)
        return obj

    return make


async def patch(objects: Objects, endpoint: Endpoint, request: Request, admission: Admission | None) -> Response:
    negotiate(request)
    media = content_type(request, tuple(PATCH_TYPES))
    kind = PATCH_TYPES[media]
    call = call_of(endpoint, request, admission, "PatchOptions")
    force = request.param("force")
    _check_apply(kind, request, force)
    written = await run_patch(objects, call, kind, request.body, force in ("true", "1"))
    return answer(call, request, written, 201 if written.created else 200)


def _check_apply(kind: str, request: Request, force: str) -> None:
    """What PatchOptions must and may not say (upstream's ValidatePatchOptions)."""
    problems = []
    if kind == "apply" and not request.param("fieldManager"):
        problems.append(errors.required("fieldManager", "is required for apply patch"))
    if kind != "apply" and force:
        problems.append(errors.forbidden_field("force", "may not be specified for non-apply patch"))
    if problems:
        raise errors.invalid("PatchOptions", "meta.k8s.io", "", problems)


async def run_patch(objects: Objects, call: Call, kind: str, body: bytes, force: bool = False) -> Written:
    """Patch the object (through `call.subresource`); an apply makes it when it is not there."""
    endpoint = call.endpoint
    make: Any = patcher(endpoint, call, kind, body, force)
    prepare, validate = strategy(endpoint, call.subresource)
    create = (lambda: make(None)) if kind == "apply" and not call.subresource else None
    return await objects.update(call, make, prepare=prepare, validate=validate, create=create)


# ---- delete


def delete_options(request: Request) -> DeleteOptions:
    """DeleteOptions of the body, or of the query when there is none. ApiError 400, 422."""
    raw: Any = {}
    if request.body and request.body.strip() not in (b"", b"null"):
        media = content_type(request)
        try:
            raw = codec.load(request.body, media)
        except ValueError as e:
            raise bad_request(f"couldn't get version/kind; json parse error: {e}") from None
        if not isinstance(raw, dict):
            raise bad_request("the body is no DeleteOptions")
        if raw.get("kind") not in (None, "", "DeleteOptions"):
            raise bad_request(f"invalid kind {raw.get('kind')!r} of delete options")
    return options_of(raw, request)


def options_of(raw: Object, request: Request) -> DeleteOptions:
    """DeleteOptions given as an object, what it leaves open taken from the query. ApiError 400, 422."""
    options = DeleteOptions()
    grace = raw.get("gracePeriodSeconds")
    if grace is None and request.raw_query and request.param("gracePeriodSeconds"):
        text = request.param("gracePeriodSeconds")
        if not text.lstrip("-").isdecimal() or len(text) > 18:
            raise bad_request(f'strconv.ParseInt: parsing "{text[:64]}": invalid syntax')
        grace = int(text)
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise bad_request("gracePeriodSeconds must be an integer")
    problems = []
    if grace is not None and grace < 0:
        problems.append(errors.invalid_value("gracePeriodSeconds", grace, "must be greater than or equal to 0"))
    options.grace_seconds = grace
    options.propagation = raw.get("propagationPolicy") or request.param("propagationPolicy")
    orphan = raw.get("orphanDependents")
    if orphan is None and request.param("orphanDependents"):
        orphan = request.param("orphanDependents") in ("true", "1")
    if options.propagation:
        if orphan is not None:
            problems.append(errors.invalid_value("propagationPolicy", options.propagation, "orphanDependents and deletionPropagation cannot be both set"))
        if options.propagation not in PROPAGATIONS:
            problems.append(errors.not_supported("propagationPolicy", options.propagation, ["Foreground", "Background", "Orphan", "nil"]))
    elif orphan is not None:
        options.propagation = "Orphan" if orphan else "Background"
    if problems:
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", problems)
    preconditions = raw.get("preconditions") or {}
    if isinstance(preconditions, dict):
        options.uid = str(preconditions.get("uid") or "")
        options.resource_version = str(preconditions.get("resourceVersion") or "")
    dry = raw.get("dryRun")
    if dry and dry != ["All"]:
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [errors.not_supported("dryRun", dry, ["All"])])
    options.dry_run = bool(dry)
    return options


def _defaults(endpoint: Endpoint, options: DeleteOptions, call: Call) -> None:
    if options.dry_run:
        call.dry_run = True
    if not options.propagation and (endpoint.group, endpoint.plural) in _ORPHANING:
        options.propagation = "Orphan"
        if endpoint.plural == "jobs":
            call.warnings.append(
                "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
            )


async def delete(objects: Objects, endpoint: Endpoint, request: Request, admission: Admission | None) -> Response:
    form = negotiate(request)
    call = call_of(endpoint, request, admission, "DeleteOptions")
    options = delete_options(request)
    _defaults(endpoint, options, call)
    written = await objects.delete(call, options)
    if not written.deleted or (endpoint.group, endpoint.plural) in _RETURNED:
        return answer(call, request, written, 200)
    return _deleted(call, written, form)


def _deleted(call: Call, written: Written, form: Form) -> Response:
    endpoint = call.endpoint
    metadata = codec.metadata_of(written.value)
    details = {"name": call.name, **({"group": endpoint.group} if endpoint.group else {}), "kind": endpoint.plural, "uid": metadata.get("uid", "")}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return Response(200, orjson.dumps(status), JSON, warning_headers(call.warnings))


async def delete_collection(objects: Objects, endpoint: Endpoint, request: Request, admission: Admission | None) -> Response:
    """Delete all that is selected; answered with the list of what was (upstream's DeleteCollection)."""
    form = negotiate(request)
    call = call_of(endpoint, request, admission, "DeleteOptions")
    options = delete_options(request)
    _defaults(endpoint, options, call)
    page = find(objects.store, endpoint, select(endpoint, request), list_options(request, objects.store, endpoint))
    gate = asyncio.Semaphore(DELETE_CONCURRENT_MAX)

    async def one(kv: Any) -> None:
        metadata = codec.metadata_of(kv.value)
        each = Call(endpoint, call.user, metadata.get("namespace") or "", metadata["name"], dry_run=call.dry_run, options=call.options, admission=admission)
        async with gate:
            try:
                await objects.delete(each, options)
            except ApiError as e:
                if e.code != 404:
                    raise

    for start in range(0, len(page.kvs), DECODED_ITEMS_MAX):
        await asyncio.gather(*(one(kv) for kv in page.kvs[start : start + DECODED_ITEMS_MAX]))
    if form.plain and not endpoint.converts:
        return Response(200, list_body(endpoint, page), JSON, warning_headers(call.warnings))
    return list_form(endpoint, request, page, form)
