"""The options of a mount as the command line shows them, made from the fields of Config: each is described once, there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sluicefs.config import OPTIONS, Config, load, parse_mount_options

F = TypeVar("F", bound=Callable[..., Any])

_METAVARS = {"bytes": "SIZE", "seconds": "TIME", "octal": "MODE"}


def mount_options(command: F) -> F:
    """Adds every option of a mount; the command takes them as keyword arguments and hands them to `config_from`."""
    for field in reversed([field for name, field in OPTIONS.items() if name != "prefix"]):
        command = _option(field)(command)
    return target_options(command)


def target_options(command: F) -> F:
    """Adds --config and -o only."""
    command = click.option("--config", metavar="FILE", help="The config file [the first sluicefs.toml found].")(command)
    return click.option("-o", "words", metavar="K=V,…", multiple=True, help="Options in fstab's form, as in -o ro,umask=022.")(
        command
    )


def config_from(target: str, mountpoint: str, given: dict[str, Any]) -> Config:
    """The Config for what the command line gave. Raises InvalidMountConfigError."""
    file = given.pop("config", None)
    flags: dict[str, Any] = {}
    for words in given.pop("words", ()):
        flags.update(parse_mount_options(words))
    flags.update({name: value for name, value in given.items() if value is not None})
    return load(target, mountpoint, flags, file=file)


def size(count: float) -> str:
    """`16.0 MiB` of a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _option(field: dataclasses.Field[Any]) -> Callable[[F], F]:
    unit, choices, short = (field.metadata[key] for key in ("unit", "choices", "short"))
    names = [f"--{field.name.replace('_', '-')}", *([short] if short else [])]
    text = field.metadata["help"]
    text = text[0].upper() + text[1:]
    if isinstance(field.default, bool):
        return click.option(*names, is_flag=True, default=None, help=f"{text}.")
    if field.default is not None:
        text += f" [{_shown(field.default, unit)}]"
    metavar = "|".join(choices) or _METAVARS.get(unit) or ("N" if "int" in str(field.type) else "TEXT")
    return click.option(*names, metavar=metavar, help=f"{text}.")


def _shown(value: Any, unit: str) -> str:
    if unit == "bytes":
        return size(value).replace(".0 ", " ")
    if unit == "octal":
        return f"{value:04o}"
    return f"{value:g} seconds" if unit == "seconds" else str(value)
