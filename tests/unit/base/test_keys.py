"""Keys print nothing and read only their own text form."""

import os
import pickle

import pytest

from meshnode.base.errors import KeyFormatError
from meshnode.base.keys import DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate, NodePublic


def test_a_private_key_never_shows_its_bytes() -> None:
    key = NodePrivate.generate(os.urandom)
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert key.reveal().hex() not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_generated_keys_are_clamped_at_rest() -> None:
    raw = MachinePrivate.generate(lambda n: b"\xff" * n).reveal()
    assert raw[0] == 248
    assert raw[31] == 127


def test_public_half_matches_the_control_vector() -> None:
    """Machine key of docs/protocol/control.md 2.10."""
    public = MachinePrivate(b"\x11" * 32).public()
    assert str(public) == "mkey:7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"


@pytest.mark.parametrize("kind", [NodePublic, MachinePublic, NodePrivate, DiscoPrivate])
def test_text_form_round_trips(kind: type) -> None:
    key = kind(bytes(range(32)))
    text = key.reveal_text() if hasattr(key, "reveal_text") else str(key)
    assert kind.parse(text) == key


@pytest.mark.parametrize("text", ["", "nodekey:", "nodekey:00", "mkey:" + "0" * 64, "nodekey:" + "g" * 64])
def test_wrong_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(KeyFormatError) as caught:
        NodePublic.parse(text)
    assert len(text) < 8 or text not in str(caught.value)


def test_kinds_do_not_compare_equal() -> None:
    raw = bytes(32)
    assert NodePublic(raw) != MachinePublic(raw)
    assert NodePublic(raw).is_zero
