"""State survives a round trip, a crash at any moment, and says in one line why it cannot be read."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import StateError
from meshnode.base.keys import MachinePublic
from meshnode.base.units import Unix
from meshnode.state.file import FileStore, default_state_dir
from meshnode.state.memory import MemoryStore
from meshnode.state.store import State, Store, emit_state, parse_state


def make() -> State:
    return State.fresh(os.urandom, "https://hs.example")


def full() -> State:
    return replace(
        make(),
        old_node=make().node,
        control_key=MachinePublic(b"\x01" * 32),
        node_id="7",
        name="gpu-1.mesh.test",
        addresses=(IPv4Address("100.64.0.1"),),
        home_region=3,
        timestamp_floor=b"\x02" * 12,
        udp_port=41641,
        updated_at=Unix(1.5),
    )


@pytest.mark.parametrize("state", [make(), full()], ids=["fresh", "full"])
def test_round_trip(state: State, tmp_path: Path) -> None:
    assert parse_state(emit_state(state), "here") == state
    store: Store
    for store in (FileStore(tmp_path / "s"), MemoryStore()):
        store.lock()
        assert store.load() is None
        store.save(state)
        assert store.load() == state
        store.erase()
        assert store.load() is None
        store.erase()
        store.close()


def test_modes(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "deep" / "state")
    store.lock()
    store.save(make())
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    store.close()


def test_a_directory_of_ours_alone_is_closed_to_others_but_no_other(tmp_path: Path) -> None:
    ours, shared = tmp_path / "ours", tmp_path / "shared"
    for directory in (ours, shared):
        directory.mkdir()
        directory.chmod(0o755)
    (shared / "their-file").write_text("x")
    for directory, mode in ((ours, 0o700), (shared, 0o755)):
        store = FileStore(directory)
        store.lock()
        assert stat.S_IMODE(directory.stat().st_mode) == mode
        store.close()


def test_private_keys_show_nowhere_but_in_the_file() -> None:
    state = full()
    assert state.node.reveal().hex() not in repr(state)


def test_two_processes_never_share(tmp_path: Path) -> None:
    first, second = FileStore(tmp_path / "s"), FileStore(tmp_path / "s")
    first.lock()
    with pytest.raises(StateError, match=f"in use by another meshnode, process {os.getpid()}; stop it"):
        second.lock()
    first.close()
    second.lock()
    second.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged: not JSON"),
        ("{", "damaged: not JSON"),
        ("[]", "damaged: no version"),
        ('{"version": "1"}', "damaged: no version"),
        ('{"version": 99}', "version 99, this meshnode reads up to 1; use the newer"),
        ('{"version": 1}', "damaged: MachinePrivate: text does not start with 'privkey:'"),
        (
            '{"version": 1, "machine_key": "privkey:00", "node_key": 3}',
            "damaged: MachinePrivate: 2 digits, expected 64",
        ),
    ],
)
def test_what_cannot_be_read(content: str, said: str, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.path.write_text(content)
    with pytest.raises(StateError) as caught:
        store.load()
    assert said in str(caught.value)
    assert str(store.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_garbage_is_a_state_error(content: bytes) -> None:
    with pytest.raises(StateError):
        parse_state(content.decode(errors="replace"), "here")


@given(
    st.sampled_from(sorted(json.loads(emit_state(full())))), st.none() | st.integers() | st.text() | st.lists(st.none())
)
def test_one_wrong_field_is_a_state_error_or_harmless(name: str, value: object) -> None:
    record = json.loads(emit_state(full())) | {name: value}
    try:
        assert isinstance(parse_state(json.dumps(record), "here"), State)
    except StateError as error:
        assert full().node.reveal().hex() not in str(error)
        assert len(str(error)) < 300


def test_not_a_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.path.mkdir()
    with pytest.raises(StateError, match="is a directory"):
        store.load()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="cannot use .*: not a directory"):
        FileStore(tmp_path / "file" / "s").lock()
    with pytest.raises(StateError, match="cannot use .*: not a directory"):
        FileStore(tmp_path / "file").lock()


def test_unknown_fields_of_a_newer_writer_are_dropped() -> None:
    state = full()
    record = json.loads(emit_state(state)) | {"colour": "green"}
    assert parse_state(json.dumps(record), "here") == state


def test_another_control_server_gets_a_new_node_of_the_same_machine() -> None:
    state = full()
    moved = state.moved_to("https://other", os.urandom)
    assert moved.machine == state.machine
    assert moved.node != state.node
    assert (moved.node_id, moved.control_key, moved.addresses) == ("", None, ())
    assert moved.timestamp_floor == state.timestamp_floor


def test_default_directory() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/x"}, "n") == Path("/x/meshnode/n")
    assert default_state_dir({"HOME": "/h", "XDG_STATE_HOME": "rel"}) == Path("/h/.local/state/meshnode/default")


WRITER = """
import os, sys
from dataclasses import replace
from meshnode.state.file import FileStore
from meshnode.state.store import State
store = FileStore(sys.argv[1])
store.lock()
state = store.load() or State.fresh(os.urandom, "https://hs.example")
store.save(state)
print("going", flush=True)
n = 0
while True:
    n += 1
    store.save(replace(state, name=f"n{n}" * 100))
"""


def test_sigkill_while_writing_leaves_a_whole_state(tmp_path: Path) -> None:
    machines = set()
    for round_ in range(8):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"going\n"
        # Some saves go by before the kill: a different instant each round.
        for _ in range(round_ * 3):
            (tmp_path / "state.json").read_bytes()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store = FileStore(tmp_path)
        store.lock()  # the kernel dropped the dead process's lock
        state = store.load()
        assert state is not None
        machines.add(state.machine)
        store.close()
    assert len(machines) == 1
