"""A request that broke off on our side and reaches the server all the same, after its retry and after what came next."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.config import Config, MiB
from sluicefs.devserver import DevServer
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.s3 import S3Store
from tests.conftest import Bucket
from tests.faults.proxy import FaultProxy

ME = Caller(os.getuid(), os.getgid())
SIZES = {"small": 1000, "parts": 12 * MiB}


class Bench:
    """A filesystem that reaches a server through a proxy, used as the kernel would, and a plain client beside it."""

    def __init__(self, bucket: Bucket, proxy: FaultProxy, staging: Path):
        self.proxy = proxy
        self.plain: S3Store = bucket.store()
        config = Config("bucket", "/nowhere", attr_ttl=0.0, part_size=5 * MiB, attrs="listing", memory=64 * MiB)
        self.store = bucket.store(endpoint=proxy.url, timeout=3.0)
        self.fs = FileSystem(config, self.store, str(staging))

    def late(self, verb: str, *, times: int | None = 1) -> None:
        """The next requests of that kind wait until `release`; None: all of them, so that the call fails."""
        self.proxy.add(f"late:seconds=3600,verb={verb}" + (f",times={times}" if times else ""))

    def release(self) -> list[int]:
        self.proxy.clear()
        return self.proxy.release()

    def exists(self, name: bytes) -> bool:
        try:
            self.fs.forget([(self.fs.lookup(ROOT_INO, name).ino, 1)])
        except OSError as error:
            assert error.errno == errno.ENOENT
            return False
        return True

    def replace(self, data: bytes, name: bytes = b"x") -> None:
        """open(O_CREAT | O_TRUNC), write, close."""
        if self.exists(name):
            node = self.fs.lookup(ROOT_INO, name)
            handle = self.fs.open(node.ino, os.O_WRONLY)
            self.fs.setattr(node.ino, SetAttr(size=0))
        else:
            handle, node = self.fs.create(ROOT_INO, name, 0o644, os.O_WRONLY | os.O_CREAT, ME)
        self.end(handle, node.ino, 0, data)

    def append(self, data: bytes, name: bytes = b"x") -> None:
        node = self.fs.lookup(ROOT_INO, name)
        self.end(self.fs.open(node.ino, os.O_WRONLY), node.ino, node.size, data)

    def end(self, handle: int, ino: int, start: int, data: bytes) -> None:
        try:
            for offset in range(0, len(data), MiB):
                self.fs.write(handle, start + offset, data[offset : offset + MiB])
            self.fs.flush(handle)
        finally:
            self.fs.release(handle)
            self.fs.forget([(ino, 1)])

    def stored(self, name: str = "x") -> bytes:
        return bytes(self.plain.get(name)[1])

    def names(self) -> list[str]:
        return [info.key for info in self.plain.list("").objects]


@pytest.fixture
def bench(tmp_path: Path, server: DevServer, bucket: Bucket) -> Iterator[Bench]:
    with FaultProxy(server.endpoint) as proxy:
        made = Bench(bucket, proxy, tmp_path / "staging")
        yield made
        proxy.clear()
        made.fs.close()
        made.store.close()
        made.plain.close()


@pytest.fixture(params=SIZES)
def data(request: pytest.FixtureRequest) -> bytes:
    return os.urandom(SIZES[request.param])


@pytest.mark.parametrize("verb", ["PutObject", "CompleteMultipartUpload"])
def test_a_late_replace_does_not_undo_a_later_one(bench: Bench, data: bytes, verb: str) -> None:
    bench.replace(b"first")
    bench.late(verb)
    bench.replace(data)
    bench.replace(b"last")
    bench.release()
    assert bench.stored() == b"last"
    bench.append(b" and more")
    assert bench.stored() == b"last and more"
    assert bench.names() == ["x"]


@pytest.mark.parametrize("verb", ["PutObject", "CompleteMultipartUpload"])
def test_a_late_first_version_does_not_undo_an_append(bench: Bench, data: bytes, verb: str) -> None:
    bench.late(verb)
    bench.replace(data)
    bench.append(b" and more")
    bench.release()
    assert bench.stored() == data + b" and more"
    bench.append(b" and more")
    assert bench.stored() == data + b" and more and more"
    assert bench.names() == ["x"]


@pytest.mark.parametrize("verb", ["PutObject", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"])
def test_a_late_append_does_not_undo_a_later_one(bench: Bench, data: bytes, verb: str) -> None:
    bench.replace(data)
    bench.late(verb)
    bench.append(b" one")
    bench.append(b" two")
    bench.release()
    assert bench.stored() == data + b" one two"
    bench.append(b" three")
    assert bench.stored() == data + b" one two three"
    assert bench.names() == ["x"]


@pytest.mark.parametrize("verb", ["CopyObject", "UploadPartCopy"])
def test_a_late_copy_of_a_rename_does_not_undo_what_was_written_under_the_new_name(
    bench: Bench, data: bytes, verb: str
) -> None:
    bench.replace(data)
    bench.late(verb)
    bench.fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    bench.append(b" and more", b"y")
    bench.release()
    assert bench.stored("y") == data + b" and more"
    assert bench.names() == ["y"]


def test_a_late_change_of_attributes_does_not_undo_what_was_written_since(bench: Bench, data: bytes) -> None:
    bench.replace(data)
    ino = bench.fs.lookup(ROOT_INO, b"x").ino
    bench.late("CopyObject")
    bench.fs.setattr(ino, SetAttr(mode=0o600))
    assert bench.fs.sync_all() == []
    bench.append(b" and more")
    bench.release()
    assert bench.stored() == data + b" and more"
    assert bench.plain.head("x").metadata["mode"] == str(0o100600)  # type: ignore[index]


def test_a_late_link_does_not_undo_a_file_of_its_name(bench: Bench) -> None:
    bench.late("PutObject")
    bench.fs.symlink(ROOT_INO, b"x", b"target", ME)
    bench.fs.unlink(ROOT_INO, b"x")
    bench.replace(b"file")
    bench.release()
    assert bench.stored() == b"file"


@pytest.mark.parametrize("lands", [True, False], ids=["lands", "lost"])
@pytest.mark.parametrize("verb", ["PutObject", "CompleteMultipartUpload"])
@pytest.mark.parametrize("change", ["replace", "append"])
def test_what_was_given_up_and_lands_all_the_same_is_no_conflict(
    request: pytest.FixtureRequest, bucket: Bucket, bench: Bench, data: bytes, change: str, verb: str, lands: bool
) -> None:
    """The call failed, the application goes on: what it wrote then is the file, whichever of its tries arrived."""
    if bucket.server.kind == "seaweedfs" and "parts-append-CompleteMultipartUpload-lands" in request.node.name:
        request.applymarker(pytest.mark.xfail(reason="copied parts have no MD5 there: which ETag to look for is not known"))
    bench.replace(data)
    handle = bench.fs.open(bench.fs.lookup(ROOT_INO, b"x").ino, os.O_RDWR)
    node = bench.fs.lookup(ROOT_INO, b"x")
    expected = data + b" one"
    if change == "replace":
        bench.fs.setattr(node.ino, SetAttr(size=0))
        expected = data[::-1]
        bench.fs.write(handle, 0, expected)
    else:
        bench.fs.write(handle, len(data), b" one")
    bench.late(verb, times=None)
    small = len(expected) <= 2 * bench.fs.core.config.part_size
    if small == (verb == "PutObject"):
        with pytest.raises(OSError) as failed:
            bench.fs.fsync(handle)
        assert failed.value.errno in (errno.EIO, errno.ETIMEDOUT)
    else:
        bench.fs.fsync(handle)
    if lands:
        bench.release()
    else:
        bench.proxy.clear()
    bench.fs.write(handle, len(expected), b" two")
    bench.fs.flush(handle)
    if not lands:
        bench.release()
    bench.fs.release(handle)
    assert bench.stored() == expected + b" two"
    bench.append(b" three")
    assert bench.stored() == expected + b" two three"
    assert bench.names() == ["x"]


def test_a_late_delete_is_the_one_that_nothing_stops(bench: Bench) -> None:
    """S3's DELETE has no condition that every store knows. SEMANTICS.md says so."""
    bench.replace(b"old")
    bench.late("DeleteObject")
    bench.fs.unlink(ROOT_INO, b"x")
    bench.replace(b"new")
    bench.release()
    assert bench.names() == []
