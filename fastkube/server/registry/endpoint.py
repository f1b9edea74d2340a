"""An `Endpoint` is one served resource with everything made beforehand that answering for it needs: rules, key ranges, openings of answers.

Stored values open with `{"apiVersion":...,"kind":...,"metadata":{"resourceVersion":"N"` (api.codec). Where the served version is the stored one, those bytes are
the answer; otherwise objects are converted one by one.
"""

from __future__ import annotations

import functools
from typing import Any

import orjson

from fastkube._ext.selection import Digest
from fastkube.api import codec, convert, errors, kinds, schema, tables
from fastkube.api.resources import Resource
from fastkube.server.registry.indexes import Indexes

Object = dict[str, Any]
_VERSION_KEY = b'"resourceVersion":"'
VERSION_WITHIN_BYTES = 512  # where a stored value's resourceVersion is looked for


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def with_revision(value: bytes, revision: int) -> bytes:
    """A stored value with another resourceVersion: what a deletion's event shows."""
    start = value.find(_VERSION_KEY, 0, VERSION_WITHIN_BYTES)
    if start < 0:
        return value
    start += len(_VERSION_KEY)
    return b"%b%d%b" % (value[:start], revision, value[value.index(b'"', start) :])


class Endpoint:
    """See the module. `rules` is the kind's (api.kinds), shared by all versions."""

    scale_paths = (".spec.replicas", ".status.replicas", "")  # where the scale subresource finds desired and observed replicas, and the selector

    def __init__(self, resource: Resource, rules: kinds.Kind | None = None) -> None:
        self.resource = resource
        self.group, self.version, self.plural, self.kind = resource.group, resource.version, resource.plural, resource.kind
        self.api_version = resource.api_version
        self.rules = rules or kinds.of(*convert.storage_kind(resource))
        self.converts = resource.api_version != resource.storage_version
        self.indexes: Indexes | None = None  # for lists by label or field, where the server has given it some
        self.expires = resource.prefix == "/registry/events/"
        self.followed = False  # the Reader hands decoded objects on as they are written
        self.prefix = resource.prefix.encode()
        self.end = range_end(self.prefix)
        self.opening = b'{"apiVersion":"%b","kind":"%b",' % (resource.storage_version.encode(), resource.kind.encode())
        self.node: schema.Node | None = None if resource.custom else schema.of(resource.group, resource.version, resource.kind)
        self.list_opening = b'{"kind":"%bList","apiVersion":"%b","metadata":{' % (resource.kind.encode(), self.api_version.encode())

    def range(self, namespace: str) -> tuple[bytes, bytes]:
        """The keys of a namespace's objects, or of all of them."""
        if not namespace or not self.resource.namespaced:
            return self.prefix, self.end
        prefix = self.resource.key_prefix(namespace)
        return prefix, range_end(prefix)

    def digest_of(self, kv: Any) -> Digest:
        """What reads need of a stored version; made at the write, or here when the version comes from a restart."""
        digest = kv.attrs
        if digest is None:
            digest = kv.attrs = self.digest(orjson.loads(kv.value))
            digest.obj = None
        return digest

    def digest(self, obj: Object) -> Digest:
        meta = obj["metadata"]
        fields = self.rules.fields(obj)
        fields["metadata.name"] = meta.get("name", "")
        if self.resource.namespaced:
            fields["metadata.namespace"] = meta.get("namespace", "")
        return Digest(meta.get("labels") or {}, fields, obj if self.followed else None)

    @property
    def error_group(self) -> str:
        """The group that refusals of an object name."""
        stored = self.rules.stored_group
        return self.group if stored is None else stored

    @property
    def selectable(self) -> tuple[str, ...]:
        """The fields that field selectors may name, besides metadata.name and metadata.namespace."""
        return self.rules.field_labels

    def stored(self, kv: Any) -> Object:
        """The stored object as it is stored, to do with as one likes: what rules and writes work on."""
        return orjson.loads(kv.value)

    def decode(self, kv: Any) -> Object:
        """The stored object in the served version, to do with as one likes."""
        return self.from_storage(orjson.loads(kv.value))

    def served(self, kv: Any) -> bytes:
        """The stored object's JSON in the served version: the stored bytes, where they are that."""
        return orjson.dumps(self.decode(kv)) if self.converts else kv.value

    @functools.cached_property
    def printer(self) -> tables.Printer:
        """How tables show it."""
        return tables.printer(self.resource)

    def from_storage(self, obj: Object) -> Object:
        """From the stored version to the served one; `obj` is taken over."""
        return convert.from_storage(self.resource, obj) if self.converts else obj

    def shown(self, obj: Object) -> Object:
        """A copy of an object as it is stored, in the served version."""
        return self.from_storage(orjson.loads(orjson.dumps(obj)))

    def to_storage(self, obj: Object) -> Object:
        """The other way."""
        return convert.to_storage(self.resource, obj) if self.converts else obj

    def read(self, body: bytes, media: str, validation: str) -> tuple[Object, list[str]]:
        """The object of a write's body, checked, in the stored version, defaulted -> (object, warnings). ApiError 400."""
        obj, warnings = codec.read(body, media, self.group, self.version, self.kind, validation=validation)
        obj = self.to_storage(obj)
        self.rules.default(obj)
        return obj, warnings

    def reread(self, obj: Object, validation: str) -> tuple[Object, list[str]]:
        """What `read` does, for a patched object in the served version (taken over). ApiError 400."""
        assert self.node is not None
        try:
            unknown = schema.decode(self.node, obj, validation != "Ignore")
        except schema.DecodeError as e:
            raise errors.bad_request(f'{self.kind} in version "{self.version}" cannot be handled as a {self.kind}: {e}') from None
        strict = [f'unknown field "{path}"' for path in unknown]
        if strict and validation == "Strict":
            raise errors.bad_request(f'{self.kind} in version "{self.version}" cannot be handled as a {self.kind}: strict decoding error: {", ".join(strict)}')
        obj = self.to_storage(obj)
        self.rules.default(obj)
        return obj, strict

    def at_version(self, obj: Object, api_version: str) -> tuple[Object, schema.Node | None] | None:
        """`obj` (served version) at another version of its kind, for managedFields written there; None when it is not served."""
        return (obj, self.node) if api_version == self.api_version else None
