"""Layer 3: relays, both ends of them.

`client` is one connection to a relay, `pool` holds one per region in use, `server` is a small relay
of our own, `admit` says who may use it. Frames are in `wire.derp`, queues and routing in
`core.lanes` and `core.fanout`.
"""
