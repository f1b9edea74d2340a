"""ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, numbered, so that it can be rolled back.

A revision's data is the template alone, so the same template again is the same revision with a new number.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fastkube.api.errors import ApiError
from fastkube.client.rest import Client
from fastkube.controllers.meta import Object, controller_uid, owner_reference, uid
from fastkube.runtime.entropy import SUFFIX_ALPHABET

REVISIONS = "apps/v1/controllerrevisions"
HASH_LABEL = "controller-revision-hash"
STATEFUL_HASH_LABEL = "controller.kubernetes.io/hash"


@dataclass(slots=True)
class History:
    """The revisions of one owner, oldest first, and the one of its current template."""

    revisions: list[Object]
    update: Object
    collisions: int


def data_of(owner: Object) -> Object:
    return {"spec": {"template": {**owner["spec"]["template"], "$patch": "replace"}}}


def hash_of(data: Object, collisions: int) -> str:
    value = 2166136261
    for byte in orjson.dumps(data, option=orjson.OPT_SORT_KEYS) + (b"%d" % collisions if collisions else b""):
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return "".join(SUFFIX_ALPHABET[ord(c) % len(SUFFIX_ALPHABET)] for c in str(value))


def label_of(revision: Object) -> str:
    """The hash that pods of this revision carry (the revision's name for StatefulSets, its hash for DaemonSets)."""
    labels = revision["metadata"].get("labels") or {}
    return labels.get(HASH_LABEL) or revision["metadata"]["name"]


def template_at(owner: Object, revision: Object) -> Object:
    """The pod template of a revision."""
    template = revision["data"]["spec"]["template"]
    return {k: v for k, v in template.items() if k != "$patch"}


async def sync(client: Client, owner: Object, kind: str, known: list[Object], hash_label: str, collisions: int) -> History:
    """Bring the history up to date with the owner's template; `known` are the cached revisions it controls. Raises ApiError."""
    data = data_of(owner)
    revisions = sorted((r for r in known if controller_uid(r) == uid(owner)), key=lambda r: (r["revision"], r["metadata"]["name"]))
    newest = revisions[-1]["revision"] if revisions else 0
    same = [r for r in revisions if r.get("data") == data]
    if same:
        found = same[-1]
        if found["revision"] != newest:  # rolled back to: it becomes the newest
            found = await client.update(REVISIONS, {**found, "revision": newest + 1})
            revisions = [r for r in revisions if r["metadata"]["name"] != found["metadata"]["name"]] + [found]
        return History(revisions, found, collisions)
    while True:
        value = hash_of(data, collisions)
        meta = owner["metadata"]
        labels = {**((owner["spec"]["template"].get("metadata") or {}).get("labels") or {}), hash_label: value}
        name = f"{meta['name']}-{value}"
        obj = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [owner_reference(owner, "apps/v1", kind)],
            },
            "data": data,
            "revision": newest + 1,
        }
        try:
            made = await client.create(REVISIONS, obj, meta["namespace"])
        except ApiError as e:
            if e.reason != "AlreadyExists":
                raise
            made = await client.get(REVISIONS, name, meta["namespace"])
            if made.get("data") != data or controller_uid(made) != uid(owner):
                collisions += 1
                continue
        return History([*(r for r in revisions if r["metadata"]["name"] != made["metadata"]["name"]), made], made, collisions)


async def truncate(client: Client, history: History, in_use: set[str], limit: int) -> None:
    """Delete the oldest revisions that no pod is of, beyond `limit`. `in_use`: names and hashes."""
    idle = [r for r in history.revisions if r["metadata"]["name"] not in in_use and label_of(r) not in in_use and r is not history.update]
    for revision in idle[: max(len(idle) - limit, 0)]:
        try:
            await client.delete(REVISIONS, revision["metadata"]["name"], revision["metadata"]["namespace"], uid=uid(revision))
        except ApiError as e:
            if e.code != 404:
                raise
