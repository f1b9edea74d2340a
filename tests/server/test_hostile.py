"""Bad input over TLS: the right Status or a closed connection, no traceback to the client, and the server goes on."""

import asyncio
import json
import random
import ssl

import pytest

from tests.server.conftest import ADMIN, MAPS, config_map


async def wire(api):
    return await asyncio.open_connection("127.0.0.1", api.port, ssl=ssl.create_default_context(cafile=str(api.pki.ca.cert)))


async def alive(api):
    return await api.call("GET", "/readyz") == (200, "ok")


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b"{", None), (b"null", None), (b'"text"', None), (b"[" * 100_000, None), (b'{"a":' * 5000 + b"1" + b"}" * 5000, None), (b"\xff\xfe\x00", None), (b'{"metadata":null}', None),
        (b'{"metadata":{"name":5}}', None), (b'{"metadata":[]}', None), (b'{"metadata":{"labels":{"a":{}}}}', None), (b'{"data":{"k":1e999}}', None), (b"a: &a [*a]", "application/yaml"),
        (b"a: &x [1,1,1,1]\n" + b"".join(b"b%d: &y%d [*x,*x,*x,*x]\n" % (i, i) for i in range(10)), "application/yaml"), (b"!!python/object/apply:os.system ['true']", "application/yaml"),
        (b"- - - - : : :", "application/yaml"), (b"\x00k8s\x00\xff\xff\xff", "application/vnd.kubernetes.protobuf"), (b"k8s\x00", "application/vnd.kubernetes.protobuf"),
    ],
)  # fmt: skip
async def test_bodies(api, body, type_):
    status, answer = await api.call("POST", MAPS, body, type=type_)
    assert 400 <= status < 500 and answer["kind"] == "Status" and "Traceback" not in json.dumps(answer)
    assert await alive(api)


async def test_a_body_too_large_is_a_413(api):
    status, answer = await api.call("POST", MAPS, config_map("a", k="x" * (4 << 20)))
    assert (status, answer["reason"], answer["code"]) == (413, "RequestEntityTooLarge", 413)
    assert await alive(api)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/default/configmaps/..%2f..%2fsecrets", "/api/v1/namespaces/default/configmaps/a%00b", "/api/v1/namespaces/../../etc/passwd", "//api//v1//pods", "/api/v1/" + "a/" * 500,
        "/api/v1/namespaces/default/configmaps/" + "a" * 5000, "/api/v1/namespaces/%ff/pods", "/api", "/apis/", "/api/v1/namespaces/default/pods/x/log/y/z", "/apis/a/b/c/d/e/f/g/h",
        "/api/v1/watch", "/api/v1/watch/", "/api/v1/namespaces/", "/healthz/../metrics", "/%2e%2e/", "/openapi/v3/../../x", "/api/v1/namespaces/default/pods?" + "&".join(f"a{i}=1" for i in range(3000)),
        "/api/v1/namespaces/default/configmaps?limit=99999999999999999999", "/api/v1/namespaces/default/configmaps?limit=-5", "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=-1",
        "/api/v1/namespaces/default/configmaps?labelSelector=%00", "/api/v1/namespaces/default/configmaps?labelSelector=" + "a," * 5000, "/api/v1/namespaces/default/configmaps?fieldSelector=%5C",
        "/api/v1/namespaces/default/configmaps?resourceVersion=-1", "/api/v1/namespaces/default/configmaps?resourceVersion=9999999999999999999999",
    ],
)  # fmt: skip
async def test_paths_and_queries(api, path):
    reader, writer = await wire(api)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nConnection: close\r\n\r\n".encode())
    raw = await asyncio.wait_for(reader.read(), 10)
    status = int(raw.split(b" ", 2)[1])
    assert status < 500 and b"Traceback" not in raw
    writer.close()
    assert await alive(api)


async def test_mutated_requests(api):
    """Bytes of real requests, spoilt at random: an answer or a closed connection, never a 5xx that is ours."""
    chance = random.Random(7)
    body = json.dumps(config_map("fuzz", k="v")).encode()
    seeds = [
        b"POST %b?fieldManager=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (MAPS.encode(), ADMIN.encode(), len(body), body),
        b"GET %b?limit=5&labelSelector=a%%3Db&resourceVersion=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nAccept: application/json;as=Table;g=meta.k8s.io;v=v1\r\n\r\n"
        % (MAPS.encode(), ADMIN.encode()),
        b'DELETE %b/fuzz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: 27\r\n\r\n{"gracePeriodSeconds":10  }'
        % (MAPS.encode(), ADMIN.encode()),
    ]

    async def one(data):
        reader, writer = await wire(api)
        writer.write(data)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 0.5)
            assert b" 500 " not in head, data
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass  # closed, or waiting for the rest
        finally:
            writer.transport.abort()

    cases = []
    for _ in range(150):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data))
            what = chance.randrange(4)
            if what == 0:
                data[at] = chance.randrange(256)
            elif what == 1:
                del data[at : at + chance.randint(1, 8)]
            elif what == 2:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
            else:
                data[at:at] = data[at : at + 40]
        cases.append(bytes(data))
    for start in range(0, len(cases), 30):
        await asyncio.gather(*(one(c) for c in cases[start : start + 30]))
    assert await alive(api)


async def test_many_half_open_connections_do_not_stop_the_others(api):
    opened = [await wire(api) for _ in range(100)]
    for _, writer in opened:
        writer.write(b"GET /api HTTP/1.1\r\nHos")
    assert await alive(api)
    for connection in list(api.server._http.connections):
        connection.sweep(api.server._http.now() + 33)
    for reader, writer in opened:
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert await alive(api)


async def test_a_watcher_that_does_not_read_is_cut_off(api, monkeypatch):
    from fastkube.server.handlers import watch

    monkeypatch.setattr(watch, "WATCH_BACKLOG_EVENTS_MAX", 20)
    reader, writer = await wire(api)
    writer.write(f"GET {MAPS}?watch=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    reader._transport.pause_reading()
    await api.make(MAPS, config_map("big"))
    async with asyncio.timeout(30):
        i = 0
        while api.server.watching.watches:
            i += 1
            await api.call("PATCH", f"{MAPS}/big", {"data": {"k": f"{i}" + "x" * 500_000}})
    assert i > 20 and await alive(api)
    writer.transport.abort()


async def test_too_many_at_once_are_told_to_come_back(api):
    pipeline = api.server._pipeline
    pipeline.fairness = None  # the plain bound, which fairness stands in for
    pipeline.inflight_max = 1
    await api.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {
        "metadata": {"name": "joe"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [{"kind": "User", "name": "joe"}],
    })  # fmt: skip
    answers = await asyncio.gather(*(api.raw("POST", MAPS, config_map(f"m{i}"), token="joe-token") for i in range(40)))
    codes = {status for status, _, _ in answers}
    assert codes == {201, 429}
    refused = next(a for a in answers if a[0] == 429)
    assert refused[1]["Retry-After"] == "1" and json.loads(refused[2])["reason"] == "TooManyRequests"
    assert (await api.call("POST", MAPS, config_map("calm"), token="joe-token"))[0] == 201


async def test_what_goes_wrong_inside_is_an_incident_in_the_log(api, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("inner secret")

    monkeypatch.setattr(api.server.store, "get", fail)
    status, answer = await api.call("GET", f"{MAPS}/a")
    assert (status, answer["reason"]) == (500, "InternalError") and "inner secret" not in json.dumps(answer)
    assert "incident" in answer["message"]
