"""Layer 3: our side of the control server, and a small one of our own.

`dial` reaches the server (TCP, TLS, upgrade, Noise), `session` is one live connection with its
HTTP/2 streams, `client` keeps a session alive and publishes netmaps, `server` is the embedded
control server of `meshnode demo` and the tests. Protocol lives below, in `wire`, `netmap`, `core`.
"""
