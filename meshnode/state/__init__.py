"""Layer 3: the node's identity between runs.

`store` holds the versioned value and the protocol; `file` keeps it in one JSON file, mode 0600,
replaced atomically and locked against a second process; `memory` keeps it nowhere.
"""
