"""Layer 1: what we know of the tailnet, as frozen values.

`tailcfg` reads the control server's JSON dialect, `delta` turns a netmap and a message into the
next netmap and its changes, `names` and `rules` are read-only views. Nothing here does I/O.
"""
