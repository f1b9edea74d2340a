"""Static pods: manifests in a directory and at a URL, turned into pods as the API server would have made them.

A static pod's uid is a hash of where it comes from and what it says, so that a changed manifest is another pod; its name ends with the
node's. What is no valid Pod is logged once and left out; it never stops the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from fastkube.api import kinds
from fastkube.node import podspec
from fastkube.runtime import clock, logs

DIRECTORY_SECONDS = 1.0
URL_SECONDS = 20.0
MANIFEST_BYTES_MAX = 10 * 1024 * 1024
MANIFESTS_MAX = 1000

log = logs.get("sources")

Object = dict[str, Any]
OnPods = Callable[[str, list[Object]], None]  # source ("file", "http"), all of its pods

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadManifest(ValueError):
    """The text is no Pod; says why."""


def parse(text: str | bytes, origin: str, source: str, node_name: str) -> list[Object]:
    """The pods of a manifest (a Pod, a PodList, or several documents). BadManifest."""
    try:
        documents = [d for d in yaml.load_all(text, _LOADER) if d is not None]
    except (yaml.YAMLError, ValueError) as e:
        raise BadManifest(f"no YAML: {e}") from None
    pods = []
    for document in documents:
        if not isinstance(document, dict):
            raise BadManifest("a mapping is wanted")
        items = document.get("items") if document.get("kind") in ("PodList", "List") else [document]
        for item in items or ():
            pods.append(_static(item, origin, source, node_name))
    return pods


def _static(manifest: Any, origin: str, source: str, node_name: str) -> Object:
    if not isinstance(manifest, dict) or manifest.get("kind", "Pod") != "Pod" or not isinstance(manifest.get("spec"), dict):
        raise BadManifest("a v1 Pod is wanted")
    meta = dict(manifest.get("metadata") or {})
    if not isinstance(meta.get("name"), str) or not meta["name"]:
        raise BadManifest("metadata.name is wanted")
    pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": dict(manifest["spec"])}
    digest = hashlib.sha256(f"{node_name}\0{origin}\0{_canonical(manifest)}".encode()).hexdigest()[:32]
    meta["uid"] = digest
    meta["name"] = f"{meta['name']}-{node_name}"
    meta.setdefault("namespace", "default")
    meta["annotations"] = {
        **(meta.get("annotations") or {}),
        podspec.HASH_ANNOTATION: digest,
        podspec.SOURCE_ANNOTATION: source,
        podspec.SEEN_ANNOTATION: clock.rfc3339_micro(),
    }
    pod["spec"]["nodeName"] = node_name
    pod["spec"]["tolerations"] = [*(pod["spec"].get("tolerations") or ()), {"operator": "Exists", "effect": "NoExecute"}]
    kind = kinds.of("", "Pod")
    kind.default(pod)
    errors = kind.validate_create(pod)
    if errors:
        raise BadManifest("; ".join(map(str, errors)))
    for volume in pod["spec"].get("volumes") or ():
        if any(k in volume for k in ("configMap", "secret", "projected", "persistentVolumeClaim")):
            raise BadManifest(f"volume {volume['name']}: a static pod may not reference API objects")
    return pod


def _canonical(manifest: Object) -> str:
    import orjson

    return orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS, default=str).decode()


class Directory:
    """All manifests of a directory (or one file); hidden files are none."""

    def __init__(self, path: Path, node_name: str, on_pods: OnPods) -> None:
        self.path = path
        self.node_name = node_name
        self.on_pods = on_pods
        self._cache: dict[str, tuple[Any, list[Object]]] = {}
        self._listed = False

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(DIRECTORY_SECONDS)

    def look(self) -> None:
        """Read what changed; tell `on_pods` when anything did."""
        found: dict[str, tuple[Any, list[Object]]] = {}
        for path, signature in self._files():
            known = self._cache.get(path)
            found[path] = known if known and known[0] == signature else (signature, self._read(path))
        if found != self._cache or not self._listed:
            self._cache, self._listed = found, True
            self.on_pods("file", [p for _, pods in found.values() for p in pods])

    def _files(self) -> Iterable[tuple[str, Any]]:
        try:
            if self.path.is_file():
                entries: list[Any] = [self.path]
            else:
                entries = sorted((e for e in os.scandir(self.path) if not e.name.startswith(".") and e.is_file()), key=lambda e: e.name)[:MANIFESTS_MAX]
        except OSError:
            return
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                continue
            if status.st_size <= MANIFEST_BYTES_MAX:
                yield os.fspath(entry), (status.st_mtime_ns, status.st_size, status.st_ino)

    def _read(self, path: str) -> list[Object]:
        try:
            return parse(Path(path).read_bytes(), path, "file", self.node_name)
        except (OSError, BadManifest) as e:
            log.warning("a static pod's manifest is left out", path=path, error=str(e))
            return []


class Url:
    """The manifests that a URL answers with."""

    def __init__(self, url: str, node_name: str, on_pods: OnPods, headers: dict[str, str] | None = None) -> None:
        self.url = url
        self.node_name = node_name
        self.on_pods = on_pods
        self.headers = headers or {}
        self._last = b""

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while True:
                try:
                    async with session.get(self.url, headers=self.headers) as answer:
                        answer.raise_for_status()
                        body = await answer.content.read(MANIFEST_BYTES_MAX)
                    if body != self._last:
                        self.on_pods("http", parse(body, self.url, "http", self.node_name))
                        self._last = body
                except (aiohttp.ClientError, TimeoutError, BadManifest, OSError) as e:
                    log.warning("static pods from a URL could not be had", url=self.url, error=str(e))
                await asyncio.sleep(URL_SECONDS)


def mirror_of(pod: Object, node_uid: str) -> Object:
    """The pod that stands for a static one in the API."""
    meta = pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **{k: meta[k] for k in ("name", "namespace", "labels") if meta.get(k)},
            "annotations": {**meta["annotations"], podspec.MIRROR_ANNOTATION: meta["annotations"][podspec.HASH_ANNOTATION]},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": pod["spec"]["nodeName"], "uid": node_uid, "controller": True}],
        },
        "spec": pod["spec"],
    }


def mirrors(mirror: Object, pod: Object) -> bool:
    """Whether `mirror` stands for `pod` as it is now."""
    annotations = mirror["metadata"].get("annotations") or {}
    return annotations.get(podspec.MIRROR_ANNOTATION) == pod["metadata"]["annotations"][podspec.HASH_ANNOTATION]
