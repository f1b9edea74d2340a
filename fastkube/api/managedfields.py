"""metadata.managedFields: which manager owns which field of an object, kept true by every write.

`update` is for ordinary writes (create, update, patch): what they add or change becomes the writer's and nobody else's. Applied
configurations are `fastkube.api.apply`'s; both work on `Managers`, the decoded form. Neither reads a clock or touches its arguments.
Upstream: k8s.io/apimachinery/pkg/util/managedfields, sigs.k8s.io/structured-merge-diff/v6.

Where in the pipeline (upstream's order): after decoding and defaulting, before admission and before the kind's `prepare_*`; so what those
fill in belongs to nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from fastkube._ext import fieldset
from fastkube.api.errors import ApiError, FieldError
from fastkube.api.schema import Node

Object = dict[str, Any]
Set = dict[str, Any]  # FieldsV1, see fastkube._ext.fieldset

UPDATE_MANAGERS_MAX = 10  # more are folded into one, the oldest first
MANAGER_BYTES_MAX = 128
_FOLDED = "ancient-changes"

_SPEC: Set = {"f:spec": {}}
_STATUS: Set = {"f:status": {}}
_SPEC_METADATA: Set = {"f:metadata": {}, "f:spec": {}}

# (group, plural, subresource) -> fields that such a write cannot set, hence does not own. Without a row: see `ignored`.
_IGNORED: dict[tuple[str, str, str], Set] = {
    ("", "pods", "status"): {"f:metadata": {"f:deletionTimestamp": {}, "f:ownerReferences": {}}, "f:spec": {}},
    ("apps", "deployments", "status"): {"f:metadata": {"f:labels": {}}, "f:spec": {}},
    ("apiextensions.k8s.io", "customresourcedefinitions", "status"): _SPEC_METADATA,
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "status"): _SPEC_METADATA,
    ("certificates.k8s.io", "certificatesigningrequests", ""): {"f:spec": {}, "f:status": {}},
    ("certificates.k8s.io", "certificatesigningrequests", "status"): {"f:spec": {}, "f:status": {"f:conditions": {}}},
    ("certificates.k8s.io", "certificatesigningrequests", "approval"): {"f:spec": {}, "f:status": {"f:certificate": {}}},
    ("storage.k8s.io", "volumeattachments", "status"): _SPEC_METADATA,
    ("resource.k8s.io", "resourceclaims", "status"): _SPEC_METADATA,
    ("networking.k8s.io", "networkpolicies", ""): {},
}


class Manager(NamedTuple):
    """Who: one entry of managedFields without its time and fields. `version` is "" for Apply: an applier is one whatever version it applies."""

    name: str
    operation: str  # "Apply" or "Update"
    version: str
    subresource: str


class Owned(NamedTuple):
    """What: the fields, the API version they are written in, and when they were last touched ("" when never since they are had)."""

    fields: Set
    version: str
    time: str


Managers = dict[Manager, Owned]
# An object at another API version -> (the object there, its node); None when that version is no longer served.
AtVersion = Callable[[Object, str], tuple[Object, Node | None] | None]


def manager_of(field_manager: str, user_agent: str) -> str:
    """The manager's name: the fieldManager option, or the user agent up to its first "/"."""
    return field_manager or user_agent.partition("/")[0].encode()[:MANAGER_BYTES_MAX].decode(errors="ignore") or "unknown"


def ignored(group: str, plural: str, subresource: str, has_status: bool) -> Set:
    """The fields that a write of this (sub)resource cannot set (upstream's GetResetFields)."""
    found = _IGNORED.get((group, plural, subresource))
    if found is not None:
        return found
    return _SPEC if subresource == "status" else _STATUS if has_status else {}


def update(
    old: Object | None,
    new: Object,
    manager: str,
    operation: str,
    api_version: str,
    subresource: str,
    time: str,
    schema: Node | None,
    *,
    ignore: Set | None = None,
    at_version: AtVersion | None = None,
) -> list[Object]:
    """The managedFields that `new` is to carry: those of `old` (None: a creation) after this write. [] means the object is not tracked.

    `new` is as decoded and defaulted, with the managedFields the client sent: an empty list (or one empty entry) gives tracking up, a valid list
    replaces what stands, except through a subresource. `schema` None: an object without a schema. `time` is RFC 3339, `ignore` as `ignored` gives.
    """
    sent = new.get("metadata", {}).get("managedFields")
    before: list[Object] = (old.get("metadata", {}).get("managedFields") or []) if old is not None else []
    if not subresource and old is not None and sent in ([], [{}]):
        return []
    entries = before if subresource or not sent or sent == before else (_valid(sent) or before)
    if not entries and old is not None:
        return []
    changed, removed = fieldset.compare(zero(schema) if old is None else old, new, schema)
    if ignore:
        changed, removed = fieldset.recursive_difference(changed, ignore), fieldset.recursive_difference(removed, ignore)
    if not changed and not removed:
        return entries
    if not entries:
        return [_entry(Manager(manager, operation, api_version, subresource), Owned(changed, api_version, time))] if changed else []
    managers = decode(entries)
    managers = disown(managers, fieldset.union(changed, removed), api_version, elsewhere(old or {}, new, managers, api_version, at_version))
    if changed:
        me = Manager(manager, operation, api_version, subresource)
        mine = managers.get(me)
        managers[me] = Owned(fieldset.union(mine.fields, changed) if mine else changed, api_version, time)
        _fold(managers)
    return encode(managers)


def disown(managers: Managers, taken: Set, version: str, elsewhere: dict[str, Set | None], keep: Manager | None = None) -> Managers:
    """`managers` without the fields `taken`; who is left with none is gone. `elsewhere` says what was taken in the terms of other API
    versions (None: that version is gone, and its entries with it). `keep` is not touched."""
    left: Managers = {}
    for who, owned in managers.items():
        if who == keep:
            left[who] = owned
            continue
        theirs = taken if owned.version == version else elsewhere.get(owned.version, taken)
        if theirs is None:
            continue
        fields = fieldset.difference(owned.fields, theirs)
        if fields:
            left[who] = owned if fields == owned.fields else owned._replace(fields=fields)
    return left


def elsewhere(old: Object, new: Object, managers: Managers, version: str, at_version: AtVersion | None) -> dict[str, Set | None]:
    """What differs between `old` and `new`, for each other API version that a manager speaks. Without `at_version` all versions are alike."""
    out: dict[str, Set | None] = {}
    if at_version is None:
        return out
    for other in {owned.version for owned in managers.values()} - {version}:
        there_old, there_new = at_version(old, other), at_version(new, other)
        if there_old is None or there_new is None:
            out[other] = None
        else:
            out[other] = fieldset.union(*fieldset.compare(there_old[0], there_new[0], there_new[1]))
    return out


@functools.cache
def _zero_of(schema: Node) -> Object:
    fields = schema.properties or {}
    return {name: _zero_value(fields[name]) for name, _ in schema.always}


def zero(schema: Node | None) -> Object:
    """The object that a creation is compared with: what Go writes of an empty one of that kind ({} for custom resources)."""
    return {} if schema is None or schema.raw is not None else _zero_of(schema)


def _zero_value(field: Node) -> Any:
    if field.pointer or field.explicit_null:
        return None
    if field.properties is not None:
        return {name: _zero_value(field.properties[name]) for name, _ in field.always}
    if field.format == "quantity":
        return "0"
    return {"string": "", "boolean": False, "integer": 0, "number": 0}.get(field.type, 0 if field.int_or_string else None)


def _fold(managers: Managers) -> None:
    """Keep the number of updaters bounded: the oldest are made one entry per API version."""
    updaters = [who for who in managers if who.operation != "Apply"]
    over = len(updaters) - UPDATE_MANAGERS_MAX
    if over <= 0:
        return
    first: dict[str, Manager] = {}
    for who in sorted(updaters, key=lambda w: (managers[w].time, w)):
        if over <= 0:
            return
        owned = managers[who]
        if owned.version not in first:
            first[owned.version] = who
            continue
        bucket = Manager(_FOLDED, "Update", owned.version, "")
        if bucket not in managers:
            managers[bucket] = managers.pop(first[owned.version])
        if who == bucket:
            continue
        managers[bucket] = Owned(fieldset.union(managers.pop(who).fields, managers[bucket].fields), owned.version, owned.time)
        over -= 1


# The form in the object.


def decode(entries: list[Object]) -> Managers:
    """The managers of a stored object's managedFields."""
    managers: Managers = {}
    for entry in entries:
        operation, version = entry.get("operation", ""), entry.get("apiVersion", "")
        who = Manager(entry.get("manager", ""), operation, "" if operation == "Apply" else version, entry.get("subresource", ""))
        managers[who] = Owned(entry.get("fieldsV1") or {}, version, entry.get("time") or "")
    return managers


def encode(managers: Managers) -> list[Object]:
    """managedFields in upstream's order: appliers first, then by time, name, version, subresource."""
    order = sorted(managers.items(), key=lambda item: (item[0].operation, item[1].time, item[0].name, item[1].version, item[0].subresource))
    return [_entry(who, owned) for who, owned in order if owned.fields]


def _entry(who: Manager, owned: Owned) -> Object:
    entry: Object = {"apiVersion": owned.version, "fieldsType": "FieldsV1", "fieldsV1": owned.fields, "manager": who.name, "operation": who.operation}
    if who.subresource:
        entry["subresource"] = who.subresource
    if owned.time:
        entry["time"] = owned.time
    return entry


def _valid(entries: Any) -> list[Object]:
    """What a client sent, path elements in canonical form; [] when it cannot be read (which leaves what stands)."""
    try:
        return [{**entry, "fieldsV1": canonical(entry.get("fieldsV1") or {})} for entry in entries]
    except (AttributeError, ValueError, TypeError, RecursionError):
        return []


def canonical(fields: Set) -> Set:
    """`fields` as sent, with keys and values in path elements written our way. ValueError when it is no FieldsV1."""
    out: Set = {}
    for name, inner in fields.items():
        if name.startswith(("k:", "v:")):
            name = name[:2] + orjson.dumps(orjson.loads(name[2:]), option=orjson.OPT_SORT_KEYS).decode()
        elif name == ".":
            out[name] = {}
            continue
        elif not name.startswith(("f:", "i:")):
            raise ValueError(f"invalid path element {name!r}")
        out[name] = canonical(inner)
    return out


def validate_manager(name: str, path: str = "fieldManager") -> list[FieldError]:
    """The field errors of a manager's name."""
    if len(name.encode()) > MANAGER_BYTES_MAX:
        return [FieldError("FieldValueTooLong", path, f"Too long: may not be more than {MANAGER_BYTES_MAX} bytes")]
    for i, c in enumerate(name):
        if not c.isprintable():
            return [FieldError("FieldValueInvalid", path, f"Invalid value: {orjson.dumps(name).decode()}: invalid character U+{ord(c):04X} (at position {i})")]
    return []


def keep_times(old: Object, new: Object) -> None:
    """When `new` differs from `old` in nothing but the times of its managedFields, give it the old ones: such a write is none. Both decoded and defaulted."""
    before, after = old.get("metadata", {}).get("managedFields") or [], new.get("metadata", {}).get("managedFields") or []
    if before == after or len(before) != len(after) or {**old, "metadata": None} != {**new, "metadata": None}:
        return

    def timeless(entries: list[Object]) -> list[Object]:
        return sorted(
            ({k: v for k, v in e.items() if k != "time"} for e in entries),
            key=lambda e: (e.get("manager", ""), e.get("operation", ""), e.get("subresource", "")),
        )

    if {**old["metadata"], "managedFields": timeless(before)} == {**new["metadata"], "managedFields": timeless(after)}:
        new["metadata"]["managedFields"] = before


# Conflicts.


class Conflict(NamedTuple):
    who: Manager
    version: str
    path: str  # `.spec.containers[name="c"].image`

    def described(self) -> str:
        text = orjson.dumps(self.who.name).decode()
        if self.who.subresource:
            text += f' with subresource "{self.who.subresource}"'
        return text if self.who.operation == "Apply" else f"{text} using {self.version}"


def paths(fields: Set) -> list[str]:
    """The members of a set as paths, in upstream's order."""
    out: list[str] = []
    _collect(fields, "", out)
    return out


def _collect(fields: Set, prefix: str, out: list[str]) -> None:
    inner = sorted(name for name in fields if name != ".")
    for name in inner:
        entry = fields[name]
        if not entry or "." in entry:
            out.append(prefix + fieldset.printed(name))
    for name in inner:
        _collect(fields[name], prefix + fieldset.printed(name), out)


def conflict_error(conflicts: list[Conflict]) -> ApiError:
    """The 409 that names each field and its owner."""
    causes = [{"reason": "FieldManagerConflict", "message": f"conflict with {c.described()}", "field": c.path} for c in conflicts]
    if len(conflicts) == 1:
        message = f"conflict with {conflicts[0].described()}: {conflicts[0].path}"
    else:
        lines: list[str] = []
        for who in sorted({c.described() for c in conflicts}):
            lines.append(f"conflicts with {who}:")
            lines += [f"- {c.path}" for c in conflicts if c.described() == who]
        message = "\n".join(lines)
    noun = "conflict" if len(conflicts) == 1 else "conflicts"
    return ApiError(409, "Conflict", f"Apply failed with {len(conflicts)} {noun}: {message}", {"causes": causes})
