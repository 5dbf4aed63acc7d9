"""Layer 5, doors: what this node serves into the tailnet.

`ingress` lends tunnel flows to HTTP with the peer in a context variable; `sites` reads `--serve` rules;
`files` answers from a directory, `reverse` and `upgrade` from another server. `spec` and `specfile` say what
commands there are, `access` who may call them, `jobs` runs one, `execapi` answers, `capability` is the
door. aiohttp is loaded once HTTP is served, not before.
"""
