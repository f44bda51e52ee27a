"""Every option of a mount, once: its default, its unit and its help. A leaf: imports `errors` only.

`Config` is filled from, later wins: defaults, the config file, the binding, the environment, flags. It never holds a secret.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sluicefs.errors import InvalidMountConfigError

MiB = 1024 * 1024
GiB = 1024 * MiB


def option(default: Any, help: str, *, unit: str = "", choices: tuple[str, ...] = (), short: str = "") -> Any:
    """A dataclass field that carries what the command line shows: help text, unit ("bytes", "seconds", "octal"), choices."""
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, "choices": choices, "short": short})


@dataclass(frozen=True, slots=True)
class Config:
    """What one mount is asked to be. Sizes are bytes, times seconds, modes permission bits."""

    bucket: str
    mountpoint: str
    prefix: str = option("", "only keys below this prefix, shown as the root of the mount ('' or 'users/1/')")
    endpoint: str | None = option(None, "URL of the S3 endpoint")
    region: str | None = option(None, "region to sign for (R2: auto)")
    account_id: str | None = option(None, "Cloudflare account; gives the R2 endpoint")
    provider: str = option("auto", "whose rules to follow", choices=("auto", "r2", "s3", "gcs", "other"))
    read_only: bool = option(False, "refuse every change with EROFS")
    allow_other: bool = option(False, "let other users see the mount")
    noexec: bool = option(False, "let no program on the mount be run")
    uid: int | None = option(None, "owner of files that carry no owner [the mounting user]")
    gid: int | None = option(None, "group of files that carry no group [the mounting user's]")
    file_mode: int = option(0o644, "mode of files that carry no mode", unit="octal")
    dir_mode: int = option(0o755, "mode of directories that carry no mode", unit="octal")
    umask: int = option(0, "bits taken away from every default mode", unit="octal")
    cache_dir: str | None = option(None, "folder of the disk cache [off]")
    cache_size: int | None = option(None, "size of the disk cache [off; 10 GiB where only --cache-dir is given]", unit="bytes")
    memory: int | None = option(None, "memory for data [512 MiB, or a quarter of the machine's if less]", unit="bytes")
    part_size: int = option(16 * MiB, "size of the parts of an upload", unit="bytes")
    attr_ttl: float = option(1.0, "how long a listing or an attribute is trusted", unit="seconds")
    attrs: str = option("auto", "ask for each entry's own attributes", choices=("auto", "listing", "full"))
    xattr: bool = option(False, "extended attributes (slows down small writes)")
    write_mode: str = option(
        "sync", "close answers when the bucket (sync) or the local disk (back) has the data", choices=("sync", "back")
    )
    timeout: float = option(30.0, "longest wait for one answer of the store", unit="seconds")
    stop_timeout: float = option(300.0, "longest time for pending uploads at unmount", unit="seconds")
    ca_bundle: str | None = option(None, "file of certificates to trust [the system's]")
    foreground: bool = option(False, "stay in the foreground", short="-f")
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_file: str | None = option(None, "where a mount in the background logs [a file in the user's state folder]")


# --- filling a Config

_FILES = ("./sluicefs.toml", "~/.config/sluicefs/sluicefs.toml", "/etc/sluicefs/sluicefs.toml")
_SECRETS = re.compile(r"secret|token|password|access_?key|credential", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_ACCOUNT = re.compile(r"[0-9a-f]{32}")
# So many digits that no number overflows.
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(ms|s|min|m|h|d|)")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Words of mount(8), fstab(5) and libfuse that ask nothing of us.
_TOLERATED = re.compile(
    r"defaults|rw|exec|(no)?(auto|fail|suid|dev|diratime|relatime|user)|_netdev|users|owner|group|a?sync|noatime|atime"
    r"|strictatime|nonempty|default_permissions"
)
_TOLERATED_KEYS = ("x-", "comment", "fsname", "subtype")
_ENVIRONMENT = (  # later wins
    ("CLOUDFLARE_ACCOUNT_ID", "account_id"),
    ("R2_ACCOUNT_ID", "account_id"),
    ("AWS_DEFAULT_REGION", "region"),
    ("AWS_REGION", "region"),
    ("AWS_CA_BUNDLE", "ca_bundle"),
    ("AWS_ENDPOINT_URL", "endpoint"),
    ("AWS_ENDPOINT_URL_S3", "endpoint"),
)

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
OPTIONS = {name: field for name, field in FIELDS.items() if name not in ("bucket", "mountpoint")}


def load(
    target: str,
    mountpoint: str,
    flags: Mapping[str, Any] | None = None,
    *,
    file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The Config of a mount of `target` (BUCKET or a binding, then perhaps :/PREFIX) on `mountpoint`.

    `flags` are what the user gave for this one mount (None values do not count), `file` the config file they named. Raises
    InvalidMountConfigError.
    """
    variables = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if not mountpoint:
        raise InvalidMountConfigError("The mountpoint is empty: name a folder.")
    name, prefix = split_target(target)
    where, document = _read_file(file, variables)
    general, bindings = _split_document(document, where)
    binding = dict(bindings.get(name, {}))
    bucket = binding.pop("bucket", name)
    if name in bindings and bucket is name and not _BUCKET.fullmatch(name):
        raise InvalidMountConfigError(f'[buckets.{name}] in {where} does not name its bucket: add bucket = "…".')
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket):
        known = f"those in {where} are {', '.join(bindings)}" if bindings else "there is none"
        raise InvalidMountConfigError(
            f"{str(bucket)!r} is not a bucket's name (3 to 63 of a-z, 0-9, '-', '.'), nor a binding ({known})."
        )
    from_environment = _from_environment(variables)
    layers = (general, binding, from_environment, {"prefix": prefix}, given)
    prefixes = [layer.pop("prefix", "") for layer in layers]

    values: dict[str, Any] = {}
    for source, layer in (
        (where, general),
        (f"[buckets.{name}] in {where}", binding),
        ("the environment", from_environment),
        ("", given),
    ):
        layer = {key: _checked(key, value, source) for key, value in layer.items()}
        if "account_id" in layer and "endpoint" not in layer and source != "the environment":
            values.pop("endpoint", None)  # an account named for this very mount is not overruled by a general endpoint
        values.update(layer)
    values["prefix"] = "".join(_as_prefix(part) for part in prefixes)
    _derive(values, bucket)
    return Config(bucket=bucket, mountpoint=os.path.realpath(os.path.expanduser(mountpoint)), **values)


def split_target(target: str) -> tuple[str, str]:
    """("BUCKET", "PREFIX") of BUCKET[:/PREFIX]; a leading s3:// or r2:// is taken as well."""
    for scheme in ("s3://", "r2://"):
        if target.startswith(scheme):
            bucket, _, prefix = target[len(scheme) :].partition("/")
            return bucket, prefix
    bucket, _, prefix = target.partition(":")
    if not bucket:
        raise InvalidMountConfigError(f"{target!r} names no bucket: write BUCKET or BUCKET:/PREFIX.")
    return bucket, prefix


def is_bucket_name(text: str) -> bool:
    """S3 takes `text` for a bucket's name, as far as its letters go."""
    return _BUCKET.fullmatch(text) is not None


def bucket_of(target: str) -> str:
    """The bucket of a `target` as `load` takes it. Raises InvalidMountConfigError."""
    name, _ = split_target(target)
    _, bindings = _split_document(*reversed(_read_file(None, os.environ)))
    return str(bindings.get(name, {}).get("bucket", name))


def usual_cache_dir() -> str:
    """The disk cache of mounts that name none: the environment's, the config file's, else the user's own."""
    general, _ = _split_document(*reversed(_read_file(None, os.environ)))
    found = os.environ.get("SLUICEFS_CACHE_DIR") or general.get("cache_dir")
    return str(_checked("cache_dir", found or _own_cache_dir(), ""))


def _own_cache_dir() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "sluicefs")


def parse_mount_options(text: str) -> dict[str, Any]:
    """Options in fstab form, `k=v,k2,…`, as flags. Words that only mean something to mount(8) are passed over."""
    flags: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        name = key.replace("-", "_")
        if name == "ro":
            flags["read_only"] = True
        elif name in OPTIONS:
            flags[name] = value if equals else True
        elif not _TOLERATED.fullmatch(word) and not key.startswith(_TOLERATED_KEYS):
            raise InvalidMountConfigError(f"-o {word}: there is no such option{_guess(name, OPTIONS)}")
    return {name: _checked(name, value, "-o") for name, value in flags.items()}


def parse_size(text: str) -> int:
    """Bytes of `512M`, `16MiB`, `1.5g` or `4096`; all units are powers of 1024. ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a size such as 512M or 16MiB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def parse_duration(text: str) -> float:
    """Seconds of `1`, `1.5s`, `200ms`, `5min`, `1h`. ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a time such as 30, 30s, 500ms or 5min")
    return float(match[1]) * _SECONDS[match[2]]


def memory_limit() -> int:
    """Bytes this process may use: the machine's memory, or its control group's limit if less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _cgroup_limits():
        try:
            with open(path) as lines:
                limit = min(limit, int(lines.read()))
        except (OSError, ValueError):
            pass  # no such controller, or "max"
    return limit


def _cgroup_limits() -> list[str]:
    """Files that may hold a limit: of our own group and of each group above it (version 2), and of version 1's root."""
    paths = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    try:
        with open("/proc/self/cgroup") as lines:
            own = next((line.strip()[3:] for line in lines if line.startswith("0::")), "/")
    except OSError:
        return paths
    while own.strip("/"):
        paths.append(f"/sys/fs/cgroup{own}/memory.max")
        own = os.path.dirname(own)
    return paths


def _read_file(named: str | None, variables: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Path and content of the config file named, else of $SLUICEFS_CONFIG, else of the first there is; ("", {}) without one."""
    named = named or variables.get("SLUICEFS_CONFIG")
    home = variables.get("XDG_CONFIG_HOME")
    places = [named] if named else [_FILES[0], f"{home}/sluicefs/sluicefs.toml" if home else _FILES[1], _FILES[2]]
    for place in places:
        path = os.path.expanduser(place)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            if named:
                raise InvalidMountConfigError(f"The config file {path} does not exist.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidMountConfigError(f"The config file {path} cannot be read: {error}.") from None
        else:
            return path, _parse(text, path)
    return "", {}


def _parse(text: str, path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):  # here, as few have a config file and it takes a while to import
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(text)
        return document
    except (ValueError, RecursionError) as error:  # also of a number too long or brackets too deep for Python
        raise InvalidMountConfigError(f"The config file {path} is not TOML: {error}.") from None


def _split_document(document: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options for every mount, and the bindings."""
    bindings = document.pop("buckets", {})
    if not isinstance(bindings, dict) or not all(isinstance(binding, dict) for binding in bindings.values()):
        raise InvalidMountConfigError(f"{where}: bindings are tables, [buckets.NAME].")
    tables = [(f"[buckets.{name}] in {where}", table, "bucket") for name, table in bindings.items()]
    for place, table, extra in [(where, document, ""), *tables]:
        for key in table:
            if key != extra and key.replace("-", "_") not in OPTIONS:
                if _SECRETS.search(key):
                    raise InvalidMountConfigError(
                        f"{place}: {key!r} does not belong in this file, which may not hold secrets. Set AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY (or R2_…), or use a profile in ~/.aws/credentials."
                    )
                raise InvalidMountConfigError(f"{place}: there is no option {key!r}{_guess(key, OPTIONS)}")
    general = {key.replace("-", "_"): value for key, value in document.items()}
    return general, {name: {key.replace("-", "_"): value for key, value in table.items()} for name, table in bindings.items()}


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    found = {name: variables[variable] for variable, name in _ENVIRONMENT if variables.get(variable)}
    for variable, value in variables.items():
        if variable.startswith("SLUICEFS_") and variable not in ("SLUICEFS_CONFIG", "SLUICEFS_DEBUG_LOCKS"):
            name = variable[len("SLUICEFS_") :].lower()
            if name not in OPTIONS:
                known = [f"SLUICEFS_{option.upper()}" for option in OPTIONS]
                raise InvalidMountConfigError(f"{variable}: there is no such option{_guess(variable, known)}")
            found[name] = value
    return found


def _checked(name: str, value: Any, source: str) -> Any:
    """`value` as the field's type, within its bounds. Raises InvalidMountConfigError, a sentence that names `source`."""
    try:
        return _converted(name, value)
    except ValueError as error:
        what = f"--{name.replace('_', '-')}" if not source else f"{source}: {name}"
        raise InvalidMountConfigError(f"{what} {error}, not {value!r}.") from None


def _converted(name: str, value: Any) -> Any:
    field = FIELDS[name]
    kind = str(field.type).removesuffix(" | None")
    unit, choices = field.metadata["unit"], field.metadata["choices"]
    if kind == "bool":
        if isinstance(value, str) and value.lower() in _SWITCH:
            return _SWITCH[value.lower()]
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if isinstance(value, bool):
        raise ValueError("needs a value")
    if unit == "bytes" and isinstance(value, str):
        value = parse_size(value)
    elif unit == "octal" and isinstance(value, str):
        digits = value.lower().removeprefix("0o")
        if not re.fullmatch("[0-7]{1,18}", digits):
            raise ValueError("must be an octal mode such as 0644")
        value = int(digits, 8)
    elif unit == "seconds" and isinstance(value, str):
        value = parse_duration(value)
    elif kind == "int" and isinstance(value, str):
        if not re.fullmatch("[0-9]{1,18}", value):
            raise ValueError("must be a whole number")
        value = int(value)
    if isinstance(value, int) and value >= 2**63:
        raise ValueError("must not be so large")
    if kind == "float" and isinstance(value, int):
        value = float(value)
    if type(value).__name__ != kind:
        raise ValueError({"str": "must be text", "int": "must be a whole number", "float": "must be a number"}[kind])
    if kind == "str" and re.search("[\0-\x1f\x7f]", value):
        raise ValueError("must not hold control characters")
    if name in _PLACES and not value:
        raise ValueError("must not be empty")
    if choices and value not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    low, high, words = _BOUNDS.get(name, (0, float("inf"), "must not be negative"))
    if kind != "str" and not low <= value <= high:
        raise ValueError(words)
    return os.path.abspath(os.path.expanduser(value)) if name in _PLACES else value


_PLACES = ("cache_dir", "ca_bundle", "log_file")
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_MODES = (0, 0o7777, "must be an octal mode of at most 7777")
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "file_mode": _MODES,
    "dir_mode": _MODES,
    "umask": (0, 0o777, "must be an octal mask of at most 777"),
    "uid": (0, 2**32 - 2, "must be a user's number"),
    "gid": (0, 2**32 - 2, "must be a group's number"),
    "memory": (64 * MiB, 2**62, "must be at least 64 MiB"),
    "part_size": (5 * MiB, 4 * GiB, "must be between 5 MiB and 4 GiB"),
    "cache_size": (64 * MiB, 2**62, "must be at least 64 MiB"),
    "timeout": (1, 3600, "must be between 1 and 3600 seconds"),
    "stop_timeout": (0, 86400, "must be between 0 and 86400 seconds"),
    "attr_ttl": (0, 86400, "must be between 0 and 86400 seconds"),
}


def _as_prefix(text: Any) -> str:
    """'users/1/' of '/users/1', '' of '/'."""
    if not isinstance(text, str) or "\0" in text:
        raise InvalidMountConfigError(f"A prefix must be text without NUL, not {text!r}.")
    parts = text.strip("/").split("/") if text.strip("/") else []
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidMountConfigError(f"The prefix {text!r} has an empty part, '.' or '..': no file of a mount can be there.")
    return "".join(f"{part}/" for part in parts)


def _derive(values: dict[str, Any], bucket: str) -> None:
    """Fill in what follows from the rest: endpoint, provider, region, memory, cache."""
    account, region = values.get("account_id"), values.get("region")
    provider = values.get("provider", "auto")
    endpoint = values.get("endpoint")
    if endpoint is None and account is not None:
        if not _ACCOUNT.fullmatch(account):
            raise InvalidMountConfigError(f"The account id {account!r} is not a Cloudflare account's: 32 of 0-9 and a-f.")
        endpoint = f"https://{account}.r2.cloudflarestorage.com"
    elif endpoint is None and provider == "gcs":
        endpoint = "https://storage.googleapis.com"
    elif endpoint is None and provider in ("auto", "s3") and region not in (None, "auto"):
        endpoint = f"https://s3.{region}.amazonaws.com"
    if endpoint is None:
        raise InvalidMountConfigError(
            f"No endpoint is known for the bucket {bucket!r}. Give --account-id or R2_ACCOUNT_ID for Cloudflare R2, --region "
            "or AWS_REGION for Amazon S3, or --endpoint URL for any other store."
        )
    values["endpoint"], host = _checked_endpoint(endpoint, bucket)
    if provider == "auto":
        known = {".r2.cloudflarestorage.com": "r2", ".amazonaws.com": "s3", "storage.googleapis.com": "gcs"}
        provider = next((name for end, name in known.items() if host.endswith(end)), "other")
    values["provider"] = provider
    if region is None:
        match = re.fullmatch(r"s3[.-](?:dualstack\.)?([a-z0-9-]+)\.amazonaws\.com", host)
        values["region"] = "auto" if provider in ("r2", "gcs") else match[1] if match else "us-east-1"
    if values.get("memory") is None:
        values["memory"] = max(64 * MiB, min(512 * MiB, memory_limit() // 4))
    if values.get("cache_size") is not None and values.get("cache_dir") is None:
        values["cache_dir"] = _own_cache_dir()
    elif values.get("cache_dir") is not None and values.get("cache_size") is None:
        values["cache_size"] = 10 * GiB


def _checked_endpoint(endpoint: str, bucket: str) -> tuple[str, str]:
    """The endpoint without the bucket at its end (R2's dashboard shows it with one), and its host."""
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InvalidMountConfigError(f"The endpoint {endpoint!r} is no URL such as https://ACCOUNT.r2.cloudflarestorage.com.")
    if parts.username is not None or parts.password is not None:
        raise InvalidMountConfigError("The endpoint holds a name or a password: leave them out, set AWS_ACCESS_KEY_ID instead.")
    path = parts.path.rstrip("/").removesuffix(f"/{bucket}")
    return f"{parts.scheme}://{parts.netloc}{path}", host


def _guess(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else "."
