"""HTTP/1.1 over TLS on uvloop: the server protocol that the API server and the node agent share, WebSocket and SPDY/3.1 streams.

See `server.py` for Request, Response, Upgrade and Server.
"""
