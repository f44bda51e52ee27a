"""A mount on the in-memory reference store: `python -m tests.mount.reference DIR [field=value…]`, fields of `Config`.

Serves DIR until it is unmounted. Fast, and nothing else can change the bucket.
"""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sluicefs.config import Config
from sluicefs.mount import serve
from sluicefs.store.memory import MemoryStore


@contextmanager
def reference_mount(folder: Path, **fields: object) -> Iterator[str]:
    """The path of a fresh, empty mount below `folder`; it must end without an error."""
    mountpoint = folder / "reference"
    mountpoint.mkdir()
    words = [f"{name}={value}" for name, value in fields.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mount.reference", str(mountpoint), *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state")},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield str(mountpoint)
    finally:
        subprocess.run(["fusermount", "-u", "-z", str(mountpoint)], check=False)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
    assert process.wait() == 0


def main() -> None:
    mountpoint, *options = sys.argv[1:]
    values = dict(option.split("=", 1) for option in options)
    fields = {
        name: ast.literal_eval(text) if text[:1].isdigit() or text in ("True", "False") else text
        for name, text in values.items()
    }
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s %(message)s")
    config = Config(bucket="memory", mountpoint=mountpoint, **fields)  # type: ignore[arg-type]
    serve(config, MemoryStore(), ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
