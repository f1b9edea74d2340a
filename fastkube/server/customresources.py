"""Custom resources: definitions turned into served resources, and back into nothing.

A definition is acted upon in the very commit that makes it (`Reader.on_change`), so its objects can be written as soon as the definition's create is answered. What takes
writes of the server's own (its status; the deletion of its objects when it goes) follows in tasks. Laws:

- What is served is a function of the stored definitions: `changed` makes the difference, whatever was missed before.
- A definition leaves only after its objects; from its deletion on none can be created.
- Discovery and OpenAPI say what is served, from the same commit on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from fastkube.api import codec, custom, errors, resources, rules, schema
from fastkube.api import crd as definitions
from fastkube.api.errors import ApiError
from fastkube.api.tables import Printer
from fastkube.runtime import logs
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.objects import Call, DeleteOptions
from fastkube.server.request import User

if TYPE_CHECKING:
    from fastkube.server.app import ApiServer

Object = dict[str, Any]

DEFINITIONS = resources.parse("apiextensions.k8s.io/v1/customresourcedefinitions")
SERVER = User("system:apiserver", ("system:masters", "system:authenticated"))
DELETIONS_CONCURRENT_MAX = 32  # of a going definition's objects, at a time
EMPTY_POLL_SECONDS = 0.2  # between looks whether the objects' finalizers have let go
RETRIES_MAX = 20  # of a write of the server's own against others that are quicker

log = logs.get("customresources")


class CustomEndpoint(Endpoint):
    """One served version of a definition, for the registry."""

    def __init__(self, version: custom.Version) -> None:
        super().__init__(version.resource, version.kind)
        self.of = version
        self.node = version.node
        self.scale_paths = version.scale_paths
        self.converts = self.converts or version.changed

    @property
    def printer(self) -> Printer:  # type: ignore[override]
        return self.of.printer

    @property
    def selectable(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.of.kind.field_labels

    def from_storage(self, obj: Object) -> Object:
        obj["apiVersion"] = self.api_version
        if self.of.changed:  # what was stored before is shown as the schema has it now
            schema.prune(self.of.node, obj)
            self.rules.default(obj)
        return obj

    def to_storage(self, obj: Object) -> Object:
        return {**obj, "apiVersion": self.resource.storage_version}

    def stored(self, kv: Any) -> Object:
        return self.to_storage(self.decode(kv))

    def reread(self, obj: Object, validation: str) -> tuple[Object, list[str]]:
        strict = [f'unknown field "{path}"' for path in schema.prune(self.of.node, obj)]
        if strict and validation == "Strict":
            raise self._unreadable(f"strict decoding error: {', '.join(strict)}")
        self._settle(obj)
        return self.to_storage(obj), strict if validation == "Warn" else []

    def read(self, body: bytes, media: str, validation: str) -> tuple[Object, list[str]]:
        obj, warnings = codec.read(body, media, self.group, self.version, self.kind, node=self.of.node, validation=validation)
        self._settle(obj)
        return self.to_storage(obj), [self.of.deprecation, *warnings] if self.of.deprecation else warnings

    def _settle(self, obj: Object) -> None:
        """metadata in its own type's form, defaults filled in."""
        meta = obj.setdefault("metadata", {})
        if not isinstance(meta, dict):
            raise self._unreadable("json: cannot unmarshal into Go struct field .metadata of type v1.ObjectMeta")
        try:
            schema.decode(schema.object_meta(), meta, False)
        except schema.DecodeError as e:
            raise self._unreadable(str(e)) from None
        self.rules.default(obj)

    def _unreadable(self, why: str) -> ApiError:
        return errors.bad_request(f'{self.kind} in version "{self.version}" cannot be handled as a {self.kind}: {why}')

    def at_version(self, obj: Object, api_version: str) -> tuple[Object, schema.Node | None] | None:
        return obj, self.node  # conversion None: every version is the same object


class CustomResources:
    """Follows the definitions. `start()` once the store is there."""

    def __init__(self, app: ApiServer) -> None:
        self.app = app
        self._served: dict[str, list[CustomEndpoint]] = {}  # by the definition's name
        self._made_of: dict[str, tuple[Any, ...]] = {}
        self._going: set[str] = set()
        self._settling: set[str] = set()

    def start(self) -> None:
        for obj in list(self.app.reader.list(DEFINITIONS)):
            self.changed(obj, None)
        self.app.reader.on_change(DEFINITIONS, self.changed)

    def changed(self, new: Object | None, old: Object | None) -> None:
        """A definition was made, changed or removed (None)."""
        either = new or old
        assert either is not None
        name = either["metadata"]["name"]
        if new is None:
            self._unserve(name)
            for other in self._others(either):  # names have become free
                self.changed(other, other)
            return
        _, accepted = definitions.accept_names(new, self._others(new))
        going = bool(new["metadata"].get("deletionTimestamp"))
        made_of = (orjson.dumps(new["spec"]), orjson.dumps(accepted), going)
        if self._made_of.get(name) != made_of:
            self._unserve(name)
            if accepted is not None:
                self._serve(name, {**new, "spec": {**new["spec"], "names": {**new["spec"]["names"], **accepted}}}, going)
            self._made_of[name] = made_of
        if going:
            if definitions.CLEANUP in (new["metadata"].get("finalizers") or ()) and name not in self._going:
                self._going.add(name)
                self.app.supervisor.once(f"remove/{name}", self._remove(name))
        elif name not in self._settling:
            self._settling.add(name)
            self.app.supervisor.once(f"names/{name}", self._settle(name))

    def _others(self, crd: Object) -> list[Object]:
        group, name = crd["spec"]["group"], crd["metadata"]["name"]
        return [o for o in self.app.reader.list(DEFINITIONS) if o["spec"]["group"] == group and o["metadata"]["name"] != name]

    # ---- serving

    def _serve(self, name: str, crd: Object, going: bool) -> None:
        try:
            versions = custom.versions_of(crd)
        except (rules.CompileError, ValueError, KeyError) as e:  # stored before we checked it
            log.error("definition cannot be served", definition=name, error=str(e))
            return
        if going:
            for version in versions:
                version.resource = replace(version.resource, verbs=tuple(v for v in version.resource.verbs if v != "create"))
        endpoints = self._served[name] = [CustomEndpoint(v) for v in versions]
        for endpoint in endpoints:
            self.app.serve(endpoint)
        self._publish({e.version for e in endpoints}, crd["spec"]["group"])

    def _unserve(self, name: str) -> None:
        endpoints = self._served.pop(name, None)
        self._made_of.pop(name, None)
        if endpoints:
            for endpoint in endpoints:
                self.app.unserve(endpoint)
            self._publish({e.version for e in endpoints}, endpoints[0].group)

    def _publish(self, versions: set[str], group: str) -> None:
        """Say what is served of a group's versions now."""
        for version in versions:
            part: Object = {"paths": {}, "definitions": {}}
            for crd in self.app.reader.list(DEFINITIONS):
                if crd["spec"]["group"] == group and crd["metadata"]["name"] in self._served:
                    for v in crd["spec"]["versions"]:
                        if v["name"] == version and v.get("served"):
                            one = definitions.openapi_part(crd, v)
                            part["paths"] |= one["paths"]
                            part["definitions"] |= one["definitions"]
            self.app.openapi.custom(f"apis/{group}/{version}", part if part["paths"] else None)
        self.app.discovery.changed()

    # ---- the server's own writes

    async def _settle(self, name: str) -> None:
        """Write which names were accepted and that the definition is established."""
        try:
            for _ in range(RETRIES_MAX):
                crd = self.app.reader.get(DEFINITIONS, None, name)
                if crd is None or crd["metadata"].get("deletionTimestamp"):
                    return
                status, _ = definitions.accept_names(crd, self._others(crd))
                if status == (crd.get("status") or {}):
                    return
                if await self._write({**crd, "status": status}, "status"):
                    return
        finally:
            self._settling.discard(name)

    async def _remove(self, name: str) -> None:
        """Delete the objects of a going definition, wait until they are gone, let it go."""
        try:
            endpoints = self._served.get(name)
            if endpoints:
                await self._empty(endpoints[0])
            for _ in range(RETRIES_MAX):
                crd = self.app.reader.get(DEFINITIONS, None, name)
                if crd is None:
                    return
                meta = crd["metadata"]
                finalizers = [f for f in meta.get("finalizers") or () if f != definitions.CLEANUP]
                if await self._write({**crd, "metadata": {**meta, "finalizers": finalizers}}, ""):
                    return
        finally:
            self._going.discard(name)

    async def _empty(self, endpoint: CustomEndpoint) -> None:
        gate = asyncio.Semaphore(DELETIONS_CONCURRENT_MAX)

        async def one(obj: Object) -> None:
            meta = obj["metadata"]
            async with gate:
                try:
                    await self.app.objects.delete(Call(endpoint, SERVER, meta.get("namespace") or "", meta["name"]), DeleteOptions(propagation="Background"))
                except ApiError as e:
                    if e.code not in (404, 409):
                        raise

        while True:
            left = [orjson.loads(kv.value) for kv in self.app.store.range(endpoint.prefix, endpoint.end).kvs]
            if not left:
                return
            await asyncio.gather(*(one(obj) for obj in left if not obj["metadata"].get("deletionTimestamp")))
            await asyncio.sleep(EMPTY_POLL_SECONDS)

    async def _write(self, crd: Object, subresource: str) -> bool:
        """Whether the write was taken; not when another was quicker."""
        try:
            await self.app.writer.update(DEFINITIONS, crd, subresource)
        except ApiError as e:
            if e.code == 404:
                return True
            if e.code != 409:
                raise
            return False
        return True
