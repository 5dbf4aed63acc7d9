"""Layer 3: connections of the tailnet as Python programs like them.

`dialer` turns a name and a port into a connected socket, `streams` gives sockets asyncio's readers and
writers, `listener` serves a tailnet port. Sockets are the engine's; nothing here touches packets.
"""
