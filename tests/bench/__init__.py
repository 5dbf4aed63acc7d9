"""Benchmarks, run by hand: `python -m tests.bench.NAME`. JSON on stdout, progress on stderr.

Each figure stands beside the same figure of a named peer, measured in the same run; rounds alternate
between the two, and medians are what is reported. Nothing here is a test.
"""
