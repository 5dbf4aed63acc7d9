"""Layer 5, doors: what this node serves into the tailnet.

`ingress` lends tunnel flows to HTTP with the peer in a context variable; `sites` reads `--serve` rules;
`files` answers from a directory, `reverse` and `upgrade` from another server; `spec`, `specfile`, `capability`, `execapi`
and `jobs` run fixed commands for whom `access` lets in. aiohttp is loaded once HTTP is served, not before.
"""
