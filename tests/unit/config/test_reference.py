"""docs/reference/configuration.md is made of the fields of config.model.

`MESHNODE_WRITE_DOCS=1 pytest tests/unit/config/test_reference.py` writes it anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from meshnode.config.load import load
from meshnode.config.model import SECTIONS, Secret, default_of, environment_names, key_of, settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "configuration.md"

HEAD = """# Configuration

Every setting has one name: `control_url` in the file is `--control-url` on the command line and
`MESHNODE_CONTROL_URL` in the environment. A flag beats a variable, a variable beats the file, the file beats
the default. A value that starts with `file:` is read from that file; a secret may also be `env:NAME`.
Variables are tried in the order shown; those not beginning with `MESHNODE_` are accepted so that other
people's compose files work.

The file is TOML, given with `-c FILE`. One network:

```toml
[tailscale]
control_url = "https://hs.example.org"
auth_key    = "env:JOIN_KEY"
hostname    = "gpu-1"

[tunnel]
serve  = ["http:80=./site", "tcp:5432=127.0.0.1:5432"]
socks5 = "127.0.0.1:1080"
```

Several: `[networks.NAME.tailscale]` and so on, chosen with `--network NAME` or `MESHNODE_NETWORK`; each has a
state directory of its own. A network may have `[wireguard]` in the place of `[tailscale]`: [plain WireGuard
networks](../guides/wireguard.md) run beside the chosen tailnet. `--wireguard FILE` runs one of them alone.

This page is generated from the fields of `meshnode/config/model.py`.
"""


def shown(value: Any) -> str:
    if isinstance(value, Secret) or value in ("", ()):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def render() -> str:
    """The whole page."""
    lines = [HEAD.rstrip()]
    for name, section in SECTIONS.items():
        lines += [
            "",
            f"## {section.__doc__}",
            "",
            "| setting | flag | variables | default | meaning |",
            "|---|---|---|---|---|",
        ]
        for found, item in settings():
            if found != name:
                continue
            about = item.metadata
            flag = f"`--{item.name.replace('_', '-')}`" if about["flag"] else "–"
            if name == "derp" and not about["flag"]:
                flag = f"`derp --{key_of(item).replace('_', '-')}`"
            variables = " ".join(f"`{v}`" for v in environment_names(item))
            choices = f"; one of {', '.join(about['choices'])}" if about["choices"] else ""
            if about["bounds"]:
                choices = f"; {about['bounds'][0]:g} to {about['bounds'][1]:g}"
            unit = f" [{about['unit']}]" if about["unit"] else ""
            meaning = f"{about['help']}{choices}{unit}".replace("|", "\\|")
            lines.append(f"| `{key_of(item)}` | {flag} | {variables} | {shown(default_of(item))} | {meaning} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_made_of_the_fields() -> None:
    page = render()
    if os.environ.get("MESHNODE_WRITE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page


def test_its_example_is_a_configuration() -> None:
    example = re.search(r"```toml\n(.*?)```", HEAD, re.DOTALL)
    assert example is not None
    config = load({}, {"JOIN_KEY": "x"}, read_text=lambda _: "", file_text=example.group(1))
    assert config.tunnel.serve == ("http:80=./site", "tcp:5432=127.0.0.1:5432")
