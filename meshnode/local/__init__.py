"""Layer 5: the door of a running node for commands on the same machine.

A unix socket of mode 0600, in the state directory or, without one, in a private runtime directory
(`paths`). `http` speaks HTTP/1.1 on it, `api` answers, `client` is the blocking other side.
"""
