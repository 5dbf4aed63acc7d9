"""Layer 3: relays, both ends of them.

`client` is one connection to a relay, `pool` holds one per region in use, `server` is a small relay
of our own, `admit` says who may use it. Frames are in `wire.derp`, a client's queues in `core.lanes`; the
server's queues and routing are C, in `native/relay`.
"""
