"""Blocks of objects on local disk, so that a remount does not fetch them again. Off unless asked for.

`segment` is the form of one file, `folder` what the mounts that share a folder agree on, `disk` what the filesystem calls.
Nothing here is needed for a right answer: the cache is checked on every read and may be deleted at any time.
"""

from sluicefs.cache.disk import DiskCache
from sluicefs.cache.folder import Folder

__all__ = ["DiskCache", "Folder"]
