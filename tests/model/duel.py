"""Plays one script on two folders, says where they first differ, and makes the script that shows it short."""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.generate import Generator, Limits
from tests.model.steps import Outcome, Player, Step, agree, short

COMPARE: Step = ["compare"]  # a step that compares the whole trees
Found = tuple[str, str] | None  # (kind, what): kind in few words, so that shrinking stays with one kind
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two folders disagree: after `script` was played, the last step or the tree as it is now. `kind` in few words."""

    script: list[Step]
    kind: str
    what: str

    def __str__(self) -> str:
        steps = "\n".join("  " + json.dumps(step, ensure_ascii=False) for step in self.script)
        replay = "python -m tests.model LOCAL OTHER --script FILE"
        return f"{self.what}\nafter these {len(self.script)} steps (replay: {replay}):\n{steps}"


class Duel:
    """Two folders, `local` the one that is right. Every run works in a new subfolder of both, kept for a last comparison."""

    def __init__(self, local: str, other: str, *, journal: str | None = None):
        """`journal`: a file that always holds the steps of the present run, for when it never returns."""
        self.local = local
        self.other = other
        self._journal = journal

    def run(self, seed: int, steps: int, *, limits: Limits | None = None, check_every: int = 25) -> Difference | None:
        """Play a random script; the first difference, made short."""
        players = self._players()
        generator = Generator(seed, players[0], limits)
        script: list[Step] = []
        for number in range(1, steps + 1):
            script.append(generator.step() if number % check_every else COMPARE)
            found = self._play_one(players, script[-1])
            if found:
                break
        else:
            found = self._finish(players)
        self._close(players)
        return self.shrink(Difference(script, *found)) if found else None

    def replay(self, script: list[Step]) -> Difference | None:
        """Play this script and compare the trees at its end."""
        players = self._players()
        try:
            for number, step in enumerate(script):
                if different := self._play_one(players, step):
                    return Difference(script[: number + 1], *different)
            found = self._compare(players) or self._finish(players)
            return Difference(script, *found) if found else None
        finally:
            self._close(players)

    def shrink(self, difference: Difference, *, seconds: float = 60) -> Difference:
        """Leave out steps, then lower numbers, as long as that kind of difference remains.

        What does not happen again in a replay is returned as it is.
        """
        deadline = time.monotonic() + seconds
        best = self.replay(difference.script)
        if best is None:
            what = f"{difference.what}\n(does not happen again in a replay: a matter of timing)"
            return Difference(difference.script, difference.kind, what)
        progress = True
        while progress and time.monotonic() < deadline:
            progress = False
            for candidate in _shorter(best.script):
                if time.monotonic() > deadline:
                    break
                if (found := self.replay(candidate)) is not None and found.kind == best.kind:
                    best, progress = found, True
                    break
        return best

    def _players(self) -> tuple[Player, Player]:
        if self._journal is not None:
            open(self._journal, "w").close()
        name = f"run{next(_numbers)}"
        return Player(os.path.join(self.local, name)), Player(os.path.join(self.other, name))

    def _play_one(self, players: tuple[Player, Player], step: Step) -> Found:
        if self._journal is not None:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(json.dumps(step, ensure_ascii=False) + "\n")
        if step == COMPARE:
            return self._compare(players)
        left, right = (player.play(step) for player in players)
        if agree(left, right, now_ns=time.time_ns()):
            return None
        kind = " ".join(f"{outcome[0]} {outcome[1] if outcome[0] == 'errno' else ''}" for outcome in (left, right))
        where = _first_difference(left, right)
        return f"{step[0]} {kind}", f"{json.dumps(step, ensure_ascii=False)}: local {short(left)}, other {short(right)}{where}"

    def _compare(self, players: tuple[Player, Player]) -> Found:
        return compare_trees(players[0].root, players[1].root)

    def _finish(self, players: tuple[Player, Player]) -> Found:
        closed = [player.close_all() for player in players]
        if closed[0] != closed[1]:
            return "closing", f"closing: local {closed[0]}, other {closed[1]}"
        return self._compare(players)

    def _close(self, players: tuple[Player, Player]) -> None:
        for player in players:
            player.close_all()


def compare_trees(local: str, other: str) -> Found:
    """The first difference in names, types, attributes, link targets or content below two folders."""
    left, right = Player(local), Player(other)
    now = time.time_ns()
    folders = [""]
    while folders:
        folder = folders.pop()
        listings = [player.play(["listdir", folder]) for player in (left, right)]
        if listings[0] != listings[1]:
            return "listing", f"listing of {folder or '.'}: local {listings[0]}, other {listings[1]}"
        for name, is_dir, is_link in listings[0][1] if listings[0][0] == "ok" else ():
            path = os.path.join(folder, name)
            regular = not is_link and not is_dir and stat.S_ISREG(os.lstat(os.path.join(local, path)).st_mode)
            for verb in ("stat", *(["readlink"] if is_link else ["cat"] if regular else [])):
                outcomes = [player.play([verb, path]) for player in (left, right)]
                if not agree(outcomes[0], outcomes[1], now_ns=now):
                    where = _first_difference(outcomes[0], outcomes[1])
                    return verb, f"{verb} of {path!r}: local {short(outcomes[0])}, other {short(outcomes[1])}{where}"
            if is_dir:
                folders.append(path)
    return None


def _first_difference(left: Outcome, right: Outcome) -> str:
    if left[0] == right[0] == "ok" and isinstance(left[-1], bytes) and isinstance(right[-1], bytes):
        pairs = enumerate(zip(left[-1], right[-1], strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(left[-1]), len(right[-1])))
        return f" (first difference at byte {first:,} of {len(left[-1]):,})"
    return ""


def _shorter(script: list[Step]) -> Iterator[list[Step]]:
    """Scripts a little simpler than this one, the boldest cuts first."""
    size = len(script) // 2
    while size:
        for start in range(len(script) - size, -1, -size):
            yield script[:start] + script[start + size :]
        size //= 2
    for place, step in enumerate(script):
        for position in range(1, len(step)):
            if isinstance(step[position], int) and step[0] in ("pread", "read", "pwrite", "write", "ftruncate", "truncate"):
                for value in (v for v in (0, 1, 10, 100, 4096) if v < step[position]):
                    yield [*script[:place], [*step[:position], value, *step[position + 1 :]], *script[place + 1 :]]
