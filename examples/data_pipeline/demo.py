"""`make demo`: real data into a bucket, a pipeline in one sandbox, its results in the next, and the same objects by S3.

Needs no account: the bucket is on a development server of this machine. Exits 1 at the first step that fails.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import botocore.config
import botocore.session
import vega_datasets

import sluicefs
from sluicefs import control
from sluicefs.devserver import DevServer

BUCKET = "weather"
HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "build" / "demo"
RESULTS = ("monthly.parquet", "monthly.csv", "monthly.png")

READ_BACK = """
import pandas
months = pandas.read_parquet("/data/results/monthly.parquet")
warmest = months.loc[months.groupby("city").mean_c.idxmax()]
for row in warmest.itertuples():
    print(f"    {row.city}: warmest in month {row.month}, {row.mean_c:.1f} degrees C on average")
"""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    started = time.monotonic()
    print(f"* {text}", flush=True)
    yield
    print(f"    done in {time.monotonic() - started:.1f} s", flush=True)


def run(sandbox: sluicefs.Sandbox, *command: str) -> None:
    result = sandbox.exec(command, timeout=100)
    print("".join(f"    {line.strip()}\n" for line in result.stdout.splitlines()), end="")
    if not result.success:
        raise SystemExit(f"The command {command} failed with status {result.exit_code}:\n{result.stderr}")


def plain_s3_client(server: DevServer):  # type: ignore[no-untyped-def]  # botocore makes its classes as it runs
    """Nothing of sluicefs: what any other program that reads the bucket uses."""
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )


def main() -> None:
    logging.disable(logging.INFO)
    source = Path(vega_datasets.__file__).parent / "_data"
    files = sorted(source.glob("*.csv"))
    with DevServer("ministack") as server:
        access = {
            "endpoint": server.endpoint,
            "region": server.region,
            "credentials": (server.access_key, server.secret_key),
        }
        with step(
            f"An S3 server runs on this machine. A plain S3 client puts {len(files)} data files into the bucket '{BUCKET}'."
        ):
            server.create_bucket(BUCKET)
            client = plain_s3_client(server)
            for path in files:
                client.put_object(Bucket=BUCKET, Key=path.name, Body=path.read_bytes())

        with step("Sandbox one mounts the bucket on /data and runs the pipeline; it opens files, and knows nothing of S3."):
            with sluicefs.Sandbox("one") as sandbox:
                sandbox.mount_bucket(BUCKET, "/data", **access)
                sandbox.write_file("pipeline.py", (HERE / "pipeline.py").read_text())
                run(sandbox, "python3", "pipeline.py")
            print("    the sandbox and all its files are gone")

        with step("Sandbox two mounts the same bucket, read-only: the results of the first are there."):
            with sluicefs.Sandbox("two") as sandbox:
                sandbox.mount_bucket(BUCKET, "/data", read_only=True, **access)
                run(sandbox, "python3", "-c", READ_BACK)
                seen = {name: sandbox.read_file(f"/data/results/{name}", encoding=None) for name in RESULTS}

        with step("The plain S3 client reads the same objects, byte for byte."):
            for name in RESULTS:
                content = client.get_object(Bucket=BUCKET, Key=f"results/{name}")["Body"].read()
                if content != seen[name]:
                    raise SystemExit(f"results/{name} differs between the mount and the plain client")
                print(f"    results/{name}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}…")
        OUTPUT.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (OUTPUT / name).write_bytes(seen[name])
    if any(row.source == f"sluicefs:{BUCKET}" for row in control.list_mounts()):
        raise SystemExit("a mount is left")
    print(f"* Everything is unmounted and stopped. The plot is {OUTPUT / 'monthly.png'}")


if __name__ == "__main__":
    try:
        main()
    except (sluicefs.SluiceError, OSError) as error:
        sys.exit(f"The demo failed: {error}")
