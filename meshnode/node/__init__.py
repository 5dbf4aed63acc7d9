"""Layer 4, the hall: one member of a tailnet, and the only map of the house.

`node` is the public Node, `wiring` introduces the rooms to each other by callables, `follow` carries
netmap changes to them, `home` keeps a home relay, `status` is one read-only view of it all, `events`
what happens as it happens.
"""
