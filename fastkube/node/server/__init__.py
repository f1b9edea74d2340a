"""The node agent's HTTPS API (port 10250): health, pods, logs, exec, attach, port-forward, statistics.

app.py        routes and their handlers
auth.py       who asks, and whether the API server lets them
logs.py       container logs
streaming.py  exec, attach and port-forward: tunnels to the runtime's streaming server, and the one protocol it does not speak
stats.py      /stats/summary, /metrics, /metrics/resource
"""
