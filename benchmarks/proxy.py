"""The server's door: HAProxy in front of an S3 server, which counts requests and can delay each of them.

One door delays and one does not; both log every request to this process. Bodies are spliced by the kernel. Signatures hold, as
the Host header passes unchanged. A line of the log that got lost would make a contestant look better than it is, so it is an
error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

CLASS_A = {"PutObject", "CopyObject", "ListObjects", "CreateMultipartUpload", "UploadPart", "UploadPartCopy"} | {
    "CompleteMultipartUpload",
    "ListMultipartUploads",
    "ListParts",
    "ListBuckets",
}
CLASS_B = {"GetObject", "HeadObject", "HeadBucket", "GetBucketLocation", "Other"}
PRICE_A, PRICE_B = 4.50e-6, 0.36e-6  # dollars a request; DELETE is free (R2's price list)
_SO_RCVBUFFORCE = 33
_LONGEST = 65_536


class ProxyError(Exception):
    """HAProxy is missing, did not start, or lost log lines."""


@dataclass
class Counts:
    """Requests by S3 verb, answers of 400 and above, and bytes on the wire, headers included."""

    requests: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    up: int = 0
    down: int = 0

    @property
    def total(self) -> int:
        return sum(self.requests.values())

    @property
    def dollars(self) -> float:
        """What these requests cost on R2."""
        a = sum(number for verb, number in self.requests.items() if verb in CLASS_A)
        b = sum(number for verb, number in self.requests.items() if verb in CLASS_B)
        return a * PRICE_A + b * PRICE_B

    def add(self, line: str) -> None:
        """One line of the log: method, target, status, bytes up, bytes down, copy source or "-"."""
        method, target, status, up, down, source = line.split(" ")[:6]
        if method == "<BADREQ>" or target == "-":
            return  # a connection that was closed without a request
        verb = classify(method, target, source != "-")
        self.requests[verb] = self.requests.get(verb, 0) + 1
        self.refused += int(status) >= 400 or int(status) < 0
        self.up += int(up)
        self.down += int(down)

    def as_json(self) -> dict[str, object]:
        return {
            "requests": dict(sorted(self.requests.items())),
            "total": self.total,
            "refused": self.refused,
            "up": self.up,
            "down": self.down,
            "dollars": self.dollars,
        }


def classify(method: str, target: str, copies: bool = False) -> str:
    """The S3 operation of a path-style request; "Other" where it is none that a file system makes."""
    parts = urlsplit(target if target.startswith("/") else "/" + target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = parts.path.lstrip("/").partition("/")
    if not bucket:
        return "ListBuckets" if method == "GET" else "Other"
    if not key:
        if method == "GET":
            known = {"uploads": "ListMultipartUploads", "location": "GetBucketLocation"}
            other = {"acl", "policy", "versioning", "lifecycle", "tagging", "cors", "object-lock", "encryption"}
            usual = "Other" if other & set(query) else "ListObjects"
            return next((verb for name, verb in known.items() if name in query), usual)
        if method == "POST" and "delete" in query:
            return "DeleteObjects"
        return {"HEAD": "HeadBucket", "DELETE": "DeleteBucket"}.get(method, "Other")
    if "uploadId" in query:
        if method == "PUT":
            return "UploadPartCopy" if copies else "UploadPart"
        return {"POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload", "GET": "ListParts"}.get(method, "Other")
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "Other"
    if method == "PUT" and copies:
        return "CopyObject"
    return {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, "Other")


class Proxy:
    """Two doors to `upstream` ("http://host:port"): `endpoints[0]` without, `endpoints[delay]` with `delay` ms a request."""

    def __init__(self, upstream: str, folder: Path, delay: int = 30) -> None:
        self.endpoints: dict[int, str] = {}
        self._upstream = urlsplit(upstream).netloc
        self._folder = folder
        self._delay = delay
        self._log: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._counts = Counts()
        self._lock = threading.Lock()
        self._received = 0
        self._garbled = 0

    def __enter__(self) -> Proxy:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def take(self) -> Counts:
        """What passed since the last call, once every request answered is logged. Raises ProxyError when lines are lost."""
        end = time.monotonic() + 5
        while self._received + self._garbled < self._let_in() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02)
        with self._lock:
            counts, self._counts = self._counts, Counts()
        lost = int(self._ask("show info").get("DroppedLogs", "0"))
        if lost or self._garbled:
            raise ProxyError(f"HAProxy dropped {lost} lines of its log, {self._garbled} were not understood: counts are void")
        return counts

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        log, self._log = self._log, None
        if log is not None:
            with contextlib.suppress(OSError):
                log.shutdown(socket.SHUT_RD)
            log.close()

    # --- inside

    def _start(self) -> None:
        binary = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if binary is None:
            raise ProxyError("haproxy is not installed: run  apt-get install haproxy")
        self._log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.suppress(PermissionError):
            self._log.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._log.bind(("127.0.0.1", 0))
        ports = _free_ports(2)
        (self._folder / "delay.lua").write_text(
            f'core.register_action("delay", {{"http-req"}}, function(txn) core.msleep({self._delay}) end)\n'
        )
        (self._folder / "haproxy.cfg").write_text(self._configuration(self._log.getsockname()[1], *ports))
        with (self._folder / "haproxy.log").open("wb") as log:
            command = [binary, "-db", "-q", "-f", str(self._folder / "haproxy.cfg")]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=log, start_new_session=True)
        end = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                words = (self._folder / "haproxy.log").read_text(errors="replace").strip()[-300:]
                raise ProxyError(f"haproxy did not start: {words or 'no message'}")
            time.sleep(0.02)
        self.endpoints = {delay: f"http://127.0.0.1:{port}" for delay, port in zip((0, self._delay), ports, strict=True)}
        threading.Thread(target=self._listen, args=(self._log,), name="access log", daemon=True).start()

    def _configuration(self, log_port: int, direct: int, delayed: int) -> str:
        return f"""
global
  maxconn 4000
  tune.http.logurilen 4096
  lua-load {self._folder}/delay.lua
  stats socket {self._folder}/stats.sock mode 600
  log 127.0.0.1:{log_port} len 8192 format raw local0
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  option splice-response
  option splice-request
  option http-no-delay
  http-reuse always
  log global
  log-format "%HM %[capture.req.uri] %ST %U %B %[capture.req.hdr(0)]"
frontend direct
  bind 127.0.0.1:{direct}
  http-request capture req.hdr(x-amz-copy-source) len 64
  default_backend s3
frontend delayed
  bind 127.0.0.1:{delayed}
  http-request capture req.hdr(x-amz-copy-source) len 64
  http-request lua.delay
  default_backend s3
backend s3
  server s3 {self._upstream} maxconn 2000
"""

    def _listen(self, log: socket.socket) -> None:
        while True:
            try:
                line = log.recv(_LONGEST)
            except OSError:
                return
            if not line:
                return
            with self._lock:
                try:
                    self._counts.add(line.decode(errors="replace").rstrip("\n"))
                    self._received += 1
                except ValueError:
                    self._garbled += 1

    def _answers(self) -> bool:
        try:
            return bool(self._ask("show info"))
        except OSError:
            return False

    def _let_in(self) -> int:
        """Requests that have ended, by HAProxy's own count of answers."""
        lines = self._raw("show stat").splitlines()
        names = lines[0].lstrip("# ").split(",")
        rows: list[Mapping[str, str]] = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
        fronts = [row for row in rows if row.get("svname") == "FRONTEND"]
        answers = [f"hrsp_{kind}" for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other")]
        return sum(int(row.get(name) or 0) for row in fronts for name in answers)

    def _ask(self, command: str) -> dict[str, str]:
        pairs = (line.partition(":") for line in self._raw(command).splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _raw(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
            admin.settimeout(5)
            admin.connect(str(self._folder / "stats.sock"))
            admin.sendall(command.encode() + b"\n")
            answer = b""
            while chunk := admin.recv(65536):
                answer += chunk
        return answer.decode()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for holder in held:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in held]
    finally:
        for holder in held:
            holder.close()
