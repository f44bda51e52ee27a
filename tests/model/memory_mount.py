"""A mount on the in-memory reference store, whose rules are R2's: `python -m tests.model.memory_mount DIR LOCAL [field=value]`.

Serves DIR until it is unmounted, then compares the store with the folder LOCAL, and exits 1 where they differ. The further
arguments are fields of `Config`.
"""

from __future__ import annotations

import ast
import logging
import sys
from typing import Any

from sluicefs.config import Config
from sluicefs.mount import serve
from sluicefs.store.memory import MemoryStore
from tests.model.bucket import bucket_differences


def main() -> int:
    mountpoint, local, *options = sys.argv[1:]
    values = dict(option.split("=", 1) for option in options)
    fields: dict[str, Any] = {name: ast.literal_eval(value) if value[:1].isdigit() else value for name, value in values.items()}
    config = Config(bucket="memory", mountpoint=mountpoint, **fields)
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s %(message)s")
    store = MemoryStore()
    serve(config, store, ready=lambda: print("ready", flush=True))
    found = bucket_differences(store, local)
    print(f"{store.counters.requests}", flush=True)
    print("\n".join(found[:20]) or "the bucket equals the model", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
