"""The reference store: S3's rules on a dict. For tests and for reading; it must never be laxer than R2.

Strict where servers are lax: R2's equal-part rule, part sizes and order, conditions, key and metadata limits. Bodies that are
all zero bytes cost nothing (a length), so a sparse object of 200 GiB fits; a page of a listing costs its own entries, not a
sort of all keys, so a million keys are fine.
"""

from __future__ import annotations

import bisect
import errno
import functools
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sluicefs.errors import CancelledError, ConditionFailedError, NotFoundError, StoreError, TooLargeError
from sluicefs.store.api import Buffer, Counters, ListPage, ObjectInfo, StoreFailure, Upload
from sluicefs.store.rules import (
    MAX_COPY,
    MAX_LIST,
    MAX_PARTS,
    MIN_PART,
    as_bytes_view,
    check_header,
    check_key,
    decode_value,
    encode_metadata,
)

_STEP = 256 * 1024  # bytes between two progress calls
_ZEROS = bytes(1024 * 1024)
_MERGE = 64  # new keys above which one merge beats an insertion each

Keys = list[str]  # named here: the class has a method called `list`
Piece = tuple[int, bytes | None]  # length, content; None: zeros


@dataclass(slots=True)
class _Object:
    info: ObjectInfo
    pieces: list[Piece]


@dataclass(slots=True)
class _Upload:
    key: str
    metadata: dict[str, str]
    content_type: str | None
    initiated: float
    parts: dict[int, tuple[str, int, list[Piece]]] = field(default_factory=dict)


def _is_zero(view: memoryview) -> bool:
    """True when all bytes are zero; stops at the first MiB that is not, copies no more than that."""
    for start in range(0, len(view), len(_ZEROS)):
        chunk = bytes(view[start : start + len(_ZEROS)])
        if chunk != (_ZEROS if len(chunk) == len(_ZEROS) else _ZEROS[: len(chunk)]):
            return False
    return True


@functools.lru_cache(maxsize=64)
def _zero_md5(length: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while length > 0:
        digest.update(_ZEROS[:length] if length < len(_ZEROS) else _ZEROS)
        length -= len(_ZEROS)
    return digest.hexdigest()


def _pieces(body: Buffer) -> tuple[list[Piece], int, str]:
    """The stored form of a body, its length and its MD5 in hex."""
    view = as_bytes_view(body)
    if _is_zero(view):
        return [(len(view), None)], len(view), _zero_md5(len(view))
    data = bytes(view)
    return [(len(data), data)], len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()


def _cut(pieces: Sequence[Piece], offset: int, length: int) -> Iterable[Piece]:
    """The pieces of [offset, offset + length)."""
    for size, data in pieces:
        if offset >= size:
            offset -= size
            continue
        take = min(size - offset, length)
        yield take, (data if data is None or take == size else data[offset : offset + take])
        length -= take
        offset = 0
        if not length:
            return


def _piece_md5(pieces: Sequence[Piece]) -> str:
    if len(pieces) == 1 and pieces[0][1] is None:
        return _zero_md5(pieces[0][0])
    digest = hashlib.md5(usedforsecurity=False)
    for size, data in pieces:
        if data is not None:
            digest.update(data)
            continue
        for start in range(0, size, len(_ZEROS)):
            digest.update(_ZEROS[: min(len(_ZEROS), size - start)])
    return digest.hexdigest()


class MemoryStore:
    """One bucket in memory; see `store.api.Store` for the verbs. `min_part` is the least size of a part but the last, bytes."""

    def __init__(self, *, min_part: int = MIN_PART, clock: Callable[[], float] = time.time) -> None:
        self.counters = Counters()
        self._min_part = min_part
        self._clock = clock
        self._lock = threading.RLock()
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, _Upload] = {}
        self._ids = itertools.count(1)
        self._order: list[str] = []  # sorted; code point order of str is UTF-8 byte order
        self._new: dict[str, None] = {}  # keys not yet in _order
        self._dead: set[str] = set()  # keys in _order that are gone

    # --- reading

    def head(self, key: str) -> ObjectInfo:
        with self._lock:
            self._count("HeadObject")
            return self._find("HeadObject", key).info

    def get_into(
        self,
        key: str,
        offset: int,
        buffer: Buffer,
        *,
        etag: str | None = None,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        view = as_bytes_view(buffer)
        with self._lock:
            self._count("GetObject")
            found = self._find("GetObject", key)
            info, pieces = found.info, found.pieces
        if etag is not None and etag != info.etag:
            raise _condition("GetObject", key)
        if offset < 0 or offset + len(view) > info.size:
            message = f"GetObject {key!r}: bytes {offset} to {offset + len(view)} of an object of {info.size} bytes"
            raise StoreError(message, code="InvalidRange", status=416, errno=errno.EINVAL)
        done = 0
        for size, data in _cut(pieces, offset, len(view)):
            for start in range(0, size, _STEP):
                if cancelled is not None and cancelled():
                    raise CancelledError(f"GetObject {key!r}: cancelled")
                take = min(_STEP, size - start)
                view[done : done + take] = _ZEROS[:take] if data is None else memoryview(data)[start : start + take]
                done += take
                if progress is not None:
                    progress(done)
        with self._lock:
            self.counters.bytes_down += done
        return info

    def get_start(
        self,
        key: str,
        limit: int,
        begin: Callable[[ObjectInfo], Buffer | None],
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        with self._lock:
            self._count("GetObject")
            info = self._find("GetObject", key).info
        if not info.size:
            raise StoreError(f"GetObject {key!r}: an empty object", code="InvalidRange", status=416, errno=errno.EINVAL)
        buffer = begin(info)
        if buffer is not None:
            with self._lock:
                self.counters.requests["GetObject"] -= 1
            self.get_into(key, 0, buffer, etag=info.etag, progress=progress, cancelled=cancelled)
        return info

    def get(self, key: str, *, limit: int | None = None, etag: str | None = None) -> tuple[ObjectInfo, bytearray]:
        with self._lock:
            info = self._find("GetObject", key).info
            body = bytearray(info.size if limit is None else min(limit, info.size))
            return self.get_into(key, 0, body, etag=etag), body

    # --- writing

    def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        check_key(key)
        check_header(content_type)
        values = encode_metadata(metadata)
        pieces, size, etag = _pieces(body)
        with self._lock:
            self._count("PutObject")
            self.counters.bytes_up += size
            self._check("PutObject", key, if_match, if_none_match)
            self._store(key, size, etag, values, content_type, pieces)
        return etag

    def put_sparse(self, key: str, size: int, data: Mapping[int, bytes] | None = None) -> str:
        """Test set-up: an object of `size` bytes, zero but for `data` (offset to content); no request. Returns the ETag."""
        check_key(key)
        pieces: list[Piece] = []
        end = 0
        for offset, content in sorted((data or {}).items()):
            if offset > end:
                pieces.append((offset - end, None))
            pieces.append((len(content), content))
            end = offset + len(content)
        if size > end:
            pieces.append((size - end, None))
        etag = hashlib.md5(repr((size, sorted((data or {}).items()))).encode(), usedforsecurity=False).hexdigest()
        with self._lock:
            self._store(key, size, etag, {}, None, pieces)
        return etag

    def copy(
        self,
        source: str,
        target: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        if_source_match: str | None = None,
    ) -> str:
        check_key(target)
        check_header(content_type)
        values = None if metadata is None else encode_metadata(metadata)
        with self._lock:
            self._count("CopyObject")
            found = self._find("CopyObject", source)
            if if_source_match is not None and if_source_match != found.info.etag:
                raise _condition("CopyObject", source)
            if found.info.size > MAX_COPY:
                raise _refused("CopyObject", source, "InvalidRequest", "the source is larger than 5 GiB")
            if values is None:
                if source == target:
                    raise _refused("CopyObject", source, "InvalidRequest", "a copy to itself must replace the metadata")
                values = encode_metadata(found.info.metadata)
                content_type = found.info.content_type
            # A copy is one object again: its ETag is the MD5 of the whole unless the bytes are already known by one.
            etag = found.info.etag if "-" not in found.info.etag else _piece_md5(found.pieces)
            self._store(target, found.info.size, etag, values, content_type, found.pieces)
            return etag

    def delete(self, key: str) -> None:
        with self._lock:
            self._count("DeleteObject")
            self._remove(key)

    def delete_many(self, keys: Iterable[str]) -> list[tuple[str, StoreFailure]]:
        rest = iter(keys)
        while batch := list(itertools.islice(rest, MAX_LIST)):
            with self._lock:
                self._count("DeleteObjects")
                for key in batch:
                    self._remove(key)
        return []

    # --- multipart

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str | None = None) -> str:
        check_key(key)
        check_header(content_type)
        values = encode_metadata(metadata)
        with self._lock:
            self._count("CreateMultipartUpload")
            upload_id = f"upload-{next(self._ids)}"
            self._uploads[upload_id] = _Upload(key, values, content_type, float(int(self._clock())))
            return upload_id

    def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> str:
        pieces, size, etag = _pieces(body)
        with self._lock:
            self._count("UploadPart")
            self.counters.bytes_up += size
            self._part("UploadPart", key, upload_id, number).parts[number] = (etag, size, pieces)
        return etag

    def copy_part(self, key: str, upload_id: str, number: int, source: str, offset: int, length: int) -> str:
        with self._lock:
            self._count("UploadPartCopy")
            upload = self._part("UploadPartCopy", key, upload_id, number)
            found = self._find("UploadPartCopy", source)
            if offset < 0 or length <= 0 or offset + length > found.info.size or length > MAX_COPY:
                raise _refused(
                    "UploadPartCopy", source, "InvalidArgument", f"bytes {offset} to {offset + length} cannot be copied"
                )
            pieces = list(_cut(found.pieces, offset, length))
            etag = _piece_md5(pieces)
            upload.parts[number] = (etag, length, pieces)
            return etag

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        verb = "CompleteMultipartUpload"
        with self._lock:
            self._count(verb)
            upload = self._open_upload(verb, key, upload_id)
            if not parts:
                raise _refused(verb, key, "MalformedXML", "no parts are named")
            if any(a >= b for (a, _), (b, _) in itertools.pairwise(parts)):
                raise _refused(verb, key, "InvalidPartOrder", "parts must be named in ascending order")
            chosen = []
            for number, etag in parts:
                part = upload.parts.get(number)
                if part is None or part[0] != etag:
                    raise _refused(verb, key, "InvalidPart", f"part {number} is not there or has another ETag")
                chosen.append(part)
            sizes = [size for _, size, _ in chosen]
            if any(size < self._min_part for size in sizes[:-1]):
                raise _refused(verb, key, "EntityTooSmall", f"a part but the last is below {self._min_part} bytes")
            if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
                raise _refused(verb, key, "InvalidPart", "all parts but the last must be equal, the last not larger (R2)")
            try:
                self._check(verb, key, if_match, if_none_match)
            except ConditionFailedError:
                del self._uploads[upload_id]  # as R2 does
                raise
            joined = hashlib.md5(b"".join(bytes.fromhex(part[0]) for part in chosen), usedforsecurity=False).hexdigest()
            etag = f"{joined}-{len(chosen)}"
            pieces = [piece for _, _, own in chosen for piece in own]
            self._store(key, sum(sizes), etag, upload.metadata, upload.content_type, pieces)
            del self._uploads[upload_id]
            return etag

    def abort_upload(self, key: str, upload_id: str) -> None:
        with self._lock:
            self._count("AbortMultipartUpload")
            self._uploads.pop(upload_id, None)

    def list_uploads(self, prefix: str) -> list[Upload]:
        with self._lock:
            self._count("ListMultipartUploads")
            found = [Upload(up.key, ident, up.initiated) for ident, up in self._uploads.items() if up.key.startswith(prefix)]
            return sorted(found, key=lambda upload: (upload.key, upload.upload_id))

    # --- listing

    def list(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, start_after: str | None = None, limit: int = 1000
    ) -> ListPage:
        limit = max(1, min(limit, MAX_LIST))
        with self._lock:
            self._count("ListObjectsV2")
            order = self._sorted()
            index = bisect.bisect_left(order, prefix)
            if token is not None:
                index = self._past(token[1:]) if token[0] == "p" else bisect.bisect_right(order, token[1:])
            elif start_after is not None:
                index = max(index, bisect.bisect_right(order, start_after))
            objects: list[ObjectInfo] = []
            prefixes: list[str] = []
            last = ""
            while index < len(order) and order[index].startswith(prefix):
                key = order[index]
                if key in self._dead:
                    index += 1
                    continue
                if len(objects) + len(prefixes) == limit:
                    return ListPage(objects, prefixes, last)
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    objects.append(_listed(self._objects[key].info))
                    last = "k" + key
                    index += 1
                else:
                    group = key[: cut + len(delimiter)]
                    prefixes.append(group)
                    last = "p" + group
                    index = self._past(group)
            return ListPage(objects, prefixes, None)

    def close(self) -> None:
        """Nothing to drop."""

    # --- inside, all with the lock held

    def _count(self, verb: str) -> None:
        self.counters.requests[verb] = self.counters.requests.get(verb, 0) + 1

    def _find(self, verb: str, key: str) -> _Object:
        check_key(key)
        found = self._objects.get(key)
        if found is None:
            raise NotFoundError(f"{verb} {key!r}: no such object", code="NoSuchKey", status=404)
        return found

    def _check(self, verb: str, key: str, if_match: str | None, if_none_match: bool) -> None:
        there = self._objects.get(key)
        if if_none_match and there is not None:
            raise _condition(verb, key)
        if if_match is not None and (there is None or there.info.etag != if_match):
            raise _condition(verb, key)

    def _store(
        self, key: str, size: int, etag: str, values: Mapping[str, str], content_type: str | None, pieces: Sequence[Piece]
    ) -> None:
        if key in self._dead:
            self._dead.discard(key)
        elif key not in self._objects:
            self._new[key] = None
        metadata = {name: decode_value(value) for name, value in values.items()}
        modified = float(int(self._clock()))  # whole seconds, as HeadObject says it
        kind = content_type or "binary/octet-stream"
        info = ObjectInfo(key, size, etag, modified, metadata, kind, "STANDARD")
        self._objects[key] = _Object(info, [piece for piece in pieces if piece[0]])

    def _remove(self, key: str) -> None:
        check_key(key)
        if self._objects.pop(key, None) is None:
            return
        if key in self._new:
            del self._new[key]
        else:
            self._dead.add(key)

    def _sorted(self) -> Keys:
        """All keys in order, dead ones among them. New keys are merged in: two sorted runs, which sort() does in one pass."""
        if len(self._dead) > 1000 and len(self._dead) > len(self._order) // 2:
            self._order = [key for key in self._order if key not in self._dead]
            self._dead.clear()
        if len(self._new) > _MERGE:
            self._order.extend(sorted(self._new))
            self._order.sort()
        else:
            for key in self._new:
                bisect.insort(self._order, key)
        self._new.clear()
        return self._order

    def _past(self, group: str) -> int:
        """Index of the first key after all that begin with `group`."""
        size = len(group)
        return bisect.bisect_right(self._order, group, key=lambda key: key[:size])

    def _open_upload(self, verb: str, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NotFoundError(f"{verb} {key!r}: no such upload {upload_id}", code="NoSuchUpload", status=404)
        return upload

    def _part(self, verb: str, key: str, upload_id: str, number: int) -> _Upload:
        if not 1 <= number <= MAX_PARTS:
            raise _refused(verb, key, "InvalidArgument", f"part number {number} is not from 1 to {MAX_PARTS}")
        return self._open_upload(verb, key, upload_id)


def _listed(info: ObjectInfo) -> ObjectInfo:
    return ObjectInfo(info.key, info.size, info.etag, info.modified, None, None, info.storage_class)


def _condition(verb: str, key: str) -> ConditionFailedError:
    return ConditionFailedError(f"{verb} {key!r}: another version is there", code="PreconditionFailed", status=412)


def _refused(verb: str, key: str, code: str, why: str) -> StoreError:
    kind = TooLargeError if code == "EntityTooLarge" else StoreError
    return kind(f"{verb} {key!r}: {why}", code=code, status=400, errno=errno.EINVAL)
