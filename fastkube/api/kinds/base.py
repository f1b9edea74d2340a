"""What differs from kind to kind, as pure functions on decoded objects (upstream: defaults, strategy and validation of each kind).

One `Kind` per stored kind, in one module per API group (`kinds/core.py`, `kinds/apps.py` ...), found through `kinds.of(group, kind)`.
Methods mutate `obj` in place where their name is a verb of change (`default`, `prepare_*`) and return lists where they look
(`validate_*`, `warnings`). They never do I/O; the few that stamp a time or make a name take it from `runtime.clock` and `runtime.entropy`.

The order in the API server's pipeline:
  create: decode, strict/type check (schema), convert, default, meta.prepare_create, admission (mutating), meta.fill_create, prepare_create, validate_create,
          admission (validating)
  update: decode, ..., default, meta.prepare_update, admission (mutating), prepare_update(obj, old), validate_update(obj, old), admission (validating)
  status: the same with prepare_status and validate_status
ObjectMeta is common to all (`api.meta`): its rules are called by the pipeline, not by each kind.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fastkube.api import formats, schema
from fastkube.api.errors import FieldError

Object = dict[str, Any]

METADATA = ("labels", "annotations", "ownerReferences", "finalizers")  # what clients set of it, name apart


def null_when_empty(holder: Object | None, *names: str) -> None:
    """Required lists that are empty are stored as null (upstream stores protobuf, which cannot tell one from the other)."""
    for name in names:
        if holder is not None and holder.get(name) == []:
            holder[name] = None


class Kind:
    """The rules of one kind. The base class is what a kind without rules of its own does."""

    group: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    stored_group: ClassVar[str | None] = None  # the group of the stored kind, which errors name, where it is another than `group`
    has_status: ClassVar[bool] = True  # a /status subresource: create clears status, update keeps the old one
    has_generation: ClassVar[bool] = True  # metadata.generation counts changes of everything but metadata and status
    status_metadata: ClassVar[tuple[str, ...]] = ()  # members of metadata that a write of /status may change too; of most built-in kinds METADATA
    create_on_update: ClassVar[bool] = False  # PUT of an absent object creates it (Lease, Event ... as upstream's AllowCreateOnUpdate)
    unconditional_update: ClassVar[bool] = True  # PUT without resourceVersion is allowed
    grace_seconds_default: ClassVar[int | None] = None  # a number: deletion is graceful (pods)
    name_rule: ClassVar[str] = "subdomain"  # of metadata.name: "subdomain", "label" (DNS-1123), "label1035" or "path" (RBAC: a path segment)
    field_labels: ClassVar[tuple[str, ...]] = ()  # what field selectors may name besides metadata.name and metadata.namespace
    deprecated: ClassVar[str] = ""  # the text of the warning that every answer about this resource carries

    @property
    def error_group(self) -> str:
        """The group that field errors of this kind are told under (`errors.invalid`)."""
        return self.group if self.stored_group is None else self.stored_group

    def name_errors(self, name: str, prefix: bool = False) -> list[str]:
        """What is wrong with a name (`prefix`: a generateName) of this kind."""
        return formats.name_errors(self.name_rule, name, prefix)

    def default(self, obj: Object) -> None:
        """Fill in upstream's defaults, whole object, idempotent."""

    def prepare_create(self, obj: Object) -> None:
        """Drop what a create may not set, set what it starts with (generation 1, a status that says nothing)."""
        if self.has_status:
            self.clear_status(obj)
        if self.has_generation:
            obj["metadata"]["generation"] = 1

    def clear_status(self, obj: Object) -> None:
        """No status, or the empty one that objects of this kind always show."""
        node = schema.status_of(self.group if self.stored_group is None else self.stored_group, self.kind)
        if node is not None:
            obj["status"] = schema.empty(node)
        else:
            obj.pop("status", None)

    def prepare_update(self, obj: Object, old: Object) -> None:
        """Keep what an update may not touch (status), count generation when what it may touch differs."""
        if self.has_status:
            if "status" in old:
                obj["status"] = old["status"]
            else:
                obj.pop("status", None)
        if self.has_generation:
            changed = any(obj.get(k) != old.get(k) for k in {*obj, *old} - {"metadata", "status", "kind", "apiVersion"})
            generation = old["metadata"].get("generation", 0)
            if changed or generation:
                obj["metadata"]["generation"] = generation + changed

    def prepare_status(self, obj: Object, old: Object) -> None:
        """An update through /status: everything but status, managedFields and `status_metadata` is the old one's."""
        meta = obj["metadata"]
        for key in [k for k in obj if k not in ("kind", "apiVersion", "metadata", "status")]:
            del obj[key]
        obj.update({k: v for k, v in old.items() if k not in ("kind", "apiVersion", "metadata", "status")})
        taken = ("managedFields", *self.status_metadata)
        kept = {k: meta[k] for k in ("resourceVersion", *taken) if k in meta}
        obj["metadata"] = {**{k: v for k, v in old["metadata"].items() if k not in taken}, **kept}

    def prepare_delete(self, obj: Object) -> None:
        """What a deletion changes in the object before it is decided whether it goes at once (a finalizer that the kind itself adds)."""

    def validate_create(self, obj: Object) -> list[FieldError]:
        return []

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return []

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return []

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        """Texts of the Warning headers that a write of `obj` earns."""
        return []

    def fields(self, obj: Object) -> dict[str, str]:
        """The values of the field selectors this kind has besides metadata.name and metadata.namespace."""
        return {}

    def grace_seconds(self, obj: Object, asked: int | None) -> int | None:
        """How long a deletion of `obj` is graceful; None: not at all (it goes at once, finalizers permitting)."""
        return None
