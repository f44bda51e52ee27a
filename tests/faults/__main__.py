"""The fault proxy by hand: `python -m tests.faults --upstream http://127.0.0.1:9000 --rule 503:probability=0.1`."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.faults.proxy import FaultProxy
from tests.faults.rules import FAULTS, SHORT_NAMES, Event, Rule, chaos


def main() -> int:
    epilog = "faults:\n" + "\n".join(f"  {name:15} {what}" for name, what in FAULTS.items())
    epilog += f"\n  {' '.join(SHORT_NAMES)}: statuses by their short name"
    parser = argparse.ArgumentParser("tests.faults", epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="URL of the S3 server")
    parser.add_argument("--port", type=int, default=0, help="port to listen on [any]")
    parser.add_argument("--rule", type=Rule.parse, action="append", default=[], help="FAULT[:name=value,…]; repeatable")
    parser.add_argument("--chaos", type=float, default=0, help="every survivable fault, together this often (0 to 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-v", "--verbose", action="store_true", help="show every request, not the broken ones only")
    options = parser.parse_args()

    def show(event: Event) -> None:
        if event.fault or options.verbose:
            print(f"{event.verb:24} {event.fault:15} {event.status:3} {event.key}", flush=True)

    rules = [*options.rule, *(chaos(options.chaos) if options.chaos else [])]
    with FaultProxy(options.upstream, port=options.port, rules=rules, seed=options.seed, log=show) as proxy:
        print(f"listening on {proxy.url}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    print("requests:", dict(proxy.counts), "faults:", dict(proxy.faults))
    return 0


if __name__ == "__main__":
    sys.exit(main())
