"""`sluicefs doctor`: checks all that a mount needs, one thing at a time, and says the fix of each that fails."""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import os
import secrets
import shutil
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import click

from sluicefs import daemon, lifecycle
from sluicefs.cli.options import config_from, mount_options
from sluicefs.config import Config
from sluicefs.errors import NotFoundError, SluiceError, StoreError
from sluicefs.store.api import Store

_SKEW = 300.0  # seconds; S3 refuses 900, and a clock that is 300 off will be there soon
_WAIT = 10.0  # seconds for a connection


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `fix` is empty where nothing needs to be done."""

    check: str
    ok: bool
    detail: str
    fix: str = ""


@click.command(short_help="Check FUSE, credentials, endpoint, clock, permissions.")
@click.argument("target", metavar="BUCKET[:/PREFIX]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@mount_options
def doctor(target: str, as_json: bool, **given: Any) -> None:
    """Check all that mounting BUCKET needs, and say what to do. One probe object is written and deleted again.

    The exit status is 0 if all is well.
    """
    logging.getLogger("sluicefs").addHandler(logging.NullHandler())  # what would be logged is a finding
    config = config_from(target, "/", given)
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if not as_json:
            mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red")
            click.echo(f"{mark}  {finding.check}: {finding.detail}")
            if finding.fix:
                click.echo(f"      {finding.fix}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


def examine(config: Config) -> Iterator[Finding]:
    """The findings, in the order in which one thing needs the other."""
    yield _fuse()
    yield _fusermount()
    if config.allow_other:
        yield _allow_other()
    reached = True
    for finding in _endpoint(config):
        reached = reached and finding.ok
        yield finding
    try:
        from sluicefs.store.s3 import resolve_credentials

        credentials = resolve_credentials()
        yield Finding(
            "credentials", True, f"access key {_shortened(credentials.keys().access_key)}, from {_source(credentials)}"
        )
    except (SluiceError, StoreError) as error:
        yield Finding("credentials", False, "none that work", str(error))
        return
    if reached:
        yield from _permissions(config)


def _fuse() -> Finding:
    try:
        lifecycle.check_fuse()
    except SluiceError as error:
        return Finding("FUSE", False, "does not work here", str(error))
    return Finding("FUSE", True, "/dev/fuse opens")


def _fusermount() -> Finding:
    program = shutil.which("fusermount")
    if program is None:
        return Finding("fusermount", os.getuid() == 0, "missing", "Install it: apt-get install fuse.")
    if os.getuid() != 0 and not os.stat(program).st_mode & stat.S_ISUID:
        return Finding("fusermount", False, f"{program} may not mount", f"It must be setuid root: chmod u+s {program} as root.")
    return Finding("fusermount", True, program)


def _allow_other() -> Finding:
    if lifecycle.allows_other():
        return Finding("allow_other", True, "allowed")
    return Finding("allow_other", False, "/etc/fuse.conf has no user_allow_other", "Add that line to it, or mount as root.")


def _endpoint(config: Config) -> Iterator[Finding]:
    assert config.endpoint is not None
    parts = urlsplit(config.endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
        yield Finding("network", True, f"{host} is reached through a proxy")
    else:
        try:
            addresses = sorted({str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
            yield Finding("name", True, f"{host} is {', '.join(addresses[:3])}")
        except OSError as error:
            yield Finding("name", False, f"{host} cannot be resolved: {error}", "Check the endpoint's name, and DNS here.")
            return
        try:
            connection = socket.create_connection((host, port), _WAIT)
            yield Finding("connection", True, f"port {port} answers")
        except OSError as error:
            fix = "Check the endpoint's host and port, whether the server runs, and the firewall."
            yield Finding("connection", False, f"port {port} does not answer: {error}", fix)
            return
        with connection:
            if parts.scheme == "https":
                try:
                    with ssl.create_default_context(cafile=config.ca_bundle).wrap_socket(
                        connection, server_hostname=host
                    ) as tls:
                        yield Finding("TLS", True, f"{tls.version()}, the certificate is trusted")
                except OSError as error:
                    fix = "Give the authority's certificate with --ca-bundle; check whether the port speaks https."
                    yield Finding("TLS", False, str(error), fix)
                    return
    skew = _skew(config)
    if skew is not None:
        fix = "" if abs(skew) < _SKEW else "Set this machine's clock, for instance with NTP: signatures hold its time."
        yield Finding("clock", abs(skew) < _SKEW, f"{skew:+.0f} s from the store's", fix)


def _skew(config: Config) -> float | None:
    """Seconds that our clock is ahead, by the Date of any answer; None where there is none."""
    assert config.endpoint is not None
    request = urllib.request.Request(config.endpoint, method="HEAD")
    context = ssl.create_default_context(cafile=config.ca_bundle)
    try:
        with urllib.request.urlopen(request, timeout=_WAIT, context=context) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
        error.close()
    except (OSError, ValueError):
        return None
    try:
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def _permissions(config: Config) -> Iterator[Finding]:
    try:
        store = daemon.open_store(config)
    except SluiceError as error:
        yield Finding("list", False, "refused", str(error))
        return
    yield Finding("list", True, f"the bucket {config.bucket!r} answers")
    key = f"{config.prefix}.sluicefs-doctor-{secrets.token_hex(8)}"
    body = secrets.token_bytes(64)
    try:
        if config.read_only:
            yield _try("read", lambda: _read_missing(store, key), "Give the key 'Object Read only'.")
            return
        written = _try("write", lambda: store.put(key, body), "Give the key 'Object Read & Write', or mount with --read-only.")
        yield written
        if written.ok:
            yield _try("read", lambda: _read_back(store, key, body), "Give the key 'Object Read & Write'.")
            fix = f"Give the key the right to delete; the probe object {key} is still there."
            yield _try("delete", lambda: store.delete(key), fix)
        else:
            yield _try("read", lambda: _read_missing(store, key), "Give the key 'Object Read only'.")
    finally:
        store.close()


def _read_back(store: Store, key: str, body: bytes) -> None:
    if bytes(store.get(key)[1]) != body:
        raise StoreError("the store gives back other bytes than were written")


def _read_missing(store: Store, key: str) -> None:
    with contextlib.suppress(NotFoundError):
        store.get(key)


def _try(check: str, action: Callable[[], object], fix: str) -> Finding:
    try:
        action()
    except StoreError as error:
        return Finding(check, False, str(error.strerror), fix)
    return Finding(check, True, "allowed")


def _shortened(key: str) -> str:
    return f"{key[:4]}…{key[-4:]}" if len(key) > 12 else "(short)"


def _source(credentials: Any) -> str:
    return str(getattr(credentials, "source", "botocore's chain"))
