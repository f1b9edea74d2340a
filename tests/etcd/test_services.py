"""What etcdctl does not reach: the server's own locks and elections, progress of watches, JWT, answers that the real one gives too."""

from __future__ import annotations

import json
import queue
import threading
import time
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fastkube.store.etcd import messages as m
from fastkube.store.etcd.auth import Ranges
from tests.etcd.test_auth_same_answers import enable, log_in
from tests.etcd.test_same_answers import Watching, asked

SECONDS_MAX = 30.0


def in_background(call) -> queue.Queue:
    done: queue.Queue = queue.Queue()

    def run() -> None:
        try:
            done.put(call())
        except grpc.RpcError as e:
            done.put(e)

    threading.Thread(target=run, daemon=True).start()
    return done


@pytest.mark.parametrize("which", ["etcd", "ours"])
def test_locks(launch, which: str) -> None:
    client = launch(which).client()
    leases = [client.LeaseGrant(TTL=60).ID for _ in range(2)]
    first = client.Lock(name=b"l", lease=leases[0])
    assert first.key == b"l/%x" % leases[0]
    assert client.Lock(name=b"l", lease=leases[0]).key == first.key  # once more by the same session
    second = in_background(lambda: client.Lock(name=b"l", lease=leases[1]))
    with pytest.raises(queue.Empty):
        second.get(timeout=0.5)
    client.Unlock(key=first.key)
    assert second.get(timeout=SECONDS_MAX).key == b"l/%x" % leases[1]
    third = in_background(lambda: client.Lock(name=b"l", lease=leases[0]))
    client.LeaseRevoke(ID=leases[1])
    assert third.get(timeout=SECONDS_MAX).key == first.key


@pytest.mark.parametrize("which", ["etcd", "ours"])
def test_elections(launch, which: str) -> None:
    client = launch(which).client()
    leases = [client.LeaseGrant(TTL=60).ID for _ in range(2)]
    assert asked(client, "Leader", m.LeaderRequest(name=b"e"))[0] == "error"
    leader = client.Campaign(name=b"e", lease=leases[0], value=b"one").leader
    assert (leader.name, leader.key, leader.lease) == (b"e", b"e/%x" % leases[0], leases[0]) and leader.rev > 0
    observed = client.Observe(name=b"e")
    assert next(observed).kv.value == b"one"
    client.Proclaim(leader=leader, value=b"uno")
    assert next(observed).kv.value == b"uno" and client.Leader(name=b"e").kv.value == b"uno"
    other = in_background(lambda: client.Campaign(name=b"e", lease=leases[1], value=b"two"))
    with pytest.raises(queue.Empty):
        other.get(timeout=0.5)
    client.Resign(leader=leader)
    assert other.get(timeout=SECONDS_MAX).leader.key == b"e/%x" % leases[1]
    assert next(observed).kv.value == b"two"
    assert asked(client, "Proclaim", m.ProclaimRequest(leader=leader, value=b"late"))[0] == "error"
    observed.cancel()


def test_a_caller_that_goes_leaves_the_queue(ours) -> None:
    client = ours.client()
    first = client.Lock(name=b"gone", lease=client.LeaseGrant(TTL=60).ID)
    waiting = client.channel.unary_unary("/v3lockpb.Lock/Lock", m.LockRequest.SerializeToString, m.LockResponse.FromString)
    with pytest.raises(grpc.RpcError):
        waiting(m.LockRequest(name=b"gone", lease=client.LeaseGrant(TTL=60).ID), timeout=0.5)
    deadline = time.monotonic() + SECONDS_MAX
    while client.Range(key=b"gone/", range_end=b"gone0").count != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.Unlock(key=first.key)


def test_progress_of_watches(launch) -> None:
    client = launch("ours", "--unsafe-no-fsync", "--watch-progress-notify-interval=300ms").client()
    watching = Watching(client)
    watching.send(create_request=m.WatchCreateRequest(key=b"p", progress_notify=True, watch_id=5))
    watching.until(lambda w: len(w.control.get(5, ())) >= 3, "notifications")
    assert watching.control[5][1] == (False, False, 0, "")
    watching.send(progress_request=m.WatchProgressRequest())
    watching.until(lambda w: -1 in w.control, "progress that was asked for")
    watching.close()


def test_jwt(launch, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = tmp_path / "key", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    client = launch("ours", f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m").client()
    enable([client])
    assert log_in([client], "u1", "pu1") == ["in"] and client.token.count(".") == 2
    assert asked(client, "Put", m.PutRequest(key=b"b", value=b"1"))[0] == "ok"
    assert asked(client, "Put", m.PutRequest(key=b"z", value=b"1"))[1] == "PERMISSION_DENIED"
    client.token += "x"
    assert asked(client, "Put", m.PutRequest(key=b"b", value=b"1"))[1] == "UNAUTHENTICATED"


def test_the_common_name_of_a_certificate_is_a_user_with_client_cert_auth_only(launch) -> None:
    client = launch("ours").client()
    enable([client])
    assert asked(client, "Put", m.PutRequest(key=b"b"))[2] == "etcdserver: user name is empty"


def test_ranges_are_covered_by_their_union() -> None:
    ranges = Ranges([(b"a", b"c"), (b"c", b"e"), (b"x", b""), (b"y", b"\0")])
    assert ranges.cover(b"a", b"e") and ranges.cover(b"b", b"") and ranges.cover(b"x", b"") and ranges.cover(b"z", b"\0") and ranges.cover(b"y", b"z")
    assert not ranges.cover(b"a", b"f") and not ranges.cover(b"x", b"y") and not ranges.cover(b"a", b"\0") and not ranges.cover(b"e", b"")


@pytest.mark.parametrize("ttl", [1, 2, 5])
def test_short_leases_are_as_long_as_etcds(ours, theirs, ttl: int) -> None:
    answers = [server.client().LeaseGrant(TTL=ttl) for server in (ours, theirs)]
    assert answers[0].TTL == answers[1].TTL


def test_unknown_methods_and_corrupt_messages(ours) -> None:
    channel = ours.client().channel
    for path, body, code in (("/etcdserverpb.KV/Nothing", b"", "UNIMPLEMENTED"), ("/etcdserverpb.KV/Put", b"\xff\xff", "INTERNAL")):
        with pytest.raises(grpc.RpcError) as e:
            channel.unary_unary(path)(body)
        assert e.value.code().name == code


def test_a_damaged_state_file_is_refused(launch) -> None:
    server = launch("ours")
    server.ctl("put", "a", "1")
    server.kill()
    state = server.directory / "etcd.json"
    whole = state.read_text()
    state.write_text(whole[: len(whole) // 2])
    server.start()
    assert server.process.wait(SECONDS_MAX) == 1 and "is damaged" in (server.directory.parent / "log").read_text()
    state.write_text(json.dumps(json.loads(whole)))
    server.start()
    server.wait()
    assert server.ctl("get", "a") == "a\n1\n"
