"""The bubblewrap command line of a sandbox: what is seen inside. Knows bwrap(1), not buckets; starts nothing.

Of this machine only programs are visible, read-only: /usr, the Python that runs us, and the few files of /etc that programs
need. Never a home directory, never /etc as a whole (it holds secrets that root can read), never an environment of ours.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping

from sluicefs.errors import MountError

WORKSPACE = "/workspace"
"""Where commands start, and where HOME is."""

_ETC = (
    "alternatives", "ca-certificates", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
    "nsswitch.conf", "pki/tls/certs", "python3", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_ETC_NET = ("hosts", "resolv.conf", "services", "protocols", "gai.conf")
_RESERVED = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/proc", "/dev", "/sys")


def command_line(root: str, mounts: Mapping[str, tuple[str, bool]], *, net: bool, cwd: str) -> list[str]:
    """`bwrap … --`, to be followed by the command.

    `root`: the folder that is `/` inside. `mounts`: path inside -> (folder outside, read-only). Raises MountError.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise MountError("The program bwrap is missing. Install it: apt-get install bubblewrap.")
    line = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    line += ["--hostname", "sandbox", "--bind", root, "/"]
    for folder in ("/usr", *_interpreter()):
        line += ["--ro-bind", folder, folder]
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(link):
            line += ["--symlink", os.readlink(link), link]
        elif os.path.isdir(link):
            line += ["--ro-bind", link, link]
    for name in (*_ETC, *(_ETC_NET if net else ())):
        line += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    if net:
        line += ["--share-net"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for path in sorted(mounts):
        folder, read_only = mounts[path]
        line += ["--ro-bind" if read_only else "--bind", folder, path]
    return [*line, "--chdir", cwd, "--"]


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
    taken = (*_RESERVED, *_interpreter(), WORKSPACE)
    return path != "/" and not any(f"{path}/".startswith(f"{one}/") or f"{one}/".startswith(f"{path}/") for one in taken)


def _interpreter() -> list[str]:
    """Folders of the running Python (a virtual environment and what it stands on) that are not below /usr."""
    return [folder for folder in dict.fromkeys((sys.base_prefix, sys.prefix)) if not f"{folder}/".startswith("/usr/")]
