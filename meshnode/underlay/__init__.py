"""Layer 3: the real network under the tunnel.

`disco` seals, opens and routes DISCO and runs the path machines of `core.path`; `endpoints` finds
our own addresses.
"""
