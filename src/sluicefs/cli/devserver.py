"""`sluicefs dev-server`: an S3 server on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal

import click

from sluicefs.config import is_bucket_name
from sluicefs.errors import InvalidMountConfigError


@click.command(short_help="Run an S3 server on this machine, for development.")
@click.option("--keep", metavar="DIR", help="Keep the objects in DIR (SeaweedFS) [in memory, gone at the end (MiniStack)].")
@click.option("--port", metavar="N", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1 [any free one].")
@click.option("--bucket", metavar="NAME", default="dev-bucket", help="A bucket to make [dev-bucket].")
def dev_server(keep: str | None, port: int, bucket: str) -> None:
    """Run an S3 server on 127.0.0.1, and print what a shell needs to use it; stop it with Ctrl-C.

    Never for data that matters.
    """
    from sluicefs.devserver import DevServer, DevServerError

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    if not is_bucket_name(bucket):
        raise InvalidMountConfigError(f"--bucket {bucket}: a bucket's name is 3 to 63 of a-z, 0-9, '-', '.'.")
    if keep is not None:
        keep = os.path.abspath(keep)
        try:
            os.makedirs(keep, mode=0o700, exist_ok=True)
        except OSError as error:
            raise DevServerError(f"The folder {keep} cannot be made: {error.strerror}. Give another with --keep.") from None
    with DevServer("ministack" if keep is None else "seaweedfs", data=keep, port=port) as server:
        server.create_bucket(bucket)
        click.echo(f"# The bucket is {bucket!r}. In another terminal, set these and then: sluicefs mount {bucket} DIR")
        click.echo(f"export AWS_ENDPOINT_URL={server.endpoint}")
        click.echo(f"export AWS_ACCESS_KEY_ID={server.access_key}")
        click.echo(f"export AWS_SECRET_ACCESS_KEY={server.secret_key}")
        click.echo(f"export AWS_REGION={server.region}")
        click.echo("# Running until Ctrl-C.", err=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            click.echo("# Stopping.", err=True)
