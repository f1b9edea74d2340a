"""The one way components speak to the API server: `rest.Client` over a transport (HTTPS or in process), and what is built on it.

rest.py        Client: get, list, watch, create, update, patch, delete on resources named as in "apps/v1/deployments"
transport.py   HttpTransport (aiohttp, TLS), InProcessTransport (the server's own pipeline, no sockets)
kubeconfig.py  kubeconfig files
informer.py    Informer (reflector + indexed store + handlers), InformerFactory
workqueue.py   de-duplicating, rate-limited queue of keys
events.py      EventRecorder (events.k8s.io semantics: aggregation, spam bound)
leader.py      leader election on Leases
"""
