"""A directory marker's metadata in its Content-Type, for a store that keeps that and drops the metadata: SeaweedFS, which makes
a directory of its own of each key that ends in a slash."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

_PARAMETER = "; metadata="


def drops_metadata(server: str) -> bool:
    """Is it a store that needs this, by the Server header of its answers?"""
    return server.startswith("SeaweedFS")


def pack(content_type: str | None, metadata: Mapping[str, str]) -> str:
    """`content_type` with `metadata` in a parameter, printable ASCII."""
    named = {name.lower(): value for name, value in metadata.items()}
    return f'{content_type or "application/x-directory"}{_PARAMETER}"{urlencode(named, errors="surrogateescape")}"'


def unpack(content_type: str) -> tuple[str, dict[str, str]]:
    """What was packed. Any other Content-Type has no metadata."""
    plain, found, packed = content_type.partition(_PARAMETER)
    if not found:
        return content_type, {}
    return plain, dict(parse_qsl(packed.strip('"'), keep_blank_values=True, errors="surrogateescape"))
