"""The messages of etcd's v3 API, built at import from the table below (facts of etcd 3.6's rpc.proto, kv.proto, auth.proto, v3lock, v3election).

They live in a descriptor pool of their own, so that another etcd client in the same process does not collide with them. A line of the table is
`Message: field number type, ...`; `*` repeats a field, `a|b` puts it into oneof `a`; a type is a scalar (b bytes, s string, i int64, u uint64, w uint32,
t bool), or another message or enumeration; `Outer.Inner` nests.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_ENUMS = {
    "mvccpb.Event.EventType": "PUT DELETE",
    "authpb.Permission.Type": "READ WRITE READWRITE",
    "etcdserverpb.AlarmType": "NONE NOSPACE CORRUPT",
    "etcdserverpb.RangeRequest.SortOrder": "NONE ASCEND DESCEND",
    "etcdserverpb.RangeRequest.SortTarget": "KEY VERSION CREATE MOD VALUE",
    "etcdserverpb.Compare.CompareResult": "EQUAL GREATER LESS NOT_EQUAL",
    "etcdserverpb.Compare.CompareTarget": "VERSION CREATE MOD VALUE LEASE",
    "etcdserverpb.WatchCreateRequest.FilterType": "NOPUT NODELETE",
    "etcdserverpb.AlarmRequest.AlarmAction": "GET ACTIVATE DEACTIVATE",
    "etcdserverpb.DowngradeRequest.DowngradeAction": "VALIDATE ENABLE CANCEL",
}

_MESSAGES = {
    "mvccpb": """
KeyValue: key 1 b, create_revision 2 i, mod_revision 3 i, version 4 i, value 5 b, lease 6 i
Event: type 1 mvccpb.Event.EventType, kv 2 mvccpb.KeyValue, prev_kv 3 mvccpb.KeyValue
""",
    "authpb": """
UserAddOptions: no_password 1 t
User: name 1 b, password 2 b, roles 3 *s, options 4 authpb.UserAddOptions
Permission: permType 1 authpb.Permission.Type, key 2 b, range_end 3 b
Role: name 1 b, keyPermission 2 *authpb.Permission
""",
    "etcdserverpb": """
ResponseHeader: cluster_id 1 u, member_id 2 u, revision 3 i, raft_term 4 u
RangeRequest: key 1 b, range_end 2 b, limit 3 i, revision 4 i, sort_order 5 RangeRequest.SortOrder, sort_target 6 RangeRequest.SortTarget, serializable 7 t, keys_only 8 t, count_only 9 t, min_mod_revision 10 i, max_mod_revision 11 i, min_create_revision 12 i, max_create_revision 13 i
RangeResponse: header 1 ResponseHeader, kvs 2 *mvccpb.KeyValue, more 3 t, count 4 i
PutRequest: key 1 b, value 2 b, lease 3 i, prev_kv 4 t, ignore_value 5 t, ignore_lease 6 t
PutResponse: header 1 ResponseHeader, prev_kv 2 mvccpb.KeyValue
DeleteRangeRequest: key 1 b, range_end 2 b, prev_kv 3 t
DeleteRangeResponse: header 1 ResponseHeader, deleted 2 i, prev_kvs 3 *mvccpb.KeyValue
RequestOp: request|request_range 1 RangeRequest, request|request_put 2 PutRequest, request|request_delete_range 3 DeleteRangeRequest, request|request_txn 4 TxnRequest
ResponseOp: response|response_range 1 RangeResponse, response|response_put 2 PutResponse, response|response_delete_range 3 DeleteRangeResponse, response|response_txn 4 TxnResponse
Compare: result 1 Compare.CompareResult, target 2 Compare.CompareTarget, key 3 b, target_union|version 4 i, target_union|create_revision 5 i, target_union|mod_revision 6 i, target_union|value 7 b, target_union|lease 8 i, range_end 64 b
TxnRequest: compare 1 *Compare, success 2 *RequestOp, failure 3 *RequestOp
TxnResponse: header 1 ResponseHeader, succeeded 2 t, responses 3 *ResponseOp
CompactionRequest: revision 1 i, physical 2 t
CompactionResponse: header 1 ResponseHeader
HashRequest:
HashResponse: header 1 ResponseHeader, hash 2 w
HashKVRequest: revision 1 i
HashKVResponse: header 1 ResponseHeader, hash 2 w, compact_revision 3 i, hash_revision 4 i
SnapshotRequest:
SnapshotResponse: header 1 ResponseHeader, remaining_bytes 2 u, blob 3 b, version 4 s
WatchRequest: request_union|create_request 1 WatchCreateRequest, request_union|cancel_request 2 WatchCancelRequest, request_union|progress_request 3 WatchProgressRequest
WatchCreateRequest: key 1 b, range_end 2 b, start_revision 3 i, progress_notify 4 t, filters 5 *WatchCreateRequest.FilterType, prev_kv 6 t, watch_id 7 i, fragment 8 t
WatchCancelRequest: watch_id 1 i
WatchProgressRequest:
WatchResponse: header 1 ResponseHeader, watch_id 2 i, created 3 t, canceled 4 t, compact_revision 5 i, cancel_reason 6 s, fragment 7 t, events 11 *mvccpb.Event
LeaseGrantRequest: TTL 1 i, ID 2 i
LeaseGrantResponse: header 1 ResponseHeader, ID 2 i, TTL 3 i, error 4 s
LeaseRevokeRequest: ID 1 i
LeaseRevokeResponse: header 1 ResponseHeader
LeaseKeepAliveRequest: ID 1 i
LeaseKeepAliveResponse: header 1 ResponseHeader, ID 2 i, TTL 3 i
LeaseTimeToLiveRequest: ID 1 i, keys 2 t
LeaseTimeToLiveResponse: header 1 ResponseHeader, ID 2 i, TTL 3 i, grantedTTL 4 i, keys 5 *b
LeaseLeasesRequest:
LeaseStatus: ID 1 i
LeaseLeasesResponse: header 1 ResponseHeader, leases 2 *LeaseStatus
Member: ID 1 u, name 2 s, peerURLs 3 *s, clientURLs 4 *s, isLearner 5 t
MemberAddRequest: peerURLs 1 *s, isLearner 2 t
MemberAddResponse: header 1 ResponseHeader, member 2 Member, members 3 *Member
MemberRemoveRequest: ID 1 u
MemberRemoveResponse: header 1 ResponseHeader, members 2 *Member
MemberUpdateRequest: ID 1 u, peerURLs 2 *s
MemberUpdateResponse: header 1 ResponseHeader, members 2 *Member
MemberListRequest: linearizable 1 t
MemberListResponse: header 1 ResponseHeader, members 2 *Member
MemberPromoteRequest: ID 1 u
MemberPromoteResponse: header 1 ResponseHeader, members 2 *Member
DefragmentRequest:
DefragmentResponse: header 1 ResponseHeader
MoveLeaderRequest: targetID 1 u
MoveLeaderResponse: header 1 ResponseHeader
AlarmRequest: action 1 AlarmRequest.AlarmAction, memberID 2 u, alarm 3 AlarmType
AlarmMember: memberID 1 u, alarm 2 AlarmType
AlarmResponse: header 1 ResponseHeader, alarms 2 *AlarmMember
DowngradeRequest: action 1 DowngradeRequest.DowngradeAction, version 2 s
DowngradeResponse: header 1 ResponseHeader, version 2 s
DowngradeInfo: enabled 1 t, targetVersion 2 s
StatusRequest:
StatusResponse: header 1 ResponseHeader, version 2 s, dbSize 3 i, leader 4 u, raftIndex 5 u, raftTerm 6 u, raftAppliedIndex 7 u, errors 8 *s, dbSizeInUse 9 i, isLearner 10 t, storageVersion 11 s, dbSizeQuota 12 i, downgradeInfo 13 DowngradeInfo
AuthEnableRequest:
AuthEnableResponse: header 1 ResponseHeader
AuthDisableRequest:
AuthDisableResponse: header 1 ResponseHeader
AuthStatusRequest:
AuthStatusResponse: header 1 ResponseHeader, enabled 2 t, authRevision 3 u
AuthenticateRequest: name 1 s, password 2 s
AuthenticateResponse: header 1 ResponseHeader, token 2 s
AuthUserAddRequest: name 1 s, password 2 s, options 3 authpb.UserAddOptions, hashedPassword 4 s
AuthUserAddResponse: header 1 ResponseHeader
AuthUserGetRequest: name 1 s
AuthUserGetResponse: header 1 ResponseHeader, roles 2 *s
AuthUserListRequest:
AuthUserListResponse: header 1 ResponseHeader, users 2 *s
AuthUserDeleteRequest: name 1 s
AuthUserDeleteResponse: header 1 ResponseHeader
AuthUserChangePasswordRequest: name 1 s, password 2 s, hashedPassword 3 s
AuthUserChangePasswordResponse: header 1 ResponseHeader
AuthUserGrantRoleRequest: user 1 s, role 2 s
AuthUserGrantRoleResponse: header 1 ResponseHeader
AuthUserRevokeRoleRequest: name 1 s, role 2 s
AuthUserRevokeRoleResponse: header 1 ResponseHeader
AuthRoleAddRequest: name 1 s
AuthRoleAddResponse: header 1 ResponseHeader
AuthRoleGetRequest: role 1 s
AuthRoleGetResponse: header 1 ResponseHeader, perm 2 *authpb.Permission
AuthRoleListRequest:
AuthRoleListResponse: header 1 ResponseHeader, roles 2 *s
AuthRoleDeleteRequest: role 1 s
AuthRoleDeleteResponse: header 1 ResponseHeader
AuthRoleGrantPermissionRequest: name 1 s, perm 2 authpb.Permission
AuthRoleGrantPermissionResponse: header 1 ResponseHeader
AuthRoleRevokePermissionRequest: role 1 s, key 2 b, range_end 3 b
AuthRoleRevokePermissionResponse: header 1 ResponseHeader
""",
    "leasepb": """
Lease: ID 1 i, TTL 2 i, RemainingTTL 3 i
""",
    "v3lockpb": """
LockRequest: name 1 b, lease 2 i
LockResponse: header 1 etcdserverpb.ResponseHeader, key 2 b
UnlockRequest: key 1 b
UnlockResponse: header 1 etcdserverpb.ResponseHeader
""",
    "v3electionpb": """
LeaderKey: name 1 b, key 2 b, rev 3 i, lease 4 i
CampaignRequest: name 1 b, lease 2 i, value 3 b
CampaignResponse: header 1 etcdserverpb.ResponseHeader, leader 2 LeaderKey
LeaderRequest: name 1 b
LeaderResponse: header 1 etcdserverpb.ResponseHeader, kv 2 mvccpb.KeyValue
ResignRequest: leader 1 LeaderKey
ResignResponse: header 1 etcdserverpb.ResponseHeader
ProclaimRequest: leader 1 LeaderKey, value 2 b
ProclaimResponse: header 1 etcdserverpb.ResponseHeader
""",
}

# service -> method -> (request, response) without package; << and >> mark streams of requests and of answers.
SERVICES = {
    "etcdserverpb.KV": "Range RangeRequest RangeResponse, Put PutRequest PutResponse, DeleteRange DeleteRangeRequest DeleteRangeResponse, Txn TxnRequest TxnResponse, Compact CompactionRequest CompactionResponse",
    "etcdserverpb.Watch": "Watch <<WatchRequest >>WatchResponse",
    "etcdserverpb.Lease": "LeaseGrant LeaseGrantRequest LeaseGrantResponse, LeaseRevoke LeaseRevokeRequest LeaseRevokeResponse, LeaseKeepAlive <<LeaseKeepAliveRequest >>LeaseKeepAliveResponse, LeaseTimeToLive LeaseTimeToLiveRequest LeaseTimeToLiveResponse, LeaseLeases LeaseLeasesRequest LeaseLeasesResponse",
    "etcdserverpb.Cluster": "MemberAdd MemberAddRequest MemberAddResponse, MemberRemove MemberRemoveRequest MemberRemoveResponse, MemberUpdate MemberUpdateRequest MemberUpdateResponse, MemberList MemberListRequest MemberListResponse, MemberPromote MemberPromoteRequest MemberPromoteResponse",
    "etcdserverpb.Maintenance": "Alarm AlarmRequest AlarmResponse, Status StatusRequest StatusResponse, Defragment DefragmentRequest DefragmentResponse, Hash HashRequest HashResponse, HashKV HashKVRequest HashKVResponse, Snapshot SnapshotRequest >>SnapshotResponse, MoveLeader MoveLeaderRequest MoveLeaderResponse, Downgrade DowngradeRequest DowngradeResponse",
    "etcdserverpb.Auth": "AuthEnable AuthEnableRequest AuthEnableResponse, AuthDisable AuthDisableRequest AuthDisableResponse, AuthStatus AuthStatusRequest AuthStatusResponse, Authenticate AuthenticateRequest AuthenticateResponse, UserAdd AuthUserAddRequest AuthUserAddResponse, UserGet AuthUserGetRequest AuthUserGetResponse, UserList AuthUserListRequest AuthUserListResponse, UserDelete AuthUserDeleteRequest AuthUserDeleteResponse, UserChangePassword AuthUserChangePasswordRequest AuthUserChangePasswordResponse, UserGrantRole AuthUserGrantRoleRequest AuthUserGrantRoleResponse, UserRevokeRole AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse, RoleAdd AuthRoleAddRequest AuthRoleAddResponse, RoleGet AuthRoleGetRequest AuthRoleGetResponse, RoleList AuthRoleListRequest AuthRoleListResponse, RoleDelete AuthRoleDeleteRequest AuthRoleDeleteResponse, RoleGrantPermission AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse, RoleRevokePermission AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse",
    "v3lockpb.Lock": "Lock LockRequest LockResponse, Unlock UnlockRequest UnlockResponse",
    "v3electionpb.Election": "Campaign CampaignRequest CampaignResponse, Proclaim ProclaimRequest ProclaimResponse, Leader LeaderRequest LeaderResponse, Observe LeaderRequest >>LeaderResponse, Resign ResignRequest ResignResponse",
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"b": _Field.TYPE_BYTES, "s": _Field.TYPE_STRING, "i": _Field.TYPE_INT64, "u": _Field.TYPE_UINT64, "w": _Field.TYPE_UINT32, "t": _Field.TYPE_BOOL}


def _field(message: Any, package: str, text: str) -> None:
    name, number, kind = text.split()
    oneof, _, name = name.rpartition("|")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if oneof:
        if not any(declared.name == oneof for declared in message.oneof_decl):
            message.oneof_decl.add(name=oneof)
        field.oneof_index = 0
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
        kind = kind[1:]
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    full = kind if kind.split(".")[0] in _MESSAGES else f"{package}.{kind}"
    field.type = _Field.TYPE_ENUM if full in _ENUMS else _Field.TYPE_MESSAGE
    field.type_name = f".{full}"


def _build() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    built: dict[str, Any] = {}
    for package, table in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3", dependency=[f"{p}.proto" for p in built])
        for line in table.strip().splitlines():
            name, _, fields = line.partition(":")
            message = file.message_type.add(name=name)
            for text in filter(None, map(str.strip, fields.split(","))):
                _field(message, package, text)
        for full, values in _ENUMS.items():
            owner, *path = full.split(".")
            if owner == package:
                holder = file if len(path) == 1 else next(m for m in file.message_type if m.name == path[0])
                enum = holder.enum_type.add(name=path[-1])
                for number, value in enumerate(values.split()):
                    enum.value.add(name=value, number=number)
        pool.Add(file)
        built[package] = [m.name for m in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for package, names in built.items() for name in names}


MESSAGES = _build()


def __getattr__(name: str) -> Any:
    """`messages.RangeRequest` and the others."""
    try:
        return MESSAGES[name]
    except KeyError:
        raise AttributeError(name) from None


def methods(service: str) -> list[tuple[str, Any, Any, bool, bool]]:
    """(method, request class, response class, whether requests are a stream, whether answers are)."""
    found = []
    for text in SERVICES[service].split(", "):
        method, request, response = text.split()
        found.append((method, MESSAGES[request.lstrip("<")], MESSAGES[response.lstrip(">")], request.startswith("<<"), response.startswith(">>")))
    return found
