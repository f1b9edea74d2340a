"""etcd's v3 API over a store: what etcdctl and every etcd client speak.

The services (kv, watch, lease, cluster, auth, locks) know etcd's rules and messages, but not how they travel: a method takes a request message and a
`Caller`, returns an answer (a message or its bytes) or raises `EtcdError`; `server` puts them on gRPC.
"""
