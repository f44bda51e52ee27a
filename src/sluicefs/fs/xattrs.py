"""Extended attributes: kept in the object's metadata in s3fs's form.

`user.sluicefs.etag`, `.content_type` and `.storage_class` show what the bucket says of an object. They are not listed, so that
copying a file's attributes does not try to set them elsewhere.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from sluicefs.fs import attributes
from sluicefs.fs.names import error
from sluicefs.fs.nodes import Node

if TYPE_CHECKING:
    from sluicefs.fs.core import Core
    from sluicefs.fs.files import Files
    from sluicefs.fs.namespace import Namespace

OWN = b"user.sluicefs."
ETAG, CONTENT_TYPE, STORAGE_CLASS = OWN + b"etag", OWN + b"content_type", OWN + b"storage_class"
# Not security.*, which the kernel itself would ask for before every write, nor system.*, rules that nothing here would enforce.
SPACES = (b"user.", b"trusted.")


def _require_space(name: bytes) -> None:
    if not name.startswith(SPACES):
        raise error(errno.EOPNOTSUPP)
    if name in SPACES:
        raise error(errno.EINVAL)


class ExtendedAttributes:
    """The four verbs on one mount."""

    def __init__(self, core: Core, files: Files, names: Namespace):
        self.core = core
        self.files = files
        self.namespace = names

    def get(self, node: Node, name: bytes) -> bytes:
        """The value. ENODATA where there is none, EOPNOTSUPP where there can be none."""
        if name.startswith(b"security."):
            raise error(errno.ENODATA)
        _require_space(name)
        value = self._own(node, name) if name.startswith(OWN) else self._stored(node).get(name)
        if value is None:
            raise error(errno.ENODATA)
        return value

    def names(self, node: Node) -> list[bytes]:
        """The names that were set."""
        return [name for name in self._stored(node) if name.startswith(SPACES)]

    def set(self, node: Node, name: bytes, value: bytes | None) -> None:
        """Set, or with None remove. E2BIG: a value no object could carry. ENOSPC: no room beside the others."""
        _require_space(name)
        core = self.core
        if value is not None and len(value) > core.stored.limit:
            raise error(errno.E2BIG)
        core.stored.learn_again(node)
        before, before_type = node.metadata, node.content_type
        if name.startswith(OWN):
            if name != CONTENT_TYPE or value is None or not node.is_file:
                raise error(errno.EPERM)
            if not value.isascii() or not value.decode("ascii").isprintable():
                raise error(errno.EINVAL)
            node.content_type = attributes.foreign_type(value.decode("ascii"), node.name)
        else:
            found = self._stored(node)
            if value is None:
                if found.pop(name, None) is None:
                    raise error(errno.ENODATA)
            else:
                found[name] = value
            metadata = {key: text for key, text in (before or {}).items() if key != "xattr"}
            if found:
                metadata["xattr"] = attributes.encode_xattrs(found)
            node.metadata = metadata
        try:
            self._store(node)
        except OSError:
            node.metadata, node.content_type = before, before_type
            raise

    def _store(self, node: Node) -> None:
        self.core.stored.metadata_of(node)  # ENOSPC now, never at the upload
        node.ctime_ns = time.time_ns()
        if node.is_dir:
            self.namespace.store_directory_attributes(node)
        else:
            self.files.attributes.changed(node)

    def _stored(self, node: Node) -> attributes.Xattrs:
        self.core.stored.learn(node)
        return attributes.decode_xattrs(node.metadata)

    def _own(self, node: Node, name: bytes) -> bytes | None:
        if not node.is_file or node.etag is None:
            return None
        if name == ETAG:
            return node.etag.encode()
        if name == CONTENT_TYPE:
            self.core.stored.learn(node)
            return (node.content_type or attributes.content_type(node.name)).encode()
        if name == STORAGE_CLASS:
            return (self.core.store.head(self.core.key_of(node)).storage_class or "STANDARD").encode()
        return None
