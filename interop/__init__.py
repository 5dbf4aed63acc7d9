"""Interop: meshnode against the real programs it has to get along with.

`build` makes the peers (once, cached), `lab` makes a small network of namespaces, `peers/` starts one
real program each, `scenarios/` are the pytest files (`pytest interop`). Nothing here is part of the
installed package. Needs Linux, root, iproute2, nft and curl.
"""
