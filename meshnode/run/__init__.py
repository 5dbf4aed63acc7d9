"""Layer 2, asyncio: the few tools every shell is made of.

`scope` creates tasks, `clock` hands out time and entropy, `snapshot` publishes a value, `log`
writes structured lines without secrets.
"""
