"""What the demo's parts need on paper: a spec, a file to download."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final

BLOCK: Final = 1 << 20

SPEC: Final = """\
# What callers may run here, and nothing else. Values fill the {places}; there is no shell.
[capabilities.hello]
description = "Says hello"
argv = ["echo", "hello,", "{who}"]
[capabilities.hello.params.who]
type = "string"
pattern = "[A-Za-z ]{1,40}"

[capabilities.checksum]
description = "SHA-256 of a file that this node serves"
argv = ["sha256sum", PLACE]
[capabilities.checksum.params.file]
type = "string"
choices = ["FILE"]
"""


def write_spec(path: Path, directory: Path, name: str) -> None:
    """The capability file, with the served directory in it."""
    place = f"{directory}/".replace("{", "{{").replace("}", "}}") + "{file}"
    # A JSON text is a TOML text too, whatever is in the directory's name.
    path.write_text(SPEC.replace("PLACE", json.dumps(place)).replace("FILE", name))


def write_file(path: Path, mebibytes: int) -> str:
    """A file that compresses badly; returns its SHA-256. OSError if the disk is full."""
    digest = hashlib.sha256()
    block = bytearray(os.urandom(BLOCK))
    with open(path, "wb", buffering=0) as file:
        for number in range(mebibytes):
            # Fresh noise everywhere would cost a second; a block that differs each time proves as much.
            block[:4096] = os.urandom(4096)
            block[4096:4104] = number.to_bytes(8, "big")
            file.write(block)
            digest.update(block)
    return digest.hexdigest()
