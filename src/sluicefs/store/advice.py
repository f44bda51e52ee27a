"""What to say to people when a bucket cannot be used: what is wrong, and what to do. Words only."""

from __future__ import annotations

from sluicefs.errors import AccessDeniedError, ClockSkewError, NoSuchBucketError, StoreError, UnreachableError

_UNREACHABLE = {
    "DNS": "The name in the endpoint {endpoint} is unknown: check its spelling and the account id in it.",
    "DNSTemporary": "The name in {endpoint} could not be resolved just now: check the network and its DNS server.",
    "TLS": "The certificate of {endpoint} is not trusted: check the host; for a private authority give its certificates "
    "as the CA bundle (--ca-bundle).",
    "TLSBroken": "{endpoint} does not speak TLS as it should: is it an http:// endpoint, or is there a proxy between?",
    "ConnectionRefused": "Nothing listens at {endpoint}: check host and port, and that the server runs.",
    "Timeout": "{endpoint} did not answer in time: check the network, the firewall and the proxy settings.",
    "Malformed": "What answers at {endpoint} is not an S3 store: check the endpoint.",
    "": "{endpoint} cannot be reached: check the endpoint, the network and the proxy settings.",
}
_REFUSED = {
    "InvalidAccessKeyId": "The access key id {key!r} is unknown to {endpoint}: check the id, and that the endpoint is that "
    "of the account that made the key.",
    "SignatureDoesNotMatch": "The secret key does not belong to access key id {key!r}, or region {region!r} is not the "
    "store's: check the secret for a missing character, and the region (R2: auto).",
    "ExpiredToken": "The credentials have expired: renew them.",
    "InvalidToken": "The session token is not valid: renew the credentials.",
    "Credentials": "The credentials could not be had: log in anew, or check the profile.",
    "": "Access key id {key!r} may not list bucket {bucket!r} at {endpoint}: give the key (R2: the API token) access to it.",
}


def advice(error: StoreError, bucket: str, endpoint: str, region: str, key: str) -> str:
    """A sentence for people on `error`, its cause in brackets. `key` is the access key id."""
    if isinstance(error, NoSuchBucketError) or (error.status == 404 and error.code):
        text = "There is no bucket {bucket!r} at {endpoint}: check its name, and that the endpoint is that of its account."
    elif error.status == 404 and not error.code:  # whatever it is, S3 names the error
        text = _UNREACHABLE["Malformed"]
    elif isinstance(error, ClockSkewError):
        text = "This machine's clock is wrong, so the store refuses its signatures: set it (timedatectl set-ntp true)."
    elif isinstance(error, AccessDeniedError):
        text = _REFUSED.get(error.code, _REFUSED[""])
    elif isinstance(error, UnreachableError):
        text = _UNREACHABLE.get(error.code, _UNREACHABLE[""])
    elif error.status in (301, 307, 400):
        text = "{endpoint} refused the request: check that region {region!r} is that of bucket {bucket!r}."
    else:
        text = "The store failed on bucket {bucket!r} at {endpoint}: if it goes on, ask its operator."
    said = text.format(bucket=bucket, endpoint=endpoint, region=region, key=key)
    return f"{said} [{error.strerror}]"
