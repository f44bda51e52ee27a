"""The bubblewrap command line of a sandbox: what is seen inside. Knows bwrap(1), not buckets; starts nothing.

Written to can be /home/sandbox, /tmp and what is mounted. Of this machine only programs are visible, read-only: /usr,
the Python that runs us, and the few files of /etc that programs need. Never a home directory, never /etc as a whole (it holds
secrets that root can read), never an environment of ours.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping

from sluicefs.errors import MountError

WORKSPACE = "/home/sandbox"
"""Where commands start, and where HOME is."""

_KEPT = (WORKSPACE, "/tmp", "/var/tmp")
_UID = 1000  # inside; outside it is this process's user
_ETC = (
    "alternatives", "ca-certificates", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
    "nsswitch.conf", "pki/tls/certs", "python3", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_ETC_NET = ("hosts", "resolv.conf", "services", "protocols", "gai.conf")
# The kernel's settings belong to user 0, which needs no capability to write them: a sandbox started by root could.
_SETTINGS = tuple(f"/proc/{name}" for name in ("sys", "sysrq-trigger", "irq", "bus", "fs", "scsi", "acpi", "asound"))
_RESERVED = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/proc", "/dev", "/sys")


def prepare(folder: str) -> None:
    """Make what a sandbox keeps between two commands."""
    for inside in _KEPT:
        os.makedirs(f"{folder}{inside}")
    for table, line in (("passwd", f"sandbox:x:{_UID}:{_UID}::{WORKSPACE}:/bin/sh"), ("group", f"sandbox:x:{_UID}:")):
        with open(f"{folder}/{table}", "w") as file:
            file.write(f"{line}\n")


def command_line(folder: str, mounts: Mapping[str, tuple[str, bool]], *, net: bool, cwd: str) -> list[str]:
    """`bwrap … --`, to be followed by the command.

    `folder`: as `prepare` made it. `mounts`: path inside -> (folder outside, read-only). The root is made anew each time and
    closed at the end, so no command can leave a link where the next one's mounts go. Raises MountError.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise MountError("The program bwrap is missing. Install it: apt-get install bubblewrap.")
    line = [program, "--unshare-all", "--unshare-user", "--uid", str(_UID), "--gid", str(_UID), "--hostname", "sandbox"]
    line += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for place in _KEPT:
        # Nothing is ever bound below what a command can write to, where it may have left a link.
        holds_python = any(one.startswith(f"{place}/") for one in _interpreter())
        line += ["--tmpfs", place] if holds_python else ["--bind", f"{folder}{place}", place]
    for place in ("/usr", *_interpreter()):
        line += ["--ro-bind", place, place]
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(link):
            line += ["--symlink", os.readlink(link), link]
        elif os.path.isdir(link):
            line += ["--ro-bind", link, link]
    for name in (*_ETC, *(_ETC_NET if net else ())):
        line += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for table in ("passwd", "group"):
        line += ["--ro-bind", f"{folder}/{table}", f"/etc/{table}"]
    if net:
        line += ["--share-net"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for place in _SETTINGS:
        line += ["--ro-bind-try", place, place]
    for path in sorted(mounts):
        outside, read_only = mounts[path]
        line += ["--ro-bind" if read_only else "--bind", outside, path]
    return [*line, "--remount-ro", "/", "--chdir", cwd, "--"]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A clean environment and `extra`; nothing of ours but the language."""
    places = [os.path.join(folder, "bin") for folder in dict.fromkeys((sys.prefix, sys.base_prefix)) if folder != "/usr"]
    return {
        "PATH": os.pathsep.join([*places, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": WORKSPACE,
        "TMPDIR": "/tmp",
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        **extra,
    }


def is_free(path: str) -> bool:
    """A bucket may be mounted on `path` inside: it covers neither programs nor the root."""
    taken = (*_RESERVED, *_interpreter(), *_KEPT)
    return path != "/" and not any(f"{path}/".startswith(f"{one}/") or f"{one}/".startswith(f"{path}/") for one in taken)


def _interpreter() -> list[str]:
    """Folders of the running Python (a virtual environment and what it stands on) that are not below /usr."""
    return [folder for folder in dict.fromkeys((sys.base_prefix, sys.prefix)) if not f"{folder}/".startswith("/usr/")]
