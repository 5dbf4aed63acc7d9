"""Layer 4, the hall: one member of a tailnet, and the only map of the house.

`node` is the public Node, `house` starts and ends its rooms, `wiring` introduces them to each other by
callables, `follow` carries netmap changes to them, `home` keeps a home relay, `keeper` what survives
the run, `status` is one read-only view of it all (`view` builds it), `events` what happens as it happens.
"""
