"""get, list and watch over TLS: resourceVersion semantics, paging, selection, forms."""

import asyncio
import base64
import gzip
import json
import random

import pytest

from tests.server.conftest import MAPS, PODS, config_map, pod

TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"


async def fill(api, count):
    return [await api.make(MAPS, config_map(f"m-{i:02d}", {"parity": str(i % 2)}, i=str(i))) for i in range(count)]


def names(answer):
    return [item["metadata"]["name"] for item in answer["items"]]


async def test_get(api):
    made = await api.make(MAPS, config_map("a", k="v"))
    assert await api.call("GET", f"{MAPS}/a") == (200, made)
    assert (await api.call("GET", f"{MAPS}/a?resourceVersion=0"))[0] == 200
    assert (await api.call("GET", f"{MAPS}/a?resourceVersion={made['metadata']['resourceVersion']}"))[0] == 200
    status, answer = await api.call("GET", f"{MAPS}/a?resourceVersion=999999")
    assert (status, answer["reason"]) == (504, "Timeout") and answer["details"]["retryAfterSeconds"] == 1
    assert (await api.call("GET", f"{MAPS}/a?resourceVersion=abc"))[0] == 400
    status, answer = await api.call("GET", f"{MAPS}/b")
    assert (status, answer["message"], answer["details"]) == (404, 'configmaps "b" not found', {"name": "b", "kind": "configmaps"})


async def test_lists_repeat_no_types_and_are_selected(api):
    await fill(api, 6)
    status, answer = await api.call("GET", MAPS)
    assert (status, answer["kind"], answer["apiVersion"]) == (200, "ConfigMapList", "v1")
    assert names(answer) == [f"m-{i:02d}" for i in range(6)] and not any("kind" in item for item in answer["items"])
    for selector, expected in [
        ("parity=1", [1, 3, 5]),
        ("parity!=1", [0, 2, 4]),
        ("parity in (0,1)", range(6)),
        ("nothing", []),
        ("!nothing,parity notin (0)", [1, 3, 5]),
    ]:
        answer = (await api.call("GET", f"{MAPS}?labelSelector={selector.replace(' ', '%20')}"))[1]
        assert names(answer) == [f"m-{i:02d}" for i in expected]
    assert names((await api.call("GET", f"{MAPS}?fieldSelector=metadata.name=m-03"))[1]) == ["m-03"]
    assert names((await api.call("GET", f"{MAPS}?fieldSelector=metadata.name!=m-03&labelSelector=parity=1"))[1]) == ["m-01", "m-05"]
    assert names((await api.call("GET", "/api/v1/configmaps?fieldSelector=metadata.name=m-03,metadata.namespace=default"))[1]) == ["m-03"]
    assert (await api.call("GET", f"{MAPS}?labelSelector=a%3D%3D%3Db"))[0] == 400
    assert (await api.call("GET", f"{MAPS}?fieldSelector=data.k=v"))[0] == 400


async def test_pages_are_one_snapshot(api):
    await fill(api, 7)
    _, first = await api.call("GET", f"{MAPS}?limit=3")
    assert names(first) == ["m-00", "m-01", "m-02"] and first["metadata"]["remainingItemCount"] == 4
    await api.call("DELETE", f"{MAPS}/m-04")
    await api.make(MAPS, config_map("m-03a"))
    _, second = await api.call("GET", f"{MAPS}?limit=3&continue={first['metadata']['continue']}")
    assert names(second) == ["m-03", "m-04", "m-05"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    _, third = await api.call("GET", f"{MAPS}?continue={second['metadata']['continue']}")
    assert names(third) == ["m-06"] and "continue" not in third["metadata"]


async def test_pages_of_a_selection(api):
    await fill(api, 9)
    _, first = await api.call("GET", f"{MAPS}?limit=2&labelSelector=parity=0")
    assert names(first) == ["m-00", "m-02"] and "remainingItemCount" not in first["metadata"]
    _, second = await api.call("GET", f"{MAPS}?limit=2&labelSelector=parity=0&continue={first['metadata']['continue']}")
    assert names(second) == ["m-04", "m-06"]
    _, third = await api.call("GET", f"{MAPS}?limit=2&labelSelector=parity=0&continue={second['metadata']['continue']}")
    assert names(third) == ["m-08"] and "continue" not in third["metadata"]


async def test_an_expired_page_goes_on_with_the_token_of_the_410(api):
    await fill(api, 4)
    _, first = await api.call("GET", f"{MAPS}?limit=2")
    await api.make(MAPS, config_map("m-03a"))
    await api.server.store.compact(api.server.store.revision)
    status, answer = await api.call("GET", f"{MAPS}?limit=2&continue={first['metadata']['continue']}")
    assert (status, answer["reason"]) == (410, "Expired")
    _, rest = await api.call("GET", f"{MAPS}?limit=2&continue={answer['metadata']['continue']}")
    assert names(rest) == ["m-02", "m-03"]
    _, rest = await api.call("GET", f"{MAPS}?limit=2&continue={rest['metadata']['continue']}")
    assert names(rest) == ["m-03a"]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a" * 4096,
        base64.b64encode(b'{"v":"meta.k8s.io/v1","rv":5,"start":"../../secrets/x"}').decode(),
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b'{"v":"meta.k8s.io/v1","rv":"a","start":""}').decode(),
    ],
)
async def test_forged_continue_tokens(api, token):
    status, answer = await api.call("GET", f"{MAPS}?limit=2&continue={token}")
    assert (status, answer["reason"]) == (400, "BadRequest")


async def test_a_continue_token_cannot_leave_its_namespace(api):
    await api.make("/api/v1/namespaces", {"metadata": {"name": "other"}})
    await api.make("/api/v1/namespaces/other/configmaps", config_map("theirs"))
    token = base64.urlsafe_b64encode(json.dumps({"v": "meta.k8s.io/v1", "rv": -1, "start": "a"}).encode()).decode().rstrip("=")
    assert (await api.call("GET", f"{MAPS}?limit=2&continue={token}"))[0] == 400
    token = base64.urlsafe_b64encode(json.dumps({"v": "meta.k8s.io/v1", "rv": -1, "start": "other/"}).encode()).decode().rstrip("=")
    assert names((await api.call("GET", f"{MAPS}?limit=2&continue={token}"))[1]) == []


async def test_resource_versions_of_lists(api):
    made = await fill(api, 3)
    old = made[1]["metadata"]["resourceVersion"]
    assert names((await api.call("GET", f"{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact"))[1]) == ["m-00", "m-01"]
    assert names((await api.call("GET", f"{MAPS}?resourceVersion={old}&resourceVersionMatch=NotOlderThan"))[1]) == ["m-00", "m-01", "m-02"]
    assert names((await api.call("GET", f"{MAPS}?resourceVersion={old}"))[1]) == ["m-00", "m-01", "m-02"]
    assert names((await api.call("GET", f"{MAPS}?resourceVersion=0"))[1]) == ["m-00", "m-01", "m-02"]
    assert (await api.call("GET", f"{MAPS}?resourceVersion=99999"))[0] == 504
    for bad in ("resourceVersionMatch=Exact", "resourceVersion=0&resourceVersionMatch=Exact", "resourceVersion=1&resourceVersionMatch=Odd"):
        assert (await api.call("GET", f"{MAPS}?{bad}"))[0] == 422
    await api.server.store.compact(api.server.store.revision)
    assert (await api.call("GET", f"{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact"))[0] == 410


async def test_forms(api):
    await fill(api, 3)
    _, table = await api.call("GET", MAPS, headers={"Accept": TABLE})
    assert table["kind"] == "Table" and [r["cells"][:2] for r in table["rows"]] == [[f"m-{i:02d}", 1] for i in range(3)]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    _, table = await api.call("GET", f"{MAPS}/m-01?includeObject=Object", headers={"Accept": TABLE})
    assert table["rows"][0]["object"]["data"] == {"i": "1"}
    _, partial = await api.call("GET", MAPS, headers={"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"})
    assert partial["kind"] == "PartialObjectMetadataList" and all(i.keys() == {"kind", "apiVersion", "metadata"} for i in partial["items"])
    _, headers, body = await api.raw("GET", f"{MAPS}/m-01", headers={"Accept": "application/yaml"})
    assert headers["Content-Type"] == "application/yaml" and b'i: "1"\n' in body
    _, _, body = await api.raw("GET", f"{MAPS}/m-01?pretty=true")
    assert b'\n  "kind"' in body
    assert (await api.call("GET", MAPS, headers={"Accept": "application/vnd.kubernetes.protobuf;type=x,application/json"}))[0] == 200
    status, answer = await api.call("GET", MAPS, headers={"Accept": "text/html"})
    assert (status, answer["reason"]) == (406, "NotAcceptable")


async def test_large_tables_come_in_slices(api):
    for start in range(0, 250, 50):
        await asyncio.gather(*(api.make(MAPS, config_map(f"t-{i:03d}")) for i in range(start, start + 50)))
    _, table = await api.call("GET", MAPS, headers={"Accept": TABLE})
    assert [r["cells"][0] for r in table["rows"]] == [f"t-{i:03d}" for i in range(250)]


async def test_big_answers_are_compressed_for_who_takes_it(api):
    for i in range(5):
        await api.make(MAPS, config_map(f"big-{i}", k="x" * 60_000))
    _, headers, body = await api.raw("GET", MAPS, headers={"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip" and names(json.loads(gzip.decompress(body))) == [f"big-{i}" for i in range(5)]
    _, headers, body = await api.raw("GET", MAPS)
    assert "Content-Encoding" not in headers and int(headers["Content-Length"]) == len(body)
    _, headers, _ = await api.raw("GET", f"{MAPS}/big-1", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in headers


# ---- watch


async def test_watch_from_a_revision(api):
    made = await fill(api, 2)
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion={made[0]['metadata']['resourceVersion']}")
    assert await watch.types(1) == [("ADDED", "m-01")]
    await api.call("PATCH", f"{MAPS}/m-00", {"data": {"n": "1"}})
    await api.call("DELETE", f"{MAPS}/m-01")
    modified, deleted = await watch.next(), await watch.next()
    assert modified["type"] == "MODIFIED" and modified["object"]["data"] == {"i": "0", "n": "1"} and modified["object"]["kind"] == "ConfigMap"
    assert deleted["type"] == "DELETED" and deleted["object"]["data"] == {"i": "1"}
    assert int(deleted["object"]["metadata"]["resourceVersion"]) > int(modified["object"]["metadata"]["resourceVersion"])


async def test_watch_without_a_revision_shows_the_state_first(api):
    await fill(api, 3)
    for query in ("watch=1", "watch=true&resourceVersion=0"):
        watch = await api.watch(f"{MAPS}?{query}&labelSelector=parity=0")
        assert await watch.types(2) == [("ADDED", "m-00"), ("ADDED", "m-02")]
        watch.close()


async def test_watch_with_initial_events(api):
    await fill(api, 2)
    watch = await api.watch(f"{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
    assert await watch.types(2) == [("ADDED", "m-00"), ("ADDED", "m-01")]
    mark = await watch.next()
    assert mark["type"] == "BOOKMARK" and mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    await api.make(MAPS, config_map("z"))
    assert await watch.types(1) == [("ADDED", "z")]
    assert (await api.call("GET", f"{MAPS}?watch=true&sendInitialEvents=true"))[0] == 422


async def test_objects_enter_and_leave_a_selection(api):
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}&labelSelector=on")
    await api.make(MAPS, config_map("a"))
    await api.call("PATCH", f"{MAPS}/a", {"metadata": {"labels": {"on": "1"}}, "data": {"k": "in"}})
    await api.call("PATCH", f"{MAPS}/a", {"data": {"k": "changed"}})
    await api.call("PATCH", f"{MAPS}/a", {"metadata": {"labels": None}, "data": {"k": "out"}})
    await api.call("PATCH", f"{MAPS}/a", {"metadata": {"labels": {"on": "1"}}})
    await api.call("DELETE", f"{MAPS}/a")
    events = [await watch.next() for _ in range(5)]
    assert [e["type"] for e in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert [e["object"]["data"]["k"] for e in events] == ["in", "changed", "changed", "out", "out"]
    versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in events]
    assert versions == sorted(set(versions))


async def test_watchers_of_one_nodes_pods(api):
    """Node agents watch by spec.nodeName: they share a subscription, also after catching up with history."""
    await api.make("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    await api.make("/api/v1/nodes", {"metadata": {"name": "n1"}})
    start = api.server.store.revision
    await api.make(PODS, pod("p0", nodeName="n1"))
    live = await api.watch(f"/api/v1/pods?watch=true&resourceVersion={api.server.store.revision}&fieldSelector=spec.nodeName%3Dn1")
    behind = await api.watch(f"/api/v1/pods?watch=true&resourceVersion={start}&fieldSelector=spec.nodeName%3Dn1")
    assert await behind.types(1) == [("ADDED", "p0")]
    for name, node in (("p1", None), ("p2", "n2"), ("p3", "n1")):
        await api.make(PODS, pod(name, **({"nodeName": node} if node else {})))
    await api.call("POST", f"{PODS}/p1/binding", {"target": {"name": "n1"}})
    await api.call("DELETE", f"{PODS}/p3?gracePeriodSeconds=0")
    for watch in (live, behind):
        assert await watch.types(3) == [("ADDED", "p3"), ("ADDED", "p1"), ("DELETED", "p3")]
    watching = api.server.watching
    assert len(watching.feeds._feeds) == 1
    live.close()
    behind.close()
    async with asyncio.timeout(5):
        while watching.watches or watching.feeds._feeds:
            await asyncio.sleep(0.01)


async def test_one_object_watched(api):
    await fill(api, 2)
    watch = await api.watch(f"{MAPS}?watch=true&fieldSelector=metadata.name=m-01&resourceVersion={api.server.store.revision}")
    old = await api.watch("/api/v1/watch/namespaces/default/configmaps/m-01")
    assert await old.types(1) == [("ADDED", "m-01")]
    for name in ("m-00", "m-01"):
        await api.call("PATCH", f"{MAPS}/{name}", {"data": {"n": "1"}})
    assert await watch.types(1) == [("MODIFIED", "m-01")]
    assert await old.types(1) == [("MODIFIED", "m-01")]


async def test_watch_tables_and_metadata(api):
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}", Accept=TABLE)
    partial = await api.watch(
        f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}", Accept="application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    )
    await api.make(MAPS, config_map("a"))
    await api.call("DELETE", f"{MAPS}/a")
    first, second = await watch.next(), await watch.next()
    assert first["object"]["columnDefinitions"] and not second["object"]["columnDefinitions"]
    assert [(e["type"], e["object"]["rows"][0]["cells"][0]) for e in (first, second)] == [("ADDED", "a"), ("DELETED", "a")]
    event = await partial.next()
    assert event["object"]["kind"] == "PartialObjectMetadata" and "data" not in event["object"]


async def test_a_start_no_longer_in_history_is_an_error_event(api):
    await fill(api, 3)
    await api.server.store.compact(api.server.store.revision)
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion=2")
    event = await watch.next()
    assert event["type"] == "ERROR" and (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert await watch.next() is None


async def test_watches_end_after_their_time_with_a_bookmark(api):
    watch = await api.watch(f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}&timeoutSeconds=1&allowWatchBookmarks=true")
    made = await api.make("/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})
    event = await watch.next()
    assert event["type"] == "BOOKMARK" and event["object"]["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert await watch.next() is None
    assert not api.server.watching.watches


async def test_a_long_state_waits_for_a_slow_reader_and_loses_nothing(api):
    await asyncio.gather(*(api.make(MAPS, config_map(f"w-{i:02d}", k="x" * 200_000)) for i in range(40)))
    watch = await api.watch(f"{MAPS}?watch=true")
    await asyncio.gather(*(api.call("PATCH", f"{MAPS}/w-{i:02d}", {"data": {"k": "short"}}) for i in range(40)))
    seen = {}
    lines = b""
    async with asyncio.timeout(20):
        while sum(v == "short" for v in seen.values()) < 40:
            lines += await watch.response.content.readany()
            *whole, lines = lines.split(b"\n")
            for line in whole:
                event = json.loads(line)
                seen[event["object"]["metadata"]["name"]] = event["object"]["data"]["k"]
    assert len(seen) == 40


async def test_event_and_table_frames_are_shared(api):
    watches = [await api.watch(f"{MAPS}?watch=true&resourceVersion={api.server.store.revision}") for _ in range(3)]
    await api.make(MAPS, config_map("a"))
    assert [await w.types(1) for w in watches] == [[("ADDED", "a")]] * 3


async def test_lists_by_label_of_many_objects_follow_every_write(api, monkeypatch):
    """With an index or without, a list by label is the same list."""
    from fastkube.server.registry import indexes

    monkeypatch.setattr(indexes, "OBJECTS_MIN", 5)
    monkeypatch.setattr(indexes, "INDEXES_MAX", 2)
    chance = random.Random(3)
    await api.make("/api/v1/namespaces", {"metadata": {"name": "other"}})
    for _ in range(120):
        namespace, name = chance.choice(["default", "other"]), f"m{chance.randrange(15)}"
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        labels = {key: chance.choice("xyz") for key in ("a", "b", "c") if chance.random() < 0.7}
        if chance.random() < 0.3:
            await api.call("DELETE", f"{path}/{name}")
        elif (await api.call("PUT", f"{path}/{name}", config_map(name, labels)))[0] == 404:
            await api.make(path, config_map(name, labels))
        key, values = chance.choice("abc"), sorted(chance.sample("xyz", chance.randint(1, 2)))
        scope = chance.choice(["/api/v1/configmaps", MAPS])
        everything = (await api.call("GET", scope))[1]["items"]
        listed = (await api.call("GET", f"{scope}?labelSelector={key}%20in%20({','.join(values)})"))[1]["items"]
        assert listed == [item for item in everything if (item["metadata"].get("labels") or {}).get(key) in values]
    assert api.server.endpoint(api.server.served.find("", "v1", "configmaps")).indexes._indexes
