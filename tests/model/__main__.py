"""The model test by hand: `python -m tests.model LOCAL OTHER` plays random scripts on two folders until they differ.

LOCAL is a folder of a plain local filesystem, OTHER one on the mount under test.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import time

from tests.model.duel import Duel
from tests.model.generate import WEIGHTS, Limits


def main() -> int:
    parser = argparse.ArgumentParser("tests.model")
    parser.add_argument("local")
    parser.add_argument("other")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further run takes the next")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="a run")
    parser.add_argument("--without", default="", help=f"verbs to leave out, comma-separated, of: {' '.join(WEIGHTS)}")
    parser.add_argument("--sizes", default="", help="further sizes to try, bytes, comma-separated")
    parser.add_argument("--wait", type=float, default=0, help="pause for so many seconds now and then")
    parser.add_argument("--forget", action="store_true", help="drop the kernel's inodes now and then (root)")
    parser.add_argument("--script", help="replay the steps in this file (one JSON list a line) instead")
    parser.add_argument("--hang", type=float, default=120, help="seconds for one run, after which the test ends itself")
    parser.add_argument("--journal", help="file for the steps of the present run: what to look at after a hang")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first difference")
    options = parser.parse_args()
    faulthandler.enable()
    local = tempfile.mkdtemp(dir=options.local)
    os.chmod(local, 0o755)
    duel = Duel(local, os.path.join(options.other, os.path.basename(local)), journal=options.journal)
    if options.script:
        with open(options.script, encoding="utf-8") as file:
            found = duel.replay([json.loads(line) for line in file if line.strip()])
        print(found or "no difference")
        return 1 if found else 0
    sizes = tuple(int(size) for size in options.sizes.split(",") if size)
    limits = Limits(
        sizes=sizes, wait=options.wait, forget=options.forget, without=frozenset(filter(None, options.without.split(",")))
    )
    failures = 0
    for seed in range(options.seed, options.seed + options.runs):
        begin = time.monotonic()
        faulthandler.dump_traceback_later(options.hang, exit=True)  # a mount that hangs must not hang this
        found = duel.run(seed, options.steps, limits=limits)
        faulthandler.cancel_dump_traceback_later()
        print(f"seed {seed}: {found or 'no difference'} ({time.monotonic() - begin:.1f} s)", flush=True)
        failures += found is not None
        if found and not options.go_on:
            break
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
