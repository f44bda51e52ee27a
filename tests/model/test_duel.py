"""The model test itself: it agrees where nothing is wrong, and finds, shortens and replays what is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sluicefs.store.memory import MemoryStore
from tests.model import duel as duel_module
from tests.model.bucket import bucket_differences
from tests.model.duel import Duel
from tests.model.steps import Outcome, Player


def make_duel(folder: Path) -> Duel:
    (folder / "local").mkdir()
    (folder / "other").mkdir()
    return Duel(str(folder / "local"), str(folder / "other"))


@pytest.mark.parametrize("seed", range(10))
def test_two_local_folders_agree(tmp_path: Path, seed: int) -> None:
    assert make_duel(tmp_path).run(seed, 300) is None


class LosesAppends(Player):
    """Every append of over 100 bytes loses its last byte."""

    def do_write(self, slot: int, seed: int, length: int) -> Outcome:
        outcome = super().do_write(slot, seed, length)
        if "other" in self.root and outcome[0] == "ok" and length > 100 and slot in self._slots:
            os.ftruncate(self._slots[slot], os.fstat(self._slots[slot]).st_size - 1)
        return outcome


class ForgetsModes(Player):
    """chmod says 0 and does nothing."""

    def do_chmod(self, path: str, mode: int) -> None:
        if "other" not in self.root:
            super().do_chmod(path, mode)
        os.stat(self._path(path))


class RenamesOverDirectories(Player):
    """The wrong errno for a rename of a file over a directory."""

    def do_rename(self, old: str, new: str) -> None:
        try:
            super().do_rename(old, new)
        except IsADirectoryError as error:
            raise (PermissionError(1, "no") if "other" in self.root else error) from None


@pytest.mark.parametrize("broken", [LosesAppends, ForgetsModes, RenamesOverDirectories])
def test_a_broken_filesystem_is_found_with_a_short_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: type[Player]
) -> None:
    monkeypatch.setattr(duel_module, "Player", broken)
    duel = make_duel(tmp_path)
    found = next(filter(None, (duel.run(seed, 300) for seed in range(20))), None)
    assert found is not None
    assert len(found.script) <= 6, str(found)
    again = duel.replay(found.script)
    assert again is not None and again.kind == found.kind


def test_a_bucket_is_compared_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"abc")
    (tmp_path / "d" / "link").symlink_to("f")
    store = MemoryStore()
    mode = {"mode": str(0o120777)}
    store.put("d/f", b"abc")
    store.put("d/link", b"f", metadata=mode)
    assert bucket_differences(store, str(tmp_path)) == []
    store.put("d/f", b"abd")
    store.put("d/more", b"")
    store.create_upload("d/f")
    assert len(bucket_differences(store, str(tmp_path))) == 3
    store.delete("d/link")
    assert any("d/link: not in the bucket" in line for line in bucket_differences(store, str(tmp_path)))
