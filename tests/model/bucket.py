"""What must be in the bucket once a mount is gone: the local folder, key by key."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from sluicefs.fs.attributes import Defaults, decode
from sluicefs.store.api import ObjectInfo, Store
from tests.model.steps import Player, agree, describe

DEFAULTS = Defaults(uid=os.getuid(), gid=os.getgid(), file_mode=0o644, dir_mode=0o755)


def all_objects(store: Store, prefix: str = "") -> Iterator[ObjectInfo]:
    """Every object below `prefix`, all pages."""
    token = None
    while True:
        page = store.list(prefix, token=token)
        yield from page.objects
        token = page.token
        if token is None:
            return


def bucket_differences(store: Store, local: str, prefix: str = "", defaults: Defaults = DEFAULTS) -> list[str]:
    """Where the bucket below `prefix` is not what the folder `local` says: keys, bytes, attributes, left-over uploads."""
    found = [f"left-over upload: {upload}" for upload in store.list_uploads(prefix)]
    keys = {info.key[len(prefix) :]: info for info in all_objects(store, prefix)}
    seen = {""}
    player = Player(local)
    for folder, folders, files in os.walk(local):
        below = os.path.relpath(folder, local) + "/" if folder != local else ""
        for name in (*folders, *files):
            path = below + name
            status = os.lstat(os.path.join(local, path))
            is_dir = stat.S_ISDIR(status.st_mode)
            key = path + "/" if is_dir else path
            seen.add(key)
            if key not in keys:
                if not is_dir or not any(other.startswith(key) for other in keys):
                    found.append(f"{key}: not in the bucket")
                elif stat.S_IMODE(status.st_mode) != defaults.dir_mode:
                    found.append(f"{key}: no marker, so mode {stat.S_IMODE(status.st_mode):o} is lost")
                continue
            info = store.head(prefix + key)
            stored, _ = decode(info.metadata, defaults, key_is_dir=is_dir, size=info.size, modified=info.modified)
            shown = describe(status)
            theirs = {"mode": oct(stored.mode), "uid": stored.uid, "gid": stored.gid, "mtime_ns": stored.mtime_ns}
            theirs |= {"size": stored.size, "rdev": stored.rdev}
            theirs = {name: theirs[name] for name in shown}
            if not agree(("stat", shown), ("stat", theirs), now_ns=time.time_ns()):
                found.append(f"{key}: bucket says {theirs}, local {shown}")
            if stat.S_ISREG(status.st_mode):
                expected = player.play(["cat", path])[1]
            else:
                expected = os.readlink(os.path.join(local, path)).encode() if stat.S_ISLNK(status.st_mode) else b""
            body = bytes(store.get(prefix + key)[1])
            if body != expected:
                found.append(f"{key}: {len(body)} bytes in the bucket differ from the {len(expected)} there should be")
    found += [f"{key}: in the bucket, but should not be" for key in keys if key not in seen]
    return found
