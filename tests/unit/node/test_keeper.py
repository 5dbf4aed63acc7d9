"""What the node remembers is on disk when it must be, and not after it was forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshnode.base.errors import StateError
from meshnode.node.keeper import Keeper
from meshnode.run.clock import Clock
from meshnode.state.file import FileStore

URL = "https://hs.example"


def test_a_fresh_identity_is_on_disk_before_anybody_hears_of_it(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), URL, Clock())
    assert FileStore(tmp_path).load() == keeper.state
    keeper.close()
    again = Keeper(str(tmp_path), URL, Clock())
    assert again.state == keeper.state
    again.close()


def test_changes_are_saved_soon_or_now(tmp_path: Path) -> None:
    async def work() -> None:
        keeper = Keeper(str(tmp_path), URL, Clock())
        keeper.change(name="a")
        saved = FileStore(tmp_path).load()
        assert saved is not None and saved.name == ""
        keeper.change(now=True, name="b")
        saved = FileStore(tmp_path).load()
        assert saved is not None and saved.name == "b"
        stamp = saved.updated_at
        keeper.change(now=True, name="b")
        saved = FileStore(tmp_path).load()
        assert saved is not None and saved.updated_at == stamp, "nothing changed, nothing written"
        keeper.change(name="c")
        task = asyncio.ensure_future(keeper.keep_saving())
        while (saved := FileStore(tmp_path).load()) is None or saved.name != "c":
            await asyncio.sleep(0)
        task.cancel()
        keeper.close()

    asyncio.run(asyncio.wait_for(work(), 10))


def test_logout_keeps_the_machine_and_drops_the_node(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), URL, Clock())
    keeper.change(now=True, node_id="7")
    before = keeper.state
    keeper.start_over()
    after = FileStore(tmp_path).load()
    assert after is not None
    assert (after.machine, after.node_id) == (before.machine, "")
    assert after.node != before.node
    keeper.close()


def test_what_was_erased_stays_erased(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), URL, Clock())
    keeper.erase()
    keeper.change(now=True, name="late")
    assert FileStore(tmp_path).load() is None
    keeper.close()


def test_a_damaged_state_releases_the_lock(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    for _ in range(2):
        with pytest.raises(StateError, match="damaged"):
            Keeper(str(tmp_path), URL, Clock())
