"""`sluicefs run`: one command in a disposable sandbox."""

from __future__ import annotations

import signal
from typing import Any

import click

from sluicefs.cli.options import config_from, target_options
from sluicefs.errors import InvalidMountConfigError


@click.command(short_help="Run one command in a disposable sandbox.", context_settings={"ignore_unknown_options": True})
@click.option(
    "--mount", "mounts", metavar="BUCKET[:/PREFIX]:/PATH[:ro]", multiple=True, help="A bucket to mount inside; any number."
)
@click.option("--net", is_flag=True, help="Let the command use the network.")
@target_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND…")
def run(mounts: tuple[str, ...], net: bool, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND where it sees the mounted buckets and read-only programs, and nothing else; then upload and clean up.

    It starts in /home/sandbox, which is thrown away, without network, credentials or this environment. -o gives options
    to every mount. The exit status is the command's.
    """
    from sluicefs.sandbox import Sandbox

    specs = [split_mount(text) for text in mounts]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, _end)
    with Sandbox("run", net=net) as sandbox:
        for target, path, read_only in specs:
            sandbox.mount_config(config_from(target, "/", {**given, "read_only": read_only or None}), path)
        code = sandbox.run(command)
    raise SystemExit(code)


def _end(number: int, _: object) -> None:
    """Told to stop, the sandbox is still cleaned up."""
    raise SystemExit(128 + number)


def split_mount(text: str) -> tuple[str, str, bool]:
    """(target, path inside, read-only) of BUCKET[:/PREFIX]:/PATH[:ro]. Raises InvalidMountConfigError."""
    read_only = text.endswith(":ro")
    target, _, path = text.removesuffix(":ro").removesuffix(":rw").rpartition(":")
    if not target or not path.startswith("/"):
        raise InvalidMountConfigError(f"--mount {text}: write BUCKET:/PATH or BUCKET:/PREFIX:/PATH, then perhaps :ro.")
    return target, path, read_only
