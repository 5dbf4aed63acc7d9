"""Layer 2, pure: protocol decisions without I/O.

Each module is a small machine: inputs are values and an explicit `now`, outputs are values to act
on. Nothing here awaits, reads a clock or rolls dice.
"""
