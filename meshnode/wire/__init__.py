"""Layer 1: formats as sans-IO machines: bytes in, events out, bytes to send.

No module here knows a socket or a clock; randomness comes in as arguments. Every limit on what the
other side may send is in `base.bounds`, and breaking it is a RemoteProtocolError.
"""
