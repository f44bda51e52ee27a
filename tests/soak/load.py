"""Mixed load on one directory of a mount, and the model of what must be there. One worker writes there, nobody else.

Every call must succeed: the faults that are put in its way are those that a mount survives by itself.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

KiB, MiB = 1024, 1024 * 1024
SIZES = (0, 1, 100, 4 * KiB, 64 * KiB, 300 * KiB, 2 * MiB, 12 * MiB)
WEIGHTS = (2, 2, 4, 8, 8, 6, 3, 1)
FILES = 40  # names in use per worker


class Worker(threading.Thread):
    """Changes and reads files below `folder` until `stop` is set. `wrong` says what was not as it should be."""

    def __init__(self, folder: Path, seed: int, stop: threading.Event, log: TextIO):
        super().__init__(name=f"worker-{seed}")
        self.folder = folder
        self.dice = random.Random(seed)
        self.stop = stop
        self.log = log  # a line a step
        self.about = ""  # what the present step is about
        self.files: dict[str, bytes] = {}
        self.steps: Counter[str] = Counter()
        self.longest: dict[str, float] = {}  # seconds, by step
        self.since = time.monotonic()  # when the present step began
        self.doing = ""
        self.wrong = ""

    def run(self) -> None:
        verbs = [self.append, self.change, self.truncate, self.rename, self.unlink, self.list, self.move]
        verbs += [self.write] * 2 + [self.read] * 6
        try:
            self.folder.mkdir()
            (self.folder / "d0").mkdir()
            while not self.stop.is_set():
                verb = self.dice.choice(verbs)
                self.doing, self.about, self.since = verb.__name__, "", time.monotonic()
                try:
                    verb()
                finally:
                    took = time.monotonic() - self.since
                    end = time.time()
                    self.log.write(f"{end - took:.3f} {end:.3f} {self.folder.name} {self.doing} {self.about}\n")
                self.steps[self.doing] += 1
                self.longest[self.doing] = max(took, self.longest.get(self.doing, 0.0))
        except Exception as error:
            self.wrong = f"{self.name}, {self.doing}: {type(error).__name__}: {error}"
            self.stop.set()

    def some(self) -> str | None:
        self.about = self.dice.choice(sorted(self.files)) if self.files else ""
        return self.about or None

    def path(self, name: str) -> Path:
        return self.folder / name

    def data(self) -> bytes:
        return self.dice.randbytes(self.dice.choices(SIZES, WEIGHTS)[0])

    def write(self) -> None:
        name = f"d0/f{self.dice.randrange(FILES)}"
        data = self.data()
        target = name
        if self.dice.random() < 0.3:  # as an editor does
            target = "d0/.new"
        self.about = f"{name} as {target} {len(data)}"
        self.path(target).write_bytes(data)
        if target != name:
            self.path(target).rename(self.path(name))
        self.files[name] = data

    def append(self) -> None:
        if name := self.some():
            data = self.dice.randbytes(self.dice.choice((1, 100, 5000)))
            self.about += f" {len(self.files[name])} + {len(data)}"
            with open(self.path(name), "ab") as file:
                file.write(data)
                if self.dice.random() < 0.3:
                    file.flush()
                    os.fsync(file.fileno())
            self.files[name] += data

    def change(self) -> None:
        if (name := self.some()) and (old := self.files[name]):
            start = self.dice.randrange(len(old))
            data = self.dice.randbytes(min(4 * KiB, len(old) - start))
            self.about += f" {start} + {len(data)} of {len(old)}"
            with open(self.path(name), "r+b") as file:
                file.seek(start)
                file.write(data)
            self.files[name] = old[:start] + data + old[start + len(data) :]

    def truncate(self) -> None:
        if name := self.some():
            old = self.files[name]
            size = self.dice.choice((0, len(old) // 2, len(old) + 1000))
            self.about += f" {len(old)} to {size}"
            os.truncate(self.path(name), size)
            self.files[name] = old[:size].ljust(size, b"\0")

    def rename(self) -> None:
        if name := self.some():
            new = f"d0/f{self.dice.randrange(FILES)}"
            self.about += f" to {new}"
            self.path(name).rename(self.path(new))
            self.files[new] = self.files.pop(name)

    def unlink(self) -> None:
        if name := self.some():
            self.path(name).unlink()
            del self.files[name]

    def list(self) -> None:
        found = sorted(os.listdir(self.path("d0")))
        expected = sorted(name.removeprefix("d0/") for name in self.files)
        if found != expected:
            raise AssertionError(f"listed {found}, there are {expected}")

    def move(self) -> None:
        """The whole directory, there and back."""
        if self.dice.random() < 0.1:
            self.path("d0").rename(self.path("d1"))
            self.path("d1").rename(self.path("d0"))

    def read(self) -> None:
        if name := self.some():
            expected = self.files[name]
            start = self.dice.choice((0, 0, self.dice.randrange(len(expected) + 1)))
            self.about += f" from {start} of {len(expected)}"
            with open(self.path(name), "rb") as file:
                file.seek(start)
                if file.read() != expected[start:]:
                    raise AssertionError(f"wrong bytes in {name} from {start}")
