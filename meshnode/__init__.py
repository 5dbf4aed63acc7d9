"""meshnode: a member of a Tailscale-compatible network inside one Python process."""
