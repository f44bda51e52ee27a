"""`sluicefs status` and `sluicefs top`: what the mounts of this user are doing."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from sluicefs import control, lifecycle
from sluicefs.cli.options import size
from sluicefs.errors import InvalidMountConfigError


@click.command(short_help="Show mounts, cache, pending uploads, request counts.")
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON: a list of mounts, or one object with DIR.")
def status(directory: str | None, as_json: bool) -> None:
    """Show the mount DIR, or all of this user's."""
    found = _ask(directory)
    if as_json:
        click.echo(json.dumps(found[0] if directory else found, indent=2))
        return
    if not found:
        click.echo("Nothing is mounted.")
    for answer in found:
        click.echo("\n".join(_lines(answer)))


@click.command(short_help="The same, live.")
@click.argument("directory", metavar="[DIR]", required=False)
def top(directory: str | None) -> None:
    """Show the mount DIR, or all of this user's, once a second until Ctrl-C."""
    from rich.live import Live
    from rich.table import Table

    def table(before: dict[str, Any], seconds: float) -> Table:
        shown = Table(expand=True)
        shown.add_column("mount")
        for title in ("requests/s", "down/s", "up/s", "pending", "retries"):
            shown.add_column(title, justify="right")
        for path, now in current.items():
            old = before.get(path, now)
            if not now["alive"]:
                shown.add_row(path, "does not answer", "", "", "", "")
                continue
            total, former = (sum(answer.get("requests", {}).values()) for answer in (now, old))
            rates = [(now[name] - old.get(name, 0)) / seconds for name in ("bytes_down", "bytes_up")]
            pending = now["pending"]
            shown.add_row(
                f"{path}\n{_source(now)}",
                f"{(total - former) / seconds:.0f}",
                size(rates[0]),
                size(rates[1]),
                f"{pending['files']} files, {size(pending['bytes'])}",
                str(now["retries"]),
            )
        return shown

    current = {answer["mountpoint"]: answer for answer in _ask(directory)}
    then = time.monotonic()
    with Live(table(current, 1.0), auto_refresh=False) as live:
        while True:
            time.sleep(1)
            before, current = current, {answer["mountpoint"]: answer for answer in _ask(directory)}
            now = time.monotonic()
            live.update(table(before, now - then), refresh=True)
            then = now


def _ask(directory: str | None) -> list[dict[str, Any]]:
    """Each mount's own answer, with `alive`; a mount whose process does not answer has little more."""
    mounts = control.list_mounts()
    if directory is not None:
        path = control.real_path(directory)
        mounts = [row for row in mounts if row.path == path]
        if not mounts:
            raise InvalidMountConfigError(f"{directory} is not a mount of sluicefs. `sluicefs status` lists those there are.")
    answers = []
    for row in mounts:
        try:
            answers.append({**control.call(row.path, "status"), "alive": True})
        except (OSError, control.ControlError) as error:
            dead = isinstance(error, ConnectionError) and lifecycle.is_dead(row.path)
            said = error.strerror if isinstance(error, OSError) else None
            why = "its process is gone" if dead else said or str(error)
            answers.append({"mountpoint": row.path, "source": row.source, "alive": False, "dead": dead, "why": why})
    return answers


def _source(answer: dict[str, Any]) -> str:
    prefix = answer["prefix"].rstrip("/")
    return f"{answer['bucket']}:/{prefix}" if prefix else str(answer["bucket"])


def _lines(answer: dict[str, Any]) -> list[str]:
    path = answer["mountpoint"]
    if not answer["alive"]:
        clean_up = [f"  clean up with: sluicefs unmount {path}"] if answer["dead"] else []
        return [f"{path}  {answer['source']}  does not answer: {answer['why']}", *clean_up]
    minutes, seconds = divmod(int(time.time() - answer["started"]), 60)
    hours, minutes = divmod(minutes, 60)
    mode = "read-only" if answer["read_only"] else f"read-write ({answer['write_mode']})"
    pending, cache = answer["pending"], answer["cache"]
    requests = ", ".join(f"{name} {count}" for name, count in sorted(answer["requests"].items())) or "none"
    lines = [
        f"{path}  {_source(answer)}  {answer['endpoint']}",
        f"  {mode}, process {answer['pid']}, up {hours}:{minutes:02}:{seconds:02}",
        f"  pending   {pending['files']} files, {size(pending['bytes'])}",
        f"  memory    {size(cache['used'])} of {size(cache['budget'])}, hits {cache['hits']}, misses {cache['misses']}",
        *_disk(answer["disk"]),
        f"  requests  {requests}; retries {answer['retries']}",
        f"  moved     {size(answer['bytes_down'])} down, {size(answer['bytes_up'])} up",
    ]
    if answer.get("if_match") is False:
        lines.append("  note      the endpoint ignores If-Match: two writers within one round trip can lose a change")
    if answer.get("left_out"):
        some = ", ".join(map(repr, answer["left_out"][:5]))
        more = ", …" if answer["left_out_count"] > 5 else ""
        lines.append(f"  left out  {answer['left_out_count']} keys that cannot be file names: {some}{more}")
    return lines


def _disk(disk: dict[str, Any] | None) -> list[str]:
    """The line on the disk cache, if there is one; what is amiss with it at its end."""
    if disk is None:
        return []
    words = [f"{size(disk['used'])} of {size(disk['limit'])}", f"hits {disk['hits']}, misses {disk['misses']}"]
    if not disk["on"]:
        words.append("off for now")
    if disk["bytes_skipped"]:
        words.append(f"{size(disk['bytes_skipped'])} not taken")
    if disk["damaged"]:
        words.append(f"{disk['damaged']} damaged")
    return [f"  disk      {', '.join(words)}"]
