"""Plan: everything an operator says about one relay, as a Station takes it, before anything is opened.

Settings of the `[derp]` table and flags of `meshnode derp` become one of these in meshnode.cli.derp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meshnode.base.errors import ConfigError
from meshnode.relay.admit import Admit
from meshnode.relay.places import OFF
from meshnode.relay.server import Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """What a Station is made of. Addresses are `[HOST]:PORT`, '' or `off` for none."""

    listen: tuple[str, ...] = (":443",)
    stun: str = ":3478"
    http: str = OFF
    hosts: tuple[str, ...] = ()
    folder: Path = Path("derp")
    self_signed: bool = False
    cert: str = ""
    key: str = ""
    acme: str = ""
    """"letsencrypt", or the URL of an ACME directory; its terms of service are agreed to."""
    acme_email: str = ""
    acme_by: str = "auto"
    plain: bool = False
    open: bool = False
    verify_url: str = ""
    allow_keys: str = ""
    members: Admit | None = None
    """Of the tailnet that a node beside the relay has joined."""
    ca_file: str = ""
    mesh: tuple[str, ...] = ()
    mesh_key: str = field(default="", repr=False)
    metrics: str = ""
    bootstrap_dns: tuple[str, ...] = ()
    region: int = 900
    limits: Limits = Limits()


def check_companions(plan: Plan) -> None:
    """ConfigError for a setting that says nothing without another."""
    for name, given, other, is_there in (
        ("key", plan.key, "--cert FILE", plan.cert),
        ("acme_email", plan.acme_email, "--acme", plan.acme),
        ("acme_by", plan.acme_by != "auto", "--acme", plan.acme),
    ):
        if given and not is_there:
            raise ConfigError(f"{name}: belongs to {other}, which is not given")
