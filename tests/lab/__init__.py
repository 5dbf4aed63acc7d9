"""The NAT lab: routers of every kind in namespaces, and what two nodes behind them make of it."""
