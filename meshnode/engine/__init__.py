"""Layer 2, the native face: the packet engine as asyncio sees it.

`Engine` turns methods into commands and events into callbacks; `TunnelSocket` is one end of a
socketpair that knows its tailnet addresses and its peer. Packets on a direct path never come here.
"""
