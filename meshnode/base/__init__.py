"""Layer 0, the ground: values every other room is built from.

Keys that never print, addresses without a resolver, the exception tree, unit types and the bounds
on remote input. Nothing here reads a clock, a socket or a file.
"""
