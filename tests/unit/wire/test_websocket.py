"""The WebSocket upgrade: RFC 6455's own example, and answers that are not to our request."""

from __future__ import annotations

from base64 import b64decode

import pytest

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.http1 import Response
from meshnode.wire.websocket import ClientUpgrade, accept_of

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD = {"sec-websocket-accept": ACCEPT, "sec-websocket-protocol": "derp"}


def test_the_example_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT
    upgrade = ClientUpgrade("derp", b64decode(KEY))
    assert dict(upgrade.headers) == {
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Protocol": "derp",
    }  # fmt: skip
    upgrade.check(Response(101, GOOD))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOp="}, "another one"),
        ({"sec-websocket-accept": "\xff"}, "another one"),
        ({"sec-websocket-protocol": ""}, "does not speak derp"),
        ({"sec-websocket-protocol": "derp2"}, "does not speak derp"),
        ({"sec-websocket-extensions": "permessage-deflate"}, "extensions nobody asked for"),
    ],
)
def test_answers_that_are_refused(changed: dict[str, str], said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said):
        ClientUpgrade("derp", b64decode(KEY)).check(Response(101, GOOD | changed))
