"""Buckets that others wrote, and write to under our feet: every form is read, nothing breaks a listing, versions never mix."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import ME, Make, failing, find, make, names, replace_content, store

__all__ = ["make", "store"]  # fixtures


def content(fs: FileSystem, path: str) -> bytes:
    try:
        handle = fs.open(find(fs, path).ino, os.O_RDONLY)
    except OSError as error:
        assert error.errno == errno.ESTALE
        handle = fs.open(find(fs, path).ino, os.O_RDONLY)  # the kernel looks the name up once more
    data = bytes(fs.read(handle, 0, 1 << 20))
    fs.release(handle)
    return data


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("").objects]


FORMS = {
    "slash": ["d/"],
    "bare": ["d/x"],
    "hadoop": ["d_$folder$"],
    "slash and entry": ["d/", "d/x"],
    "hadoop and entry": ["d_$folder$", "d/x"],
    "plain empty object and entry": ["d", "d/x"],
    "all": ["d", "d/", "d_$folder$", "d/x"],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_directory_is_one(store: MemoryStore, make: Make, form: str) -> None:
    for key in FORMS[form]:
        store.put(key, b"")
    fs = make()
    assert names(fs) == ["d"]
    assert find(fs, "d").is_dir
    entries = ["x"] if "d/x" in FORMS[form] else []
    assert names(fs, "d") == entries
    if entries:
        with failing(errno.ENOTEMPTY):
            fs.rmdir(ROOT_INO, b"d")
        fs.unlink(find(fs, "d").ino, b"x")
        assert names(fs) == ["d"], "it stays when its last entry goes"
    fs.rename(ROOT_INO, b"d", ROOT_INO, b"e")
    assert names(fs) == ["e"] and names(make()) == ["e"]
    fs.rmdir(ROOT_INO, b"e")
    assert names(make()) == []


def test_a_directory_by_its_type_alone_is_one_where_it_is_asked(store: MemoryStore, make: Make) -> None:
    store.put("old", b"", content_type="application/x-directory")
    fs = make(attrs="full")
    assert find(fs, "old").is_dir
    fs.rmdir(ROOT_INO, b"old")
    assert keys(store) == []


def test_a_directory_hides_a_file_of_its_name_and_says_so_once(
    store: MemoryStore, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("x", b"bytes")
    store.put("x/y", b"deeper")
    for bad in ("a//b", "../up", "./here", "n" * 256, "nul\0", "/"):
        store.put(bad, b"")
    fs = make(attr_ttl=0.0)
    for _ in range(3):
        assert names(fs) == ["a", "x"]
    assert content(fs, "x/y") == b"deeper"
    messages = [record.message for record in caplog.records if "is not shown" in record.message]
    assert len(messages) == len(set(messages)) == len(fs.core.directories.left_out)
    assert any("'x'" in message for message in messages)
    assert fs.core.directories.left_out_count == 6  # x, ../, ./, the long one, the NUL, /; below a: one more, not listed yet
    assert names(fs, "a") == [] and fs.core.directories.left_out_count == 7
    with failing(errno.ENOTEMPTY):
        fs.rmdir(ROOT_INO, b"a")  # a key below it cannot be shown, but it is there


def test_names_of_our_own_objects_are_not_to_be_had(store: MemoryStore, make: Make) -> None:
    store.put(".sluicefs-root", b"")
    store.put("d/.sluicefs-orphans/1", b"x")
    fs = make()
    assert names(fs) == ["d"] and names(fs, "d") == []
    with failing(errno.ENOENT):
        fs.lookup(ROOT_INO, b".sluicefs-root")
    with failing(errno.EPERM):
        fs.mkdir(ROOT_INO, b".sluicefs-x", 0o755, ME)
    with failing(errno.ENOENT):
        fs.unlink(ROOT_INO, b".sluicefs-root")


def test_long_names_and_keys(store: MemoryStore, make: Make) -> None:
    fs = make()
    ino = ROOT_INO
    with failing(errno.ENAMETOOLONG):
        for _ in range(10):
            ino = fs.mkdir(ino, b"n" * 255, 0o755, ME).ino
    assert [len(key) for key in keys(store)] == [256, 512, 768, 1024]
    with failing(errno.ENAMETOOLONG):
        fs.mknod(ino, b"x", 0o100644, 0, ME)
    with failing(errno.ENAMETOOLONG):
        fs.mkdir(ROOT_INO, b"n" * 256, 0o755, ME)
    top = fs.mkdir(ROOT_INO, b"top", 0o755, ME).ino
    with failing(errno.ENAMETOOLONG):
        fs.rename(ROOT_INO, b"n" * 255, top, b"m" * 255)
    assert not [key for key in keys(store) if key.startswith("top/m")], "nothing was copied"
    for raw, expected in (("e\u0301".encode(), errno.EILSEQ), (b"\xff", errno.EILSEQ)):
        with failing(expected):
            fs.mkdir(ROOT_INO, raw, 0o755, ME)


def test_what_others_do_is_seen_after_the_ttl(store: MemoryStore, make: Make) -> None:
    fs = make(attr_ttl=0.1)
    store.put("x", b"one")
    assert names(fs) == ["x"] and content(fs, "x") == b"one"
    before = find(fs, "x").ino
    store.put("x", b"two")  # of the same size
    store.put("new", b"")
    time.sleep(0.15)
    assert content(fs, "x") == b"two"
    assert find(fs, "x").ino != before, "the kernel keeps no page of the old one"
    assert names(fs) == ["new", "x"]
    store.delete("x")
    time.sleep(0.15)
    assert names(fs) == ["new"]
    with failing(errno.ENOENT):
        find(fs, "x")


@pytest.mark.parametrize("gone", [True, False])
def test_an_open_file_gets_estale_never_a_mixture(store: MemoryStore, make: Make, gone: bool) -> None:
    size = 20 * 1024 * 1024
    store.put("x", b"1" * size)
    fs = make()
    handle = fs.open(find(fs, "x").ino, os.O_RDONLY)
    assert bytes(fs.read(handle, 0, 4096)) == b"1" * 4096
    if gone:
        store.delete("x")
    else:
        store.put("x", b"2" * size)
    with failing(errno.ESTALE):
        for offset in range(4096, size, 131072):
            assert set(bytes(fs.read(handle, offset, 131072))) == {ord("1")}
    fs.release(handle)
    if not gone:
        assert content(fs, "x")[:1] == b"2", "a new open sees the new version"


def test_a_directory_that_others_removed_has_no_key_any_more(store: MemoryStore, make: Make) -> None:
    store.put("a/b/x", b"x")
    fs = make(attr_ttl=0.0)
    inner = find(fs, "a/b")
    store.delete("a/b/x")
    assert names(fs) == []
    with pytest.raises(OSError) as failed:
        fs.mkdir(inner.ino, b"new", 0o755, ME)
    assert failed.value.errno in (errno.ESTALE, errno.ENOENT)
    assert keys(store) == [], "nothing was made below the root instead"


def test_read_only_is_erofs_and_never_a_write_request(store: MemoryStore, make: Make) -> None:
    store.put("d/file", b"data", metadata={"xattr": "%7B%7D"})
    store.put("empty/", b"")
    store.counters.requests.clear()
    fs = make(read_only=True, xattr=True)
    folder, file = find(fs, "d"), find(fs, "d/file")
    refused = [
        lambda: fs.create(folder.ino, b"new", 0o644, os.O_WRONLY, ME),
        lambda: fs.mkdir(ROOT_INO, b"new", 0o755, ME),
        lambda: fs.mknod(ROOT_INO, b"new", 0o010644, 0, ME),
        lambda: fs.symlink(ROOT_INO, b"new", b"aim", ME),
        lambda: fs.unlink(folder.ino, b"file"),
        lambda: fs.rmdir(ROOT_INO, b"empty"),
        lambda: fs.rename(folder.ino, b"file", ROOT_INO, b"new"),
        lambda: fs.rename(ROOT_INO, b"empty", ROOT_INO, b"new"),
        lambda: fs.open(file.ino, os.O_WRONLY),
        lambda: fs.open(file.ino, os.O_RDWR | os.O_TRUNC),
        lambda: fs.setattr(file.ino, SetAttr(mode=0o600)),
        lambda: fs.setattr(file.ino, SetAttr(size=0)),
        lambda: fs.setattr(folder.ino, SetAttr(mtime_ns=0)),
        lambda: fs.setxattr(file.ino, b"user.a", b"1"),
        lambda: fs.removexattr(file.ino, b"user.a"),
    ]
    for verb in refused:
        with failing(errno.EROFS):
            verb()
    assert content(fs, "d/file") == b"data"
    assert set(store.counters.requests) <= {"ListObjectsV2", "HeadObject", "GetObject"}


def test_two_prefixes_of_one_bucket_are_two_roots(store: MemoryStore, make: Make) -> None:
    one, two, whole = make(prefix="users/1/"), make(prefix="users/2/"), make(attr_ttl=0.0)
    for fs, word in ((one, b"one"), (two, b"two")):
        handle, _ = fs.create(ROOT_INO, b"file", 0o644, os.O_WRONLY, ME)
        fs.write(handle, 0, word)
        fs.flush(handle)
        fs.release(handle)
    assert names(one) == names(two) == ["file"]
    assert content(whole, "users/1/file") == b"one" and content(whole, "users/2/file") == b"two"
    with failing(errno.ENOENT):
        one.lookup(ROOT_INO, b"users")
    assert one.lookup(ROOT_INO, b"..").ino == ROOT_INO
    replace_content(whole, "users/1/file", b"new")
    time.sleep(1.05)
    assert content(one, "file") == b"new"


def test_defaults_of_what_carries_no_attributes(store: MemoryStore, make: Make) -> None:
    store.put("d/x", b"")
    fs = make(uid=1234, gid=4321, file_mode=0o666, dir_mode=0o777, umask=0o027)
    for path, mode in (("d", 0o040750), ("d/x", 0o100640)):
        node = find(fs, path)
        assert (node.uid, node.gid, node.mode) == (1234, 4321, mode)
    assert fs.getattr(ROOT_INO).mode == 0o040750


def test_hadoop_markers_cannot_be_made(make: Make, tmp_path: Path) -> None:
    with failing(errno.EINVAL):
        make().mkdir(ROOT_INO, b"d_$folder$", 0o755, ME)


def test_hadoop_markers_in_a_directory_of_many_pages(store: MemoryStore, make: Make) -> None:
    """Where one name is asked for without a listing."""
    for i in range(1001):
        store.put(f"many/{i:04}", b"x")
    store.put("many/hadoop_$folder$", b"")
    fs = make(attr_ttl=0.0)
    assert "hadoop" in names(fs, "many")
    for _ in range(3):
        assert find(fs, "many/hadoop").is_dir
        with failing(errno.ENOENT):
            find(fs, "many/hadoop_$folder$")
    assert names(fs, "many/hadoop") == []


def test_a_directory_hides_a_file_of_its_name_where_one_name_is_asked_for(store: MemoryStore, make: Make) -> None:
    """In a directory of many pages, once a listing has shown it."""
    for i in range(1001):
        store.put(f"many/{i:04}", b"x")
    store.put("many/name", b"bytes")
    store.put("many/name/below", b"deeper")
    fs = make(attr_ttl=0.0)
    assert "name" in names(fs, "many")
    for _ in range(3):
        assert find(fs, "many/name").is_dir
        assert content(fs, "many/name/below") == b"deeper"
    store.delete("many/name/below")
    assert not find(fs, "many/name").is_dir
