"""rename(2): of a file one server-side copy and a delete, of a directory as many of them as it has keys.

Whatever fails before the new name counts is undone, and the errno returned. Nothing is deleted that was not copied before.
"""

from __future__ import annotations

import errno
import logging
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from sluicefs.errors import ConditionFailedError, NotFoundError, StoreError
from sluicefs.fs import attributes, locks
from sluicefs.fs.names import error, join_key
from sluicefs.fs.nodes import FileState, Node
from sluicefs.fs.stored import FLAG, NEAR
from sluicefs.store.api import ObjectInfo, Store

if TYPE_CHECKING:
    from sluicefs.fs.core import Core
    from sluicefs.fs.files import Files
    from sluicefs.fs.namespace import Namespace

log = logging.getLogger(__name__)

MiB = 1024**2
COPY_LIMIT = 5 * 1024**3  # CopyObject; larger objects are copied part by part
COPY_PART = 512 * MiB
MAX_PARTS = 10_000
# What others did while a directory was being copied is copied too; after so many rounds somebody is at work there.
ROUNDS = 5
REPORT = 5.0  # seconds between two lines of progress


class Gate:
    """Verbs that change names or files pass it side by side; the last step of a directory's rename passes it alone.

    Nobody passes it twice at a time. It is taken before any other lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0  # waiting for it, or inside

    @contextmanager
    def shared(self) -> Iterator[None]:
        if locks.DEBUG:
            locks.check(locks.Rank.GATE, self)
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._inside += 1
        if locks.DEBUG:
            locks.taken(locks.Rank.GATE, self)
        try:
            yield
        finally:
            if locks.DEBUG:
                locks.left(locks.Rank.GATE, self)
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        if locks.DEBUG:
            locks.check(locks.Rank.GATE, self)
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._alone = 1
            while self._inside:
                self._changed.wait()
        if locks.DEBUG:
            locks.taken(locks.Rank.GATE, self)
        try:
            yield
        finally:
            if locks.DEBUG:
                locks.left(locks.Rank.GATE, self)
            with self._changed:
                self._alone = 0
                self._changed.notify_all()


def copy_object(
    store: Store,
    source: str,
    target: str,
    size: int,
    etag: str,
    metadata: dict[str, str] | None = None,
    content_type: str | None = None,
) -> str:
    """Server-side copy of an object of any size; returns the new ETag. ConditionFailedError if `etag` is not its version."""
    if size <= COPY_LIMIT:
        return store.copy(source, target, metadata=metadata, content_type=content_type, if_source_match=etag)
    _require_version(store, source, etag)
    if metadata is None:
        info = store.head(source)
        metadata, content_type = dict(info.metadata or {}), info.content_type
    part = max(COPY_PART, -(-size // (MAX_PARTS * MiB)) * MiB)
    upload_id = store.create_upload(target, metadata=metadata, content_type=content_type)
    try:
        parts = []
        for number, start in enumerate(range(0, size, part), 1):
            parts.append((number, store.copy_part(target, upload_id, number, source, start, min(part, size - start))))
        _require_version(store, source, etag)  # UploadPartCopy has no condition of its own on R2
        return store.complete_upload(target, upload_id, parts)
    except BaseException:
        store.abort_upload(target, upload_id)
        raise


def _require_version(store: Store, key: str, etag: str) -> None:
    if store.head(key).etag != etag:
        raise ConditionFailedError(f"{key} was replaced by someone else")


def _version(info: ObjectInfo) -> tuple[str, float]:
    return info.etag, info.modified


class Renames:
    """Renames of one mount."""

    def __init__(self, core: Core, files: Files, names: Namespace):
        self.core = core
        self.files = files
        self.names = names
        self._leftovers: list[ObjectInfo] = []  # objects under old names that could not be deleted yet
        self._changed = threading.Condition()
        self._claimed: list[str] = []  # the prefixes that renames of directories under way read and write

    def rename(self, parent: Node, name: str, new_parent: Node, new_name: str) -> None:
        """rename(2): over an existing file or an empty directory too; open handles go on."""
        core = self.core
        node = core.directories.lookup(parent, name)
        target = self.names.find(new_parent, new_name)
        if target is node:
            return
        with core.lock:
            join_key(core.table.prefix_of(new_parent), new_name, directory=node.is_dir)
            above: Node | None = new_parent
            while above is not None:
                if above is node:
                    raise error(errno.EINVAL)
                above = above.parent
        if target is not None:
            if node.is_dir and not target.is_dir:
                raise error(errno.ENOTDIR)
            if target.is_dir and not node.is_dir:
                raise error(errno.EISDIR)
        if not node.is_dir:
            with self.names.gate.shared():
                self._file(node, target, new_parent, new_name)
                self.names.keep_directory(parent)
            return
        with self._claims(node, new_parent, new_name) as (old_prefix, new_prefix):
            if target is not None:
                self.names.require_empty(target)
            self._directory(node, target, new_parent, new_name, old_prefix, new_prefix)
        with self.names.gate.shared():
            self.names.keep_directory(parent)

    # -- files ------------------------------------------------------------------------------------------------------------

    def _file(self, node: Node, target: Node | None, new_parent: Node, new_name: str) -> None:
        core = self.core
        with ExitStack() as locks:
            for locked in sorted((n for n in (node, target) if n is not None), key=lambda n: n.ino):
                locks.enter_context(self.files.wanted(locked.file))
            with core.lock:
                old_key = core.table.key_of(node)
                new_key = core.table.prefix_of(new_parent) + new_name
                parent = node.parent
                assert parent is not None
            draft = node.draft
            if draft is not None and (draft.landed or (draft.restored is not None and node.etag is not None)):
                core.committer.commit(node)  # what is there may be an earlier state of it, which is no reason for ESTALE
            core.stored.learn(node)
            if target is not None:
                locks.enter_context(self.names.kept_for_open_handles(target))
            if node.etag is None:  # never sent: it goes to its new name when it is
                self._move(node, parent, target, new_parent, new_name)
                covers = core.committer.covered_by(target) if target is not None else ""
                replaces = target is not None and (target.etag is not None or core.committer.covers(target))
                self.files.renamed_unsent(node, old_key, replaces, covers)
                self.names.unsave(target)
                return
            before = node.ctime_ns, node.own, node.name, node.etag
            locks.enter_context(self._attributes_go_along(node))
            node.ctime_ns = time.time_ns()
            # The copy's Last-Modified is now, so a listing would show a new time for what was written long ago.
            node.own = node.own or abs(node.ctime_ns - node.mtime_ns) > NEAR
            try:
                if core.stored.differs(node):
                    core.stored.announce(new_parent)
                metadata, content_type = core.stored.metadata_of(node, name=new_name)
                size = node.size_in_bucket
                if node.draft is not None and node.draft.base is None:  # its size when it was cut to nothing is not known here
                    size = core.store.head(old_key).size
                etag = copy_object(core.store, old_key, new_key, size, node.etag, metadata, content_type)
            except (ConditionFailedError, NotFoundError):
                core.directories.replaced(node)
                raise error(errno.ESTALE, f"{old_key} was replaced or deleted by someone else") from None
            except BaseException:
                node.ctime_ns, node.own, *_ = before
                raise
            self.names.unsave(target)
            with core.lock:
                self.files.reads_from(node, new_key, etag, moving=True)  # before the old name goes: it may be read meanwhile
            try:
                self._record(node, new_key, replaces=target is not None)
                self._delete_old(old_key, before[3], None if target is not None else new_key)
            except BaseException:
                with core.lock:
                    self.files.reads_from(node, old_key, before[3])
                if target is not None:  # its object is the copy now: it keeps its bytes as what was deleted does
                    self.names.gone(target)
                    new_parent.dir.distrust()
                core.committer.moved(node)
                raise
            self._move(node, parent, target, new_parent, new_name)
            with core.lock:
                core.stored.sent(node, metadata)
                self.files.rebase(node, new_key, etag)
            core.committer.moved(node, wait=False)

    @contextmanager
    def _attributes_go_along(self, node: Node) -> Iterator[None]:
        """What was set before is in the copy; what is set meanwhile is sent by itself. The file's lock is held."""
        with self.core.lock:
            due, node.file.attributes_due = node.file.attributes_due, 0.0
        try:
            yield
        except BaseException:
            with self.core.lock:
                node.file.attributes_due = node.file.attributes_due or due
            raise

    def _record(self, node: Node, new_key: str, *, replaces: bool) -> None:
        """The copy is made: what is kept of unsent changes says where their base is now, or a crash would part the two."""
        node.ctime_ns = max(time.time_ns(), node.ctime_ns + 1)  # else the copy would be taken for the change
        try:
            self.core.committer.moved(node, key=new_key)
        except OSError:
            if not replaces:
                self._undo([new_key])
            raise

    def _delete_old(self, old_key: str, etag: str, new_key: str | None) -> None:
        """The copy is made: take the old name away. If that fails, take the copy back, unless it replaced something.

        Never the copy of an object that may be gone all the same: the request can have arrived, and its answer got lost.
        """
        store = self.core.store
        try:
            store.delete(old_key)
        except StoreError as failed:
            try:
                there = store.head(old_key)
            except NotFoundError:
                return
            except StoreError:
                log.error("%s was copied to its new name, and whether its old one is still there is not known", old_key)
                raise failed from None
            if new_key is not None:
                store.delete_many([new_key])
                raise
            log.error("%s was renamed, but its old name could not be deleted and is tried again later: %s", old_key, failed)
            if there.etag == etag:
                self._leftovers.append(there)

    def _delete_leftovers(self) -> None:
        """What earlier renames could not delete, unless somebody wrote under that name since."""
        store, left, self._leftovers = self.core.store, self._leftovers, []
        for info in left:
            try:
                there = store.head(info.key)
                if _version(there) == _version(info):
                    store.delete(info.key)
            except NotFoundError:
                continue
            except StoreError:
                self._leftovers.append(info)

    def _move(self, node: Node, old_parent: Node, target: Node | None, new_parent: Node, new_name: str) -> None:
        """The new name counts. Who asked for the old one meanwhile may have found that it is gone."""
        core = self.core
        with core.lock:
            if target is not None:
                self.names.gone(target)
            core.directories.note(old_parent, node.name, None)
            core.table.move(node, new_parent, new_name)
            if node.is_dir:
                core.directories.note_directory(node)
            else:
                core.directories.note_file(node)
            self.names.touch(old_parent)
            self.names.touch(new_parent)
            node.ctime_ns = time.time_ns()

    # -- directories ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _claims(self, node: Node, new_parent: Node, new_name: str) -> Iterator[tuple[str, str]]:
        """(prefix of a directory, its new one), with no other directory's rename above or below either until this one is over.

        The kernel lets two go on at once if neither leaves its parent.
        """
        core = self.core
        with self._changed:
            while True:
                with core.lock:
                    mine = core.table.prefix_of(node), join_key(core.table.prefix_of(new_parent), new_name, directory=True)
                if not any(a.startswith(b) or b.startswith(a) for a in mine for b in self._claimed):
                    break
                self._changed.wait()
            self._claimed += mine
        try:
            yield mine
        finally:
            with self._changed:
                for prefix in mine:
                    self._claimed.remove(prefix)
                self._changed.notify_all()

    def _directory(
        self, node: Node, target: Node | None, new_parent: Node, new_name: str, old_prefix: str, new_prefix: str
    ) -> None:
        """Copy every key below, re-parent the node, delete the old keys. A failure before the re-parent undoes the copies."""
        core = self.core
        if self._leftovers:
            self._delete_leftovers()
        for below in self._files_below(node):
            self.files.upload(below)
        core.stored.learn_again(node)
        copied: dict[str, tuple[ObjectInfo, str]] = {}  # old key: (version copied, ETag of the copy)
        aged: set[str] = set()
        moved, started = False, time.time_ns()
        try:
            self._copy_below(old_prefix, new_prefix, copied, aged, rounds=1)
            if core.stored.differs(node):
                core.stored.announce(new_parent)
            with self.names.gate.alone(), ExitStack() as locks:
                for below in sorted(self._files_below(node), key=lambda n: n.ino):
                    locks.enter_context(below.file.lock)
                self._copy_again_what_changed(node, copied, started)
                if not self._copy_below(old_prefix, new_prefix, copied, aged, rounds=ROUNDS):
                    raise error(errno.EBUSY, f"{old_prefix} is being changed by someone else")
                metadata, content_type = core.stored.metadata_of(node)
                if old_prefix in aged:
                    metadata[FLAG] = "1"
                etag = core.store.put(new_prefix, bytearray(), metadata=metadata, content_type=content_type)
                marker = ObjectInfo(new_prefix, 0, etag, time.time(), metadata, content_type)
                old_keys = [*copied, *self.names.marker_keys(node)]
                with core.lock:
                    node.dir.marker, node.dir.foreign_marker, node.metadata = marker, None, metadata
                assert node.parent is not None
                self._move(node, node.parent, target, new_parent, new_name)
                moved = True  # from here on the copies are what counts
                self._follow(node, old_prefix, copied, aged)
                for below in self._files_below(node):
                    core.committer.moved(below)
        except BaseException:
            if not moved:
                self._undo([new_prefix + key[len(old_prefix) :] for key in copied])
            raise
        for key, why in core.store.delete_many(old_keys):
            log.error("%s was copied to its new name but could not be deleted, and is tried again later: %s", key, why)
            if key in copied:
                self._leftovers.append(copied[key][0])
        log.info("renamed %s to %s: %d objects", old_prefix, new_prefix, len(copied))

    def _copy_again_what_changed(self, node: Node, copied: dict[str, tuple[ObjectInfo, str]], started: int) -> None:
        """Attributes set here since `started` (nanoseconds): a listing does not always tell, as the ETag stays."""
        with self.core.lock:
            for below in self.core.table.below(node):
                if below.ctime_ns >= started and (key := self.core.table.key_of(below)) in copied:
                    info, etag = copied[key]
                    copied[key] = replace(info, etag=""), etag

    def _files_below(self, node: Node) -> list[Node]:
        with self.core.lock:
            return [below for below in self.core.table.below(node) if isinstance(below.state, FileState)]

    def _copy_below(
        self, old_prefix: str, new_prefix: str, copied: dict[str, tuple[ObjectInfo, str]], aged: set[str], *, rounds: int
    ) -> bool:
        """Copy what is new or changed since `copied`, 64 keys at a time, until a listing finds nothing to do (True).

        The marker of the directory itself is left to the caller: over an empty target it is the last thing to change. `aged`
        gets the directories with entries whose copies would show a new time in a listing: their markers are flagged.
        """
        core = self.core
        started = reported = time.monotonic()
        for _ in range(rounds):
            there: dict[str, ObjectInfo] = {}
            token: str | None = None
            while True:
                page = core.store.list(old_prefix, token=token)
                for info in page.objects:
                    join_key(new_prefix, info.key[len(old_prefix) :])  # ENAMETOOLONG before anything is copied
                    there[info.key] = info
                    if time.time() - info.modified > NEAR / 1e9 and core.config.attrs != "listing":
                        aged.add(info.key[: info.key.rstrip("/").rfind("/") + 1])
                token = page.token
                if token is None:
                    break
            there.pop(old_prefix, None)
            withdrawn = [key for key in copied if key not in there]
            if withdrawn:
                core.store.delete_many(new_prefix + key[len(old_prefix) :] for key in withdrawn)
                for key in withdrawn:
                    del copied[key]
            todo = [info for key, info in there.items() if key not in copied or _version(copied[key][0]) != _version(info)]
            if not todo:
                return True

            def copy(info: ObjectInfo) -> tuple[ObjectInfo, str | None]:
                try:
                    return info, self._copy_one(info, new_prefix + info.key[len(old_prefix) :], info.key in aged)
                except (ConditionFailedError, NotFoundError):
                    return info, None  # changed meanwhile: the next round has it

            # Markers last: SeaweedFS may lose one that is written while it makes that directory for a file in it.
            files = [info for info in todo if not info.key.endswith("/")]
            markers = [info for info in todo if info.key.endswith("/")]
            done = chain(self._each(copy, files, copied), self._each(copy, markers, copied))
            for number, (info, etag) in enumerate(done, 1):
                if etag is not None:
                    copied[info.key] = (info, etag)
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    log.info("renaming %s: %d of %d objects, %.0f s", old_prefix, number, len(todo), reported - started)
        return False

    def _each(
        self,
        copy: Callable[[ObjectInfo], tuple[ObjectInfo, str | None]],
        todo: list[ObjectInfo],
        copied: dict[str, tuple[ObjectInfo, str]],
    ) -> Iterator[tuple[ObjectInfo, str | None]]:
        """What `copy` makes of each. When one fails, none begins any more, and `copied` gets those under way, to be undone."""
        running = [self.core.stored.pool.submit(copy, info) for info in todo]
        try:
            for future in running:
                yield future.result()
        except BaseException:
            begun = [(info, future) for info, future in zip(todo, running, strict=True) if not future.cancel()]
            for info, future in begun:
                future.exception()  # a copy whose answer was lost may be there as well
                copied.setdefault(info.key, (info, ""))
            raise

    def _copy_one(self, info: ObjectInfo, new_key: str, flag: bool) -> str:
        """Copy one object. `flag`: a directory's marker has to say that its entries' own attributes count."""
        if info.size or not info.key.endswith("/"):
            return copy_object(self.core.store, info.key, new_key, info.size, info.etag)
        store = self.core.store
        metadata = {**(store.head(info.key).metadata or {}), FLAG: "1"} if flag else None
        try:
            return store.copy(
                info.key, new_key, metadata=metadata, content_type=attributes.DIRECTORY_TYPE, if_source_match=info.etag
            )
        except NotFoundError:  # SeaweedFS says so of every marker; it is empty, so one can be made of what HEAD tells
            there = store.head(info.key)
            if there.etag != info.etag:
                raise ConditionFailedError(f"{info.key} was replaced by someone else") from None
            return store.put(new_key, bytearray(), metadata=metadata or there.metadata, content_type=there.content_type)

    def _follow(self, node: Node, old_prefix: str, copied: dict[str, tuple[ObjectInfo, str]], aged: set[str]) -> None:
        """Every known node below now means the copy. The locks of the files are held."""
        core = self.core
        with core.lock:
            new_prefix = core.table.prefix_of(node)
            for directory in (node, *(below for below in core.table.below(node) if below.is_dir)):
                state = directory.dir
                state.distrust()
                state.flag_of = None
                state.entries.prefix = core.table.prefix_of(directory)
                if old_prefix + state.entries.prefix[len(new_prefix) :] in aged:
                    state.stores_attributes, directory.complete = True, directory is node
            core.walks.forget()
            for below in core.table.below(node):
                if below.is_dir or below.etag is None:
                    continue
                key = core.table.key_of(below)
                found = copied.get(old_prefix + key[len(new_prefix) :])
                if found is None:
                    below.checked = 0.0
                elif stat.S_ISREG(below.mode):
                    self.files.rebase(below, key, found[1])
                else:
                    below.etag, below.checked = found[1], time.monotonic()

    def _undo(self, keys: list[str]) -> None:
        try:
            for key, why in self.core.store.delete_many(keys):
                log.error("%s, a copy of a rename that failed, could not be deleted: %s", key, why)
        except StoreError as failed:
            log.error("%d copies of a rename that failed could not be deleted: %s", len(keys), failed)
