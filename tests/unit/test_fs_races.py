"""Two things at once, in one mount or in two: what either says in between, and what is there afterwards."""

from __future__ import annotations

import errno
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sluicefs.config import MiB
from sluicefs.errors import ConditionFailedError, NotFoundError, StoreError
from sluicefs.fs import directory, namespace, walk
from sluicefs.fs.filesystem import SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.fs.stored import FLAG
from sluicefs.store.api import ListPage, ObjectInfo
from tests.unit.test_fs_attributes import ME, Make, failing, find, make, names
from tests.unit.test_fs_rename import Awkward, write

__all__ = ["make"]  # a fixture


class Held(Awkward):
    """`after_list(prefix)` is called between the moment a listing is made and the moment its answer arrives.

    `before_put(key)` ahead of each put; `puts` are their keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after_list: Callable[[str], None] = lambda prefix: None
        self.before_put: Callable[[str], None] = lambda key: None
        self.puts: list[str] = []

    def put(self, key: str, body: Any, **options: Any) -> str:
        self.puts.append(key)
        self.before_put(key)
        return super().put(key, body, **options)

    def list(self, prefix: str, **options: Any) -> ListPage:
        page = super().list(prefix, **options)
        self.after_list(prefix)
        return page


@pytest.fixture
def store() -> Held:
    return Held()


def test_a_directory_is_renamed_while_one_below_it_is(store: Held, make: Make) -> None:
    fs = make()
    for i in range(20):
        store.put(f"old/p/q/{i}", b"%d" % i)
    p = find(fs, "old/p")
    inner = threading.Thread(target=fs.rename, args=(p.ino, b"q", p.ino, b"r"))
    copies = itertools.count()  # several at once

    def before(verb: str, key: str) -> None:
        if verb == "copy" and next(copies) == 0:
            inner.start()
            inner.join(0.3)

    store.before = before
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    inner.join(10)
    assert {key: body for key, body in store.content().items() if body} == {f"new/p/r/{i}": b"%d" % i for i in range(20)}
    assert names(fs, "new/p") == ["r"] and len(names(fs, "new/p/r")) == 20


def test_a_listing_that_was_under_way_during_a_rename_hides_nothing(store: Held, make: Make) -> None:
    fs = make()
    for i in range(20):
        store.put(f"old/{i}", b"")
    folder = find(fs, "old")

    def after(prefix: str) -> None:
        if prefix == "old/":
            store.after_list = lambda prefix: None
            renaming = threading.Thread(target=fs.rename, args=(ROOT_INO, b"old", ROOT_INO, b"new"))
            renaming.start()
            renaming.join(10)

    store.after_list = after
    handle = fs.opendir(folder.ino)
    assert len(fs.entries(handle)) == 22
    fs.releasedir(handle)
    assert len(names(fs, "new")) == 20 and find(fs, "new/7").etag


def test_attributes_set_while_a_directory_is_copied_are_kept(store: Held, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = make()
    monkeypatch.setattr(store, "_clock", lambda: 1e9)  # no second passes: a listing cannot tell
    old = fs.mkdir(ROOT_INO, b"old", 0o755, ME).ino
    x = write(fs, old, b"x", b"x")
    sub = fs.mkdir(old, b"sub", 0o755, ME).ino
    fs.mkdir(old, b"tub", 0o755, ME)
    copied = threading.Event()

    def before(verb: str, key: str) -> None:
        if key == "old/tub/" and not copied.is_set():
            while not {"new/x", "new/sub/"} <= store.content().keys():
                time.sleep(0.01)
            copied.set()
            for ino in (x, sub):
                fs.setattr(ino, SetAttr(mode=0o700))
            fs.files.sync(fs.node(x))

    store.before = before
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert copied.is_set()
    again = make()
    assert find(again, "new/x").mode == 0o100700 and find(again, "new/sub").mode == 0o40700


def test_a_delete_whose_answer_got_lost_takes_no_copy_with_it(store: Held, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = make()
    write(fs, ROOT_INO, b"x", b"content")
    delete = store.delete

    def lost(key: str) -> None:
        delete(key)
        raise StoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", lost)
        fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert store.content() == {"y": b"content"} and names(fs) == ["y"]


def test_a_copy_stays_where_nobody_knows_whether_the_original_does(
    store: Held, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = make()
    write(fs, ROOT_INO, b"x", b"content")

    def unreachable(key: str) -> None:
        raise StoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", unreachable)
        patch.setattr(store, "head", unreachable)
        with failing(errno.EIO):
            fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert store.content() == {"x": b"content", "y": b"content"}


def test_an_old_name_that_could_not_be_deleted_and_is_used_again_stays(store: Held, make: Make) -> None:
    fs = make(attr_ttl=0.0)
    for name in (b"x", b"y", b"old"):
        write(fs, ROOT_INO, name, name)
    fs.mkdir(ROOT_INO, b"d", 0o755, ME)

    def before(verb: str, key: str) -> None:
        if verb == "delete":
            raise StoreError("not now")

    store.before = before
    fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    store.before = lambda verb, key: None
    store.put("x", b"somebody's new one")
    fs.rename(ROOT_INO, b"d", ROOT_INO, b"e")
    assert store.content() == {"x": b"somebody's new one", "y": b"x", "old": b"old", "e/": b""}


# -- two mounts --------------------------------------------------------------------------------------------------------------


def test_a_new_name_is_seen_after_the_ttl_whenever_it_was_listed(store: Held, make: Make) -> None:
    store.put("d/old", b"x")
    fs = make(attr_ttl=0.05)
    assert names(fs, "d") == ["old"]
    store.put("d/new", b"new")
    time.sleep(0.1)
    assert find(fs, "d/new").size == 3


def test_a_listing_answers_late_only_while_a_walk_lasts(store: Held, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (directory, walk):
        monkeypatch.setattr(module, "PAUSE", 0.3)
    for i in range(5):
        store.put(f"d{i}/x", b"1")
        store.put(f"d{i}/y", b"1")
    fs = make(attr_ttl=0.05)
    assert len(names(fs)) == 5
    for i in range(4):
        names(fs, f"d{i}")  # the rest is listed ahead
    d3 = find(fs, "d3").ino
    time.sleep(0.1)
    store.counters.requests.clear()
    assert fs.lookup(d3, b"x").size == 1
    assert not store.counters.requests, "the walk goes on"
    for i in range(5):
        store.put(f"d{i}/y", b"22")
        store.put(f"d{i}/z", b"22")
    time.sleep(0.4)
    assert fs.lookup(d3, b"y").size == 2
    assert names(fs, "d4") == ["x", "y", "z"]


def test_two_mounts_cannot_make_the_same_directory(store: Held, make: Make) -> None:
    one, two = make(), make()
    for fs in (one, two):
        with failing(errno.ENOENT):
            fs.lookup(ROOT_INO, b"d")
    folder = one.mkdir(ROOT_INO, b"d", 0o711, ME)
    with failing(errno.EEXIST):
        two.mkdir(ROOT_INO, b"d", 0o755, ME)
    assert find(two, "d").mode == folder.mode


@pytest.mark.parametrize("answer", ["lost", "refused"])
def test_a_directory_is_made_whatever_the_store_says_of_conditions(
    store: Held, make: Make, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    put = store.put

    def awkward(key: str, body: bytes, *, if_none_match: bool = False, **options: Any) -> str:
        if if_none_match:
            if answer == "refused":
                raise StoreError("a header that is not implemented", status=501)
            put(key, body, **options)  # and this first answer did not arrive
            raise ConditionFailedError("it is there")
        return put(key, body, **options)

    fs = make()
    monkeypatch.setattr(store, "put", awkward)
    for name in (b"d", b"e"):
        fs.mkdir(ROOT_INO, name, 0o755, ME)
    assert names(fs) == ["d", "e"] == names(make())


def test_attributes_of_a_directory_do_not_undo_what_another_mount_says_of_its_entries(store: Held, make: Make) -> None:
    one, two = make(attr_ttl=0.05), make(attr_ttl=0.05)
    folder = one.mkdir(ROOT_INO, b"d", 0o755, ME).ino
    known = find(two, "d").ino
    two.setattr(known, SetAttr(mtime_ns=5))
    x = write(one, folder, b"x", b"x")
    one.setattr(x, SetAttr(mode=0o600))
    one.files.sync(one.node(x))
    time.sleep(0.1)
    two.setattr(known, SetAttr(mode=0o710))
    third = make()
    assert names(third, "d") == ["x"] and find(third, "d/x").mode == 0o100600
    assert find(third, "d").mode == 0o40710


def test_opening_what_another_mount_made_a_link_of_is_the_kernels_business(store: Held, make: Make) -> None:
    fs = make(attrs="full", attr_ttl=0.0)
    store.put("link", b"aim", metadata={"mode": str(0o120777)})
    with failing(errno.ESTALE):
        fs.create(ROOT_INO, b"link", 0o644, os.O_WRONLY, ME)


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_large_open_file_that_could_not_be_deleted_is_as_it_was(
    store: Held, make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(namespace, "KEEP_OPEN", 4)
    store.put("large", b"0123456789")
    store.put("other", b"other")
    fs = make()
    handle = fs.open(find(fs, "large").ino, os.O_RDWR)

    def before(verb: str, key: str) -> None:
        if (verb, key) in (("delete", "large"), ("copy", "other")):
            raise StoreError("not now")

    store.before = before
    with failing(errno.EIO):
        if how == "unlink":
            fs.unlink(ROOT_INO, b"large")
        else:
            fs.rename(ROOT_INO, b"other", ROOT_INO, b"large")
    fs.write(handle, 2, b"AB")
    fs.flush(handle)
    fs.release(handle)
    assert store.content() == {"large": b"01AB456789", "other": b"other"}


def test_many_files_with_attributes_of_their_own_tell_their_directory_once(store: Held, make: Make) -> None:
    fs = make()
    folder = fs.mkdir(ROOT_INO, b"d", 0o755, ME)
    store.puts.clear()
    store.before_put = lambda key: time.sleep(0.05 if key == "d/" else 0.0)

    def create(number: int) -> None:
        handle, _ = fs.create(folder.ino, b"f%d" % number, 0o600, os.O_RDWR, ME)
        fs.flush(handle)
        fs.release(handle)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert store.puts.count("d/") == 1
    assert len(names(make(), "d")) == 16


def test_times_of_a_directory_stay_that_are_set_while_its_marker_is_written(store: Held, make: Make) -> None:
    fs = make()
    folder = fs.mkdir(ROOT_INO, b"d", 0o755, ME)
    begun, go = threading.Event(), threading.Event()

    def before(key: str) -> None:
        if key == "d/" and not begun.is_set():
            begun.set()
            go.wait(30)

    store.before_put = before
    handle, _ = fs.create(folder.ino, b"f", 0o600, os.O_RDWR, ME)
    sending = threading.Thread(target=fs.flush, args=(handle,))
    sending.start()
    assert begun.wait(30)
    setting = threading.Thread(target=fs.setattr, args=(folder.ino, SetAttr(mtime_ns=10**18)))
    setting.start()
    setting.join(0.3)
    go.set()
    sending.join(30)
    setting.join(30)
    fs.release(handle)
    metadata = store.head("d/").metadata or {}
    assert metadata["mtime"] == "1000000000.000000000"
    assert metadata[FLAG] == "1"


def test_what_open_files_keep_of_deleted_objects_is_within_memory(store: Held, make: Make) -> None:
    """It goes to local disk, as what is written does."""
    fs = make(memory=32 * MiB, part_size=5 * MiB)
    data = {f"f{i}": os.urandom(12 * MiB) for i in range(6)}
    for name, body in data.items():
        store.put(name, body)
    handles = {name: fs.open(find(fs, name).ino, os.O_RDONLY) for name in data}
    for name in data:
        fs.unlink(ROOT_INO, name.encode())
        assert fs.core.dirty.used <= fs.core.dirty.limit
    for name, handle in handles.items():
        assert b"".join(bytes(fs.read(handle, at, MiB)) for at in range(0, 12 * MiB, MiB)) == data[name]
        fs.release(handle)
    assert not store.content()


def test_what_an_open_file_keeps_is_copied_aside_where_the_local_disk_is_full(
    store: Held, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = make(memory=32 * MiB, part_size=5 * MiB)
    data = os.urandom(20 * MiB)
    store.put("x", data)
    handle = fs.open(find(fs, "x").ino, os.O_RDONLY)

    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fs.core.staging, "new_file", full)
    fs.unlink(ROOT_INO, b"x")
    assert list(store.content().values()) == [data]
    assert b"".join(bytes(fs.read(handle, at, MiB)) for at in range(0, 20 * MiB, MiB)) == data
    fs.release(handle)
    assert not store.content()


@pytest.mark.parametrize("remembered", [True, False])
def test_an_answer_from_before_a_file_was_made_does_not_hide_it(store: Held, make: Make, remembered: bool) -> None:
    """Not even when a listing, which knows it, came in between."""
    fs = make(attr_ttl=3600.0, attrs="listing")
    state = fs.core.table.root.dir
    state.big_until = math.inf  # names are asked for one by one
    head, first = store.head, [True]

    def late(key: str) -> ObjectInfo:
        if not first:
            return head(key)
        first.clear()
        ino = write(fs, ROOT_INO, b"x", b"content")
        state.big_until = 0.0
        assert names(fs) == ["x"]
        if not remembered:
            fs.forget([(ino, 1)])
        raise NotFoundError("it was not there when it was asked for")

    store.head = late  # type: ignore[method-assign]
    assert find(fs, "x").size == 7
    assert find(fs, "x").size == 7


def test_names_do_not_wait_for_a_long_file_that_is_truncated(store: Held, make: Make) -> None:
    """Not even where a directory is renamed meanwhile, which takes its last step alone."""
    fs = make()
    ino = write(fs, ROOT_INO, b"long", b"content")
    fs.mkdir(ROOT_INO, b"old", 0o755, ME)
    under_way, over = threading.Event(), threading.Event()

    def before(key: str) -> None:
        if key == "long":
            under_way.set()
            assert over.wait(60)

    store.before_put = before
    cutting = threading.Thread(target=fs.setattr, args=(ino, SetAttr(size=3)))
    renaming = threading.Thread(target=fs.rename, args=(ROOT_INO, b"old", ROOT_INO, b"new"))
    cutting.start()
    assert under_way.wait(60)
    renaming.start()
    renaming.join(10)
    waits = renaming.is_alive()
    over.set()
    cutting.join(60)
    renaming.join(60)
    assert not waits
    assert store.content() == {"long": b"con", "new/": b""}


def test_a_file_that_is_truncated_while_its_directory_takes_the_last_step_of_a_rename_is_not_lost(
    store: Held, make: Make
) -> None:
    fs = make()
    store.put("old/x", b"content")
    ino = find(fs, "old/x").ino
    cutting = threading.Thread(target=fs.setattr, args=(ino, SetAttr(size=3)))
    listings = itertools.count()

    def after(prefix: str) -> None:
        if prefix == "old/" and next(listings) == 1:  # what is copied is known
            cutting.start()
            cutting.join(0.5)

    store.after_list = after
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    cutting.join(60)
    assert next(listings) >= 2
    assert {key: body for key, body in store.content().items() if body} == {"new/x": b"con"}
