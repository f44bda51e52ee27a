"""The command line: arguments in, sentences and exit statuses out (0 done, 1 failed, 2 wrong usage). Decides nothing itself.

Each command is in a file of its own, imported when it is asked for: `sluicefs mount` should not wait for what others need.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import sys
import traceback

import click

from sluicefs import __version__
from sluicefs.errors import InvalidMountConfigError, SluiceError

_COMMANDS = {
    "mount": "mount",
    "unmount": "mount",
    "status": "status",
    "top": "status",
    "run": "run",
    "warm": "warm",
    "cache": "cache",
    "recover": "recover",
    "doctor": "doctor",
    "dev-server": "devserver",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"sluicefs.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="sluicefs %(version)s")
def cli() -> None:
    """Mount a Cloudflare R2 or S3 bucket as a local directory."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sluicefs`, and of `mount.sluicefs`, by which mount(8) and /etc/fstab call it. Exits the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for number in range(3):  # a closed stdin, stdout or stderr: its number would go to the next file opened
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path can hold what this terminal cannot show
    if os.path.basename(sys.argv[0]) == "mount.sluicefs":
        if "-f" in arguments:
            sys.exit(0)  # mount(8) asks for everything but the mount
        arguments = ["mount", *(word for word in arguments if word not in ("-n", "-s", "-v"))]
    try:
        sys.exit(cli(arguments, prog_name="sluicefs", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SluiceError as error:
        if _wants_trace(arguments):
            traceback.print_exc()
        click.echo(f"sluicefs: {error}", err=True)
        sys.exit(2 if isinstance(error, InvalidMountConfigError) else 1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        sys.exit(1)
    except Exception as error:
        if _wants_trace(arguments):
            traceback.print_exc()
        click.echo(
            f"sluicefs: failed in a way it should not: {type(error).__name__}: {error}. SLUICEFS_LOG_LEVEL=debug shows where.",
            err=True,
        )
        sys.exit(1)


def _wants_trace(arguments: list[str]) -> bool:
    if os.environ.get("SLUICEFS_LOG_LEVEL") == "debug":  # for the commands that have no such option
        return True
    return "--log-level=debug" in arguments or ("--log-level", "debug") in itertools.pairwise(arguments)
