"""Random administration of users and roles, and requests by those users, into a real etcd and into ours: same answers, same refusals."""

from __future__ import annotations

import random

import grpc
import pytest

from fastkube.store.etcd import messages as m
from tests.etcd.test_same_answers import asked, plain

USERS = ["root", "u1", "u2", "u3"]
ROLES = ["root", "r1", "r2"]
KEYS = [b"a", b"b", b"b1", b"c", b"d"]
ENDS = [b"", b"", b"b", b"c", b"d", b"\0"]
STEPS = 120


class Administration:
    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def permission(self):
        return m.Permission(permType=self.r.randint(0, 2), key=self.r.choice(KEYS), range_end=self.r.choice(ENDS))

    def next(self):
        r = self.r
        user, role = r.choice(USERS), r.choice(ROLES)
        return r.choice(
            [
                ("UserAdd", m.AuthUserAddRequest(name=user, password="p" + user)),
                ("UserAdd", m.AuthUserAddRequest(name=r.choice([user, ""]), options={"no_password": True})),
                ("UserGet", m.AuthUserGetRequest(name=user)),
                ("UserList", m.AuthUserListRequest()),
                ("UserDelete", m.AuthUserDeleteRequest(name=r.choice(["u3", user]))),
                ("UserGrantRole", m.AuthUserGrantRoleRequest(user=user, role=role)),
                ("UserGrantRole", m.AuthUserGrantRoleRequest(user=user, role=r.choice(["r1", "r2", "none"]))),
                ("UserRevokeRole", m.AuthUserRevokeRoleRequest(name=user, role=role)),
                ("RoleAdd", m.AuthRoleAddRequest(name=r.choice([role, role, ""]))),
                ("RoleGet", m.AuthRoleGetRequest(role=role)),
                ("RoleList", m.AuthRoleListRequest()),
                ("RoleDelete", m.AuthRoleDeleteRequest(role=r.choice(["r2", role]))),
                ("RoleGrantPermission", m.AuthRoleGrantPermissionRequest(name=role, perm=self.permission())),
                ("RoleGrantPermission", m.AuthRoleGrantPermissionRequest(name=r.choice(["r1", "r2"]), perm=self.permission())),
                ("RoleRevokePermission", m.AuthRoleRevokePermissionRequest(role=role, key=r.choice(KEYS), range_end=r.choice(ENDS))),
                ("AuthDisable", m.AuthDisableRequest()),
            ]
            + [self.request() for _ in range(10)]
        )

    def request(self):
        r = self.r
        key, end = r.choice(KEYS), r.choice(ENDS)
        read, write = m.RangeRequest(key=key, range_end=end), m.PutRequest(key=r.choice(KEYS), value=b"1", prev_kv=r.random() < 0.3)
        delete = m.DeleteRangeRequest(key=key, range_end=end, prev_kv=r.random() < 0.3)
        return r.choice(
            [
                ("Range", read),
                ("Put", write),
                ("DeleteRange", delete),
                (
                    "Txn",
                    m.TxnRequest(
                        compare=[m.Compare(key=key, range_end=end)], success=[m.RequestOp(request_put=write)], failure=[m.RequestOp(request_range=read)]
                    ),
                ),
                ("LeaseLeases", m.LeaseLeasesRequest()),
                ("MemberList", m.MemberListRequest()),
            ]
        )


def log_in(clients, user: str, password: str) -> list[str]:
    """-> what each said; whoever is in uses the token from here on."""
    said = []
    for client in clients:
        client.token = ""
        try:
            client.token = client.Authenticate(name=user, password=password).token
            said.append("in")
        except grpc.RpcError as e:
            said.append(e.details())
    return said


def enable(clients) -> None:
    for client in clients:
        for method, fields in (
            ("RoleAdd", {"name": "root"}),
            ("UserAdd", {"name": "root", "password": "proot"}),
            ("UserGrantRole", {"user": "root", "role": "root"}),
            ("UserAdd", {"name": "u1", "password": "pu1"}),
            ("RoleAdd", {"name": "r1"}),
            ("UserGrantRole", {"user": "u1", "role": "r1"}),
            ("RoleGrantPermission", {"name": "r1", "perm": m.Permission(permType=2, key=b"b", range_end=b"c")}),
            ("AuthEnable", {}),
        ):
            getattr(client, method)(**fields)


def compared(answer):
    """Members differ by nature."""
    if answer[0] == "ok" and isinstance(answer[1], m.MemberListResponse):
        return "ok", len(answer[1].members)
    return plain(answer)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_administration_without_auth(launch, seed: int) -> None:
    clients = launch("etcd").client(), launch("ours", "--unsafe-no-fsync").client()
    generator = Administration(seed)
    for step in range(STEPS):
        method, request = generator.next()
        answers = [compared(asked(client, method, request)) for client in clients]
        assert answers[1] == answers[0], f"seed {seed}, step {step}: {method} {request}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_administration_and_requests_with_auth(launch, seed: int) -> None:
    clients = launch("etcd").client(), launch("ours", "--unsafe-no-fsync").client()
    enable(clients)
    generator = Administration(seed)
    for step in range(STEPS):
        if step % 8 == 0:
            user = generator.r.choice([*USERS[:2], *USERS])
            said = log_in(clients, user, generator.r.choice(["p" + user, "p" + user, "wrong"]))
            assert said[0] == said[1], f"seed {seed}, step {step}: login of {user}"
        if generator.r.random() < 0.03:
            for client in clients:
                client.token = "made up.1"
        method, request = generator.next()
        if method == "AuthDisable":
            continue
        answers = [compared(asked(client, method, request)) for client in clients]
        assert answers[1] == answers[0], f"seed {seed}, step {step}: {method} {request}"
    assert log_in(clients, "root", "proot") == ["in", "in"]
    answers = [compared(asked(client, "AuthDisable", m.AuthDisableRequest())) for client in clients]
    assert answers[1] == answers[0]
