"""What is written down in the journal of a mount, so that it does not outlive a crash for long in the bucket: multipart uploads
that were begun, and copies that keep the bytes of large files that were deleted while they were open."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sluicefs.errors import StoreError
from sluicefs.fs.names import RESERVED
from sluicefs.staging import Staging
from sluicefs.staging.folder import Left

if TYPE_CHECKING:
    from sluicefs.store.api import Store

log = logging.getLogger(__name__)

# An upload whose id nobody wrote down began at most so long after it was announced; clocks may differ a little (seconds).
BEGUN_WITHIN = 60.0
CLOCKS = 5.0
ORPHANS = RESERVED + "orphans/"


class JournalingStore:
    """`store`, with its uploads noted in `staging` from before they are begun until they are ended."""

    def __init__(self, store: Store, staging: Staging):
        self._store = store
        self._staging = staging
        self._rows: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        setattr(self, name, found)  # the next call goes straight there
        return found

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str | None = None) -> str:
        journal = self._staging.journal
        row = journal.upload_begins(key)
        upload_id = self._store.create_upload(key, metadata=metadata, content_type=content_type)
        self._rows[upload_id] = row
        journal.upload_has_id(row, upload_id)
        return upload_id

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        etag = self._store.complete_upload(key, upload_id, parts, if_match=if_match, if_none_match=if_none_match)
        self._ended(upload_id)
        return etag

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._store.abort_upload(key, upload_id)
        self._ended(upload_id)

    def _ended(self, upload_id: str) -> None:
        row = self._rows.pop(upload_id, None)
        if row is not None:
            self._staging.journal.upload_ended(row)


class Asides:
    """The copies that keep the bytes of files without a name: `.sluicefs-orphans/…`. In the journal each is an upload without
    an id, from before it is made until it is deleted."""

    def __init__(self, store: Store, staging: Staging, prefix: str):
        self._store = store
        self._staging = staging
        self._prefix = prefix
        self._rows: dict[str, int] = {}

    def new(self) -> str:
        """The key of a copy that is about to be made."""
        key = f"{self._prefix}{ORPHANS}{uuid.uuid4().hex}"
        try:
            self._rows[key] = self._staging.journal.upload_begins(key)
        except OSError as error:  # it may be for want of room here that a copy is made there
            log.warning("%s stays in the bucket if this mount dies: %s", key, error)
        return key

    def delete(self, key: str) -> None:
        """Nobody reads it any more. What cannot be deleted now is by the next mount."""
        try:
            self._store.delete(key)
        except StoreError as error:
            log.warning("%s, kept for a file that was open, could not be deleted: %s", key, error)
            return
        row = self._rows.pop(key, None)
        if row is not None:
            self._staging.journal.upload_ended(row)


def abort_left(store: Store, staging: Staging, left: Left) -> None:
    """Abort the uploads that a mount left when it died, and delete what it kept for files that were open. What cannot be done
    now stays in its journal. No upload of others.

    To be called before this mount begins uploads of its own.
    """
    try:
        started = left.journal.uploads()
        others = staging.others_uploads() if any(upload.upload_id is None for upload in started) else []
        asides = left.journal.about().get("prefix", "") + ORPHANS
        for upload in started:
            if upload.key.startswith(asides):
                store.delete(upload.key)
            if upload.upload_id is not None:
                store.abort_upload(upload.key, upload.upload_id)
            elif any(other.key == upload.key and other.upload_id is None for other in others):
                continue  # which of the two is whose cannot be told now
            else:
                known = {other.upload_id for other in others}
                for found in store.list_uploads(upload.key):
                    ours = found.key == upload.key and -CLOCKS < found.initiated - upload.at < BEGUN_WITHIN
                    if ours and found.upload_id not in known:
                        store.abort_upload(found.key, found.upload_id)
            left.journal.upload_ended(upload.row)
        if started:
            left.journal.flush()
            log.info("%d multipart uploads or copies that a crash left are gone", len(started))
    except OSError as error:
        log.warning("multipart uploads and copies that a crash left are removed at a later mount: %s", error)
