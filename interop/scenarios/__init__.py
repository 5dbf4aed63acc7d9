"""The scenarios: what has to hold against real peers. `pytest interop` runs them all."""
