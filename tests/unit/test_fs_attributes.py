"""Attributes in metadata: kept when others wrote them, refused at the call when they do not fit, read in several forms."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluicefs.config import Config
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO, Node
from sluicefs.fs.stored import FLAG
from sluicefs.store.memory import MemoryStore

ME = Caller(os.getuid(), os.getgid())
Make = Callable[..., FileSystem]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def make(store: MemoryStore, tmp_path: Path) -> Iterator[Make]:
    """Makes filesystems on `store`, sent and closed at the end."""
    made: list[FileSystem] = []

    def new(**options: object) -> FileSystem:
        made.append(FileSystem(Config("bucket", "/nowhere", **options), store, str(tmp_path)))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for fs in made:
        assert not fs.sync_all()
        fs.close()


def find(fs: FileSystem, path: str) -> Node:
    node = fs.core.table.root
    for name in path.split("/"):
        node = fs.lookup(node.ino, name.encode())
    return node


def names(fs: FileSystem, path: str = "") -> list[str]:
    handle = fs.opendir(find(fs, path).ino if path else ROOT_INO)
    found = [name for name, _, _ in fs.entries(handle)]
    fs.releasedir(handle)
    return sorted(found[2:])


def replace_content(fs: FileSystem, path: str, data: bytes, flags: int = os.O_WRONLY | os.O_TRUNC) -> None:
    handle = fs.open(find(fs, path).ino, flags)
    fs.write(handle, 0, data)
    fs.flush(handle)
    fs.release(handle)


def failing(number: int) -> object:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


FOREIGN = {"author": "somebody", "team": "data"}


@pytest.mark.parametrize("attrs", ["auto", "listing", "full"])
@pytest.mark.parametrize("how", ["chmod", "rename", "append", "replace", "xattr"])
def test_what_others_stored_with_an_object_stays(store: MemoryStore, make: Make, attrs: str, how: str) -> None:
    store.put("page", b"<p>", metadata=FOREIGN, content_type="text/html; charset=utf-8")
    fs, key = make(attrs=attrs), "page"
    names(fs)
    if how == "chmod":
        fs.setattr(find(fs, "page").ino, SetAttr(mode=0o600))
    elif how == "rename":
        fs.rename(ROOT_INO, b"page", ROOT_INO, b"renamed.txt")
        key = "renamed.txt"
    elif how == "xattr":
        fs.setxattr(find(fs, "page").ino, b"user.a", b"1")
    else:
        replace_content(fs, "page", b"new", os.O_WRONLY | (os.O_TRUNC if how == "replace" else 0))
    assert not fs.sync_all()
    info = store.head(key)
    assert FOREIGN.items() <= (info.metadata or {}).items()
    assert info.content_type == "text/html; charset=utf-8"


def test_the_type_follows_the_name_when_nobody_chose_it(store: MemoryStore, make: Make) -> None:
    fs = make()
    handle, _ = fs.create(ROOT_INO, b"a.txt", 0o644, os.O_WRONLY, ME)
    fs.flush(handle)
    fs.release(handle)
    assert store.head("a.txt").content_type == "text/plain"
    fs.rename(ROOT_INO, b"a.txt", ROOT_INO, b"a.json")
    assert store.head("a.json").content_type == "application/json"
    ino = find(fs, "a.json").ino
    assert fs.getxattr(ino, b"user.sluicefs.content_type") == b"application/json"
    fs.setxattr(ino, b"user.sluicefs.content_type", b"application/geo+json")
    assert not fs.sync_all()
    fs.rename(ROOT_INO, b"a.json", ROOT_INO, b"a.bin")
    assert store.head("a.bin").content_type == "application/geo+json"
    assert fs.getxattr(ino, b"user.sluicefs.etag").decode() == store.head("a.bin").etag
    assert fs.getxattr(ino, b"user.sluicefs.storage_class") == b"STANDARD"
    for name, value in ((b"user.sluicefs.etag", b"x"), (b"user.sluicefs.other", b"x")):
        with failing(errno.EPERM):
            fs.setxattr(ino, name, value)
    with failing(errno.EINVAL):
        fs.setxattr(ino, b"user.sluicefs.content_type", b"text/plain\r\nx-evil: 1")


@pytest.mark.parametrize("directory", [False, True])
def test_extended_attributes_hold_any_bytes(store: MemoryStore, make: Make, directory: bool) -> None:
    fs = make(xattr=True)
    ino = fs.mkdir(ROOT_INO, b"x", 0o755, ME).ino if directory else fs.mknod(ROOT_INO, b"x", stat.S_IFREG | 0o644, 0, ME).ino
    values = {b"user.all": bytes(range(256)), b"user.empty": b"", b"user.\xff\xfe": b"name of any bytes", b"trusted.t": b"t"}
    for name, value in values.items():
        fs.setxattr(ino, name, value)
    fs.setxattr(ino, b"user.gone", b"x")
    fs.removexattr(ino, b"user.gone")
    for other in (fs, make(xattr=True)):
        assert not fs.sync_all()
        number = find(other, "x").ino
        assert {name: other.getxattr(number, name) for name in other.listxattr(number)} == values
    for name in (b"user.gone", b"security.capability"):
        with failing(errno.ENODATA):
            fs.getxattr(ino, name)
    for name in (b"system.posix_acl_access", b"plain"):
        with failing(errno.EOPNOTSUPP):
            fs.getxattr(ino, name)
    with failing(errno.ENODATA):
        fs.removexattr(ino, b"user.gone")
    with failing(errno.EOPNOTSUPP):
        fs.setxattr(ino, b"security.capability", b"x")


@pytest.mark.parametrize(("provider", "limit"), [("s3", 2048), ("r2", 8192), ("auto", 2048), ("other", 2048)])
@pytest.mark.parametrize("directory", [False, True])
def test_attributes_that_do_not_fit_are_refused_at_the_call(
    store: MemoryStore, make: Make, provider: str, limit: int, directory: bool
) -> None:
    fs = make(provider=provider, xattr=True)
    ino = fs.mkdir(ROOT_INO, b"x", 0o755, ME).ino if directory else fs.mknod(ROOT_INO, b"x", stat.S_IFREG | 0o644, 0, ME).ino
    with failing(errno.E2BIG):
        fs.setxattr(ino, b"user.huge", bytes(limit + 1))
    stored = 0
    with failing(errno.ENOSPC):
        for stored in range(1000):
            fs.setxattr(ino, b"user.%d" % stored, b"v" * 60)
    assert 10 < stored < 100
    assert not fs.sync_all()
    metadata = store.head("x/" if directory else "x").metadata or {}
    assert limit - 250 < sum(len(name + value) for name, value in metadata.items()) <= limit
    assert len(fs.listxattr(ino)) == stored, "the one that was refused is not there"
    fs.setattr(ino, SetAttr(mtime_ns=1))  # the others are still as they were
    assert not fs.sync_all()


def test_a_chmod_that_does_not_fit_changes_nothing(store: MemoryStore, make: Make) -> None:
    store.put("x", b"data", metadata={"long": "v" * 2000})
    fs = make(provider="s3")
    node = find(fs, "x")
    with failing(errno.ENOSPC):
        fs.setattr(node.ino, SetAttr(mode=0o600))
    assert stat.S_IMODE(node.mode) == 0o644
    assert not fs.sync_all()
    assert store.head("x").metadata == {"long": "v" * 2000}


def test_rclone_and_the_aws_file_services_are_read(store: MemoryStore, make: Make) -> None:
    store.put("rclone", b"x", metadata={"mtime": "1000000000.5"})
    store.put("aws", b"x", metadata={"file-permissions": "0100640", "file-owner": "7", "file-mtime": "1500000000000000000ns"})
    fs = make(attrs="full")
    assert find(fs, "rclone").mtime_ns == 1_000_000_000_500_000_000
    aws = find(fs, "aws")
    assert (stat.S_IMODE(aws.mode), aws.uid, aws.mtime_ns) == (0o640, 7, 1_500_000_000 * 10**9)


def test_nobody_is_asked_in_listing_and_everybody_once_in_full(store: MemoryStore, make: Make) -> None:
    for i in range(50):
        store.put(f"d/{i}", b"", metadata={"mode": str(0o100600)})
    for attrs, heads, mode in (("listing", 0, 0o644), ("auto", 0, 0o644), ("full", 51, 0o600)):
        fs = make(attrs=attrs)
        store.counters.requests.clear()
        for _ in range(2):
            assert {stat.S_IMODE(find(fs, f"d/{name}").mode) for name in names(fs, "d")} == {mode}
        assert store.counters.requests.get("HeadObject", 0) == heads, attrs


def test_auto_asks_where_something_deviates_and_only_there(store: MemoryStore, make: Make) -> None:
    fs = make()
    for folder in (b"plain", b"odd"):
        ino = fs.mkdir(ROOT_INO, folder, 0o755, ME).ino
        for i in range(20):
            handle, node = fs.create(ino, b"%d" % i, 0o644, os.O_WRONLY, ME)
            fs.flush(handle)
            fs.release(handle)
            if folder == b"odd" and i == 7:
                fs.setattr(node.ino, SetAttr(mode=0o640))
    assert not fs.sync_all()
    other = make()
    store.counters.requests.clear()
    for name in names(other, "plain"):
        find(other, f"plain/{name}")
    assert store.counters.requests.get("HeadObject", 0) == 1, "the folder's marker"
    store.counters.requests.clear()
    modes = {name: stat.S_IMODE(find(other, f"odd/{name}").mode) for name in names(other, "odd")}
    assert modes.pop("7") == 0o640 and set(modes.values()) == {0o644}
    assert store.counters.requests["HeadObject"] == 21


def test_the_root_keeps_its_attributes(store: MemoryStore, make: Make) -> None:
    fs = make()
    fs.setattr(ROOT_INO, SetAttr(mode=0o1770, mtime_ns=5))
    assert names(fs) == [], "the object that carries them is not shown"
    assert stat.S_IMODE(make().getattr(ROOT_INO).mode) == 0o1770
    deeper = make(prefix="users/1/")
    deeper.setattr(ROOT_INO, SetAttr(mode=0o711))
    assert stat.S_IMODE(make(prefix="users/1/").getattr(ROOT_INO).mode) == 0o711
    assert names(make(), "users/1") == []


def test_a_privilege_in_metadata_is_not_shown(store: MemoryStore, make: Make) -> None:
    store.put("su", b"#!", metadata={"mode": str(0o106755)})
    store.put("tmp/", b"", metadata={"mode": str(0o043777)})
    fs = make(attrs="full")
    assert stat.S_IMODE(find(fs, "su").mode) == 0o755
    assert stat.S_IMODE(find(fs, "tmp").mode) == 0o3777


def test_setting_attributes_of_a_removed_directory_writes_nothing(store: MemoryStore, make: Make) -> None:
    fs = make()
    ino = fs.mkdir(ROOT_INO, b"d", 0o755, ME).ino
    fs.rmdir(ROOT_INO, b"d")
    fs.setattr(ino, SetAttr(mode=0o700))
    with failing(errno.ENOENT):
        fs.mkdir(ino, b"below", 0o755, ME)
    assert store.list("").objects == []


def test_a_setattr_of_an_object_that_was_replaced_is_estale(store: MemoryStore, make: Make) -> None:
    store.put("x", b"one")
    fs = make(attr_ttl=60.0)
    node = find(fs, "x")
    store.put("x", b"two", metadata=FOREIGN)
    with failing(errno.ESTALE):
        fs.setattr(node.ino, SetAttr(mode=0o600))
    fs.setattr(find(fs, "x").ino, SetAttr(mode=0o600))
    assert not fs.sync_all()
    assert FOREIGN.items() <= (store.head("x").metadata or {}).items()
    assert bytes(store.get("x")[1]) == b"two"
    assert time.time() - store.head("x").modified < 60


def test_truncating_an_empty_file_moves_its_times(store: MemoryStore, make: Make) -> None:
    store.put("stamp", b"")
    fs = make()
    node = find(fs, "stamp")
    fs.setattr(node.ino, SetAttr(mtime_ns=5))
    assert not fs.sync_all()
    fs.setattr(node.ino, SetAttr(size=0))
    assert time.time_ns() - node.mtime_ns < 60 * 10**9
    assert time.time_ns() - find(make(attrs="full"), "stamp").mtime_ns < 60 * 10**9


def test_a_file_without_a_name_keeps_its_extended_attributes_while_it_is_open(store: MemoryStore, make: Make) -> None:
    fs = make(xattr=True)
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR, ME)
    fs.flush(handle)
    fs.unlink(ROOT_INO, b"x")
    fs.setxattr(node.ino, b"user.note", b"hello")
    assert fs.getxattr(node.ino, b"user.note") == b"hello" and fs.listxattr(node.ino) == [b"user.note"]
    fs.release(handle)
    assert store.list("").objects == []


def test_only_files_that_a_listing_shows_wrong_have_their_directory_flagged(store: MemoryStore, make: Make) -> None:
    fs = make()
    for name, mode in ((b"plain", 0o100644), (b"pipe", 0o010644)):
        folder = fs.mkdir(ROOT_INO, name, 0o755, ME).ino
        fs.mknod(folder, b"x", mode, 0, ME)
    flags = {name: (store.head(f"{name}/").metadata or {}).get(FLAG) for name in ("plain", "pipe")}
    assert flags == {"plain": None, "pipe": "1"}


def test_attributes_of_an_object_over_5_gib_are_stored(store: MemoryStore, make: Make) -> None:
    """CopyObject takes no more: it is copied onto itself in parts."""
    store.put_sparse("large", 6 * 1024**3)
    fs = make()
    fs.setattr(find(fs, "large").ino, SetAttr(mode=0o600))
    assert not fs.sync_all()
    info = store.head("large")
    assert (info.metadata or {})["mode"] == str(0o100600) and info.size == 6 * 1024**3
    assert store.counters.requests["UploadPartCopy"] == 12 and "CopyObject" not in store.counters.requests
    assert find(make(attrs="full"), "large").mode == 0o100600
