"""Memory stays within `--memory` and 100 MB, whatever is done to a mount."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from tests.conftest import Bucket
from tests.mount.helpers import User, processes

MiB = 1024 * 1024
MEMORY, ALLOWED = 64, 100  # MiB, MB
THREADS, STEPS = 16, 30
SIZES = (100, 70_000, 300_000, 2_500_000, 12_000_000)  # bytes


@pytest.fixture
def user(tmp_path: Path, bucket: Bucket):
    one = User(tmp_path, bucket)
    yield one
    one.clean_up()


def test_many_writers_and_readers_of_files_of_every_size_stay_within_the_budget(user: User):
    root = Path(user.mount("--memory", f"{MEMORY}M"))
    wrong: list[str] = []

    def work(number: int) -> None:
        dice, files = random.Random(number), {}
        try:
            for _ in range(STEPS):
                name = root / f"{number}-{dice.randrange(8)}"
                if files.get(name) is None or dice.random() < 0.5:
                    files[name] = dice.randbytes(dice.choice(SIZES))
                    name.write_bytes(files[name])
                elif dice.random() < 0.5:
                    with name.open("ab") as file:
                        file.write(b"more")
                    files[name] += b"more"
                elif name.read_bytes() != files[name]:
                    wrong.append(f"{name} has other bytes than were written")
        except Exception as error:
            wrong.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    (daemon,) = processes(str(root))
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{daemon}/status").read_text().splitlines())
    peak = int(fields["VmHWM"].split()[0]) * 1024
    assert peak <= MEMORY * MiB + ALLOWED * 1_000_000, f"{peak / 1e6:.0f} MB at the peak"
