"""Where keys come from, in which order, and what to say when there are none. A secret never reaches `repr` or a message."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from sluicefs.errors import MissingCredentialsError
from sluicefs.store.client import Credentials
from sluicefs.store.sign import Keys

_NAMES = {
    "access": ("access_key", "access_key_id", "aws_access_key_id", "accessKeyId"),
    "secret": ("secret_key", "secret_access_key", "aws_secret_access_key", "secretAccessKey"),
    "token": ("token", "session_token", "aws_session_token", "sessionToken"),
}

Explicit = Credentials | Keys | Mapping[str, str] | Sequence[str]
"""Credentials as a caller may give them: (access key, secret key[, token]), a mapping with the usual names, or an object."""


class StaticCredentials:
    """Keys that stay as they are."""

    def __init__(self, keys: Keys, source: str) -> None:
        self.source = source
        self._keys = keys

    def __repr__(self) -> str:
        return f"StaticCredentials({self._keys.access_key!r}, from {self.source})"

    def keys(self) -> Keys:
        return self._keys

    def renew(self, refused: Keys) -> bool:
        return False


def find_credentials(
    explicit: Explicit | None,
    environment: Mapping[str, str] | None,
    chain: Callable[[], Credentials | None],
) -> Credentials:
    """The first that is found: `explicit`, AWS_*, R2_* of `environment` [this process's], then botocore's `chain`.

    Raises MissingCredentialsError, naming every place looked at; also for half a pair, which is a mistake to be told.
    """
    if explicit is not None:
        return _explicit(explicit)
    variables = os.environ if environment is None else environment
    for prefix in ("AWS", "R2"):
        access, secret = variables.get(f"{prefix}_ACCESS_KEY_ID"), variables.get(f"{prefix}_SECRET_ACCESS_KEY")
        if access and secret:
            keys = Keys(access.strip(), secret.strip(), variables.get(f"{prefix}_SESSION_TOKEN") or None)
            return StaticCredentials(keys, f"{prefix}_ACCESS_KEY_ID")
        if access or secret:
            there, missing = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")[:: 1 if access else -1]
            raise MissingCredentialsError(f"{prefix}_{there} is set but {prefix}_{missing} is not: set both, or neither.")
    found = chain()
    if found is not None:
        return found
    profile = variables.get("AWS_PROFILE", "default")
    files = (
        variables.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        variables.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    raise MissingCredentialsError(
        "No credentials were found. Looked at, in this order: the credentials given to the call; AWS_ACCESS_KEY_ID with "
        "AWS_SECRET_ACCESS_KEY; R2_ACCESS_KEY_ID with R2_SECRET_ACCESS_KEY; "
        f"profile {profile!r} in {files[0]} and {files[1]} (keys, SSO, role, web identity, process); the container's and the "
        "instance's metadata service. For R2: make an API token under R2 > Manage API Tokens, then set R2_ACCESS_KEY_ID and "
        "R2_SECRET_ACCESS_KEY."
    )


def _explicit(given: Explicit) -> Credentials:
    if isinstance(given, Keys):
        return StaticCredentials(given, "the call")
    if isinstance(given, Mapping):
        found = {part: next((given[name] for name in names if given.get(name)), None) for part, names in _NAMES.items()}
        access, secret, token = found["access"], found["secret"], found["token"]
    elif isinstance(given, Sequence):
        if isinstance(given, str) or len(given) not in (2, 3):
            raise MissingCredentialsError(
                "Credentials must be (access key, secret key) or (access key, secret key, session token)."
            )
        access, secret, token = given[0], given[1], given[2] if len(given) == 3 else None
    else:
        return given
    if not access or not secret:
        raise MissingCredentialsError("The credentials given lack the access key or the secret key: give both.")
    return StaticCredentials(Keys(access, secret, token or None), "the call")
