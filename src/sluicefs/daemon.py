"""The process that serves one mount: takes its order from stdin, opens the store, and runs `mount.serve`.

The order comes through a pipe, as a secret must stand neither in argv nor in the environment of this process or its children.
What went wrong before the mount answered goes back through another pipe, as a sentence.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sluicefs import errors
from sluicefs.config import Config

if TYPE_CHECKING:
    from sluicefs.store.s3 import S3Store

log = logging.getLogger(__name__)

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "R2_SECRET_ACCESS_KEY", "R2_SESSION_TOKEN")
CONNECTIONS = 32  # readers and writers have 16 threads each: neither waits for the other's
_LOG_SIZE = 10 * 1024 * 1024  # bytes; three old ones are kept
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_ARENAS = 2
_PR_SET_DUMPABLE = 4  # sys/prctl.h
_LARGE = 256 * 1024  # bytes: what is larger is a mapping of its own. The kernel writes 128 KiB at a time.
_TOP = 4 * 1024 * 1024  # bytes of free memory at the end of a heap before it is given back


def open_store(config: Config, credentials: Any = None, environment: Mapping[str, str] | None = None) -> S3Store:
    """The bucket, found to answer. Raises MissingCredentialsError and BucketAccessError."""
    from sluicefs.store.s3 import S3Store, resolve_credentials

    assert config.endpoint is not None and config.region is not None  # `config.load` saw to it
    store = S3Store(
        config.bucket,
        endpoint=config.endpoint,
        region=config.region,
        credentials=resolve_credentials(credentials, environment),
        provider=config.provider,
        timeout=config.timeout,
        connections=CONNECTIONS,
        ca_bundle=config.ca_bundle,
    )
    try:
        _probe(store, config.prefix)
    except errors.SluiceError:
        store.close()
        raise
    return store


def _probe(store: S3Store, prefix: str) -> None:
    try:
        store.probe()
    except errors.BucketAccessError as refused:
        cause = refused.__cause__
        if not prefix or not isinstance(cause, errors.AccessDeniedError) or cause.code not in ("AccessDenied", ""):
            raise
        try:
            store.list(prefix, limit=1)  # a key may be limited to the prefix
        except errors.StoreError:
            raise refused from cause


def run(config: Config, store: S3Store, ready: Callable[[], None]) -> None:
    """Serve until unmounted. Raises MountError, UnmountError."""
    for name in SECRETS:
        os.environ.pop(name, None)  # fusermount is a child of ours
    _leave_no_core()
    _bound_heap()
    from sluicefs.mount import serve

    serve(config, store, ready=ready)


def log_to(config: Config, path: str | None) -> None:
    """Log to the file `path` (private, renewed at 10 MiB), or to stderr."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        from logging.handlers import RotatingFileHandler

        os.umask(0o077)
        handler = RotatingFileHandler(path, maxBytes=_LOG_SIZE, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    for noisy in ("botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # their debug lines hold request headers
    _raise_limit()


def notify_supervisor() -> None:
    """Tell systemd that the mount answers (sd_notify(3)); without a supervisor, nothing."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.send(f"READY=1\nMAINPID={os.getpid()}".encode())


def _leave_no_core() -> None:
    """A crash must not write this process's memory anywhere: the secret key is in it. See prctl(2)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # where cores go to a program, the limit does not hold


def _bound_heap() -> None:
    """Give freed memory back: some hundred threads would keep 20 MB each of glibc's heaps and all large buffers in them.

    Measured under mixed load with --memory 128M: 430 MB resident without it, 190 MB with it. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and no such heaps
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _TOP)


def _raise_limit() -> None:
    """As many open files as this user may have: each one open on the mount can cost one here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """The detached process. stdin: the order; file descriptor argv[1]: the answer, one JSON line."""
    order = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # the starter need not wait for us
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    answer = os.fdopen(int(sys.argv[1]), "w")
    os.set_inheritable(answer.fileno(), False)

    def say(kind: str, text: str) -> bool:
        """False where whoever asked for the mount is gone."""
        if not answer.closed:
            try:
                with answer:
                    answer.write(json.dumps({"kind": kind, "text": text}) + "\n")
            except BrokenPipeError:
                return False
        return True

    def ready() -> None:
        if not say("ready", str(os.getpid())):
            log.warning("whoever asked for this mount waits no more: it ends")
            os.kill(os.getpid(), signal.SIGTERM)

    config = Config(**order["config"])
    log_to(config, order["log_file"])
    try:
        store = open_store(config, order["credentials"], {**os.environ, **order["secrets"]})
        del order
        run(config, store, ready)
    except errors.SluiceError as error:
        log.error("%s", error)
        say(type(error).__name__, str(error))
        sys.exit(1)
    except Exception as error:
        log.exception("the mount process failed")
        say("MountError", f"The mount process failed in a way it should not: {type(error).__name__}: {error}.")
        sys.exit(1)
