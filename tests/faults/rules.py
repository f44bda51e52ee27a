"""What can go wrong between a client and an S3 server, as rules: which requests, how often, and what happens to them."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, unquote, urlsplit

FAULTS = {
    "delay": "wait `seconds`, then go on",
    "status": "answer with `status`, `code` and `retry_after`; the server never sees the request",
    "status-after": "the server carries the request out, its answer is replaced by `status`",
    "error-in-200": "answer 200 with an <Error> document; the server never sees the request",
    "garbage": "answer 200 with XML that breaks off; the server never sees the request",
    "garbage-http": "answer with bytes that are no HTTP",
    "reset-before": "reset the connection as soon as the request's headers are in",
    "reset-request": "reset it in the middle of the request's body",
    "reset-after": "the server carries the request out, the connection is reset instead of an answer",
    "late": "reset the connection once the whole request is in; the server carries it out `seconds` later",
    "reset-response": "reset it after `after` bytes of the answer's body (half of it if not given)",
    "short": "close it, in good order, after `after` bytes of the answer's body",
    "stall": "send `after` bytes of the answer's body, then nothing for `seconds`",
    "no-answer": "take the request and send nothing for `seconds`",
    "refuse": "reset every connection and refuse new ones for `seconds`",
}
SHORT_NAMES = {  # status faults as they are written by hand
    "403": ("status", 403, "SignatureDoesNotMatch"),
    "404": ("status", 404, "NoSuchKey"),
    "429": ("status", 429, "TooManyRequests"),
    "500": ("status", 500, "InternalError"),
    "502": ("status", 502, "BadGateway"),
    "503": ("status", 503, "SlowDown"),
    "expired": ("status", 400, "ExpiredToken"),
    "denied": ("status", 403, "AccessDenied"),
    "skew": ("status", 403, "RequestTimeTooSkewed"),
}


CONDITIONS = ("range", "if-match", "if-none-match", "x-amz-copy-source", "x-amz-copy-source-if-match")


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault and the requests it hits. Times are seconds, `after` is bytes; `verb` and `key` are shell patterns.

    The first `skip` matching requests pass; of the others each is hit with `probability`, at most `times` in all.
    """

    fault: str
    verb: str = "*"
    key: str = "*"
    probability: float = 1.0
    times: int | None = None
    skip: int = 0
    seconds: float = 1.0
    status: int = 503
    code: str = "SlowDown"
    retry_after: int | None = None
    after: int | None = None

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"no such fault: {self.fault!r}; there are: {', '.join(FAULTS)}")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`FAULT[:name=value,…]`, as `503:verb=PutObject,probability=0.1` or `delay:seconds=0.03`; ValueError."""
        fault, _, rest = text.partition(":")
        values: dict[str, object] = {"fault": fault}
        if fault in SHORT_NAMES:
            values["fault"], values["status"], values["code"] = SHORT_NAMES[fault]
        kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for pair in filter(None, rest.split(",")):
            name, equals, value = pair.partition("=")
            if not equals or name not in kinds:
                raise ValueError(f"{pair!r} in rule {text!r}: expected one of {', '.join(kinds)}, as name=value")
            convert = float if "float" in kinds[name] else int if "int" in kinds[name] else str
            values[name] = convert(value)
        return cls(**values)  # type: ignore[arg-type]


def chaos(probability: float, *, seconds: float = 0.2) -> list[Rule]:
    """Every fault a client must survive without an error of its own, together hitting `probability` of the requests."""
    rules = [
        Rule("delay", seconds=seconds),
        Rule.parse("500"),
        Rule.parse("503:retry_after=0"),
        Rule.parse("429:retry_after=0"),
        Rule.parse("403"),
        Rule("reset-before"),
        Rule("reset-request"),
        Rule("reset-after", verb="[GHL]*"),
        Rule("reset-response", verb="GetObject"),
        Rule("short", verb="GetObject"),
        Rule("garbage", verb="List*"),
        Rule("error-in-200", verb="*Copy*"),
    ]
    return [dataclasses.replace(rule, probability=probability / len(rules)) for rule in rules]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as rules and tests see it. `verb` is the S3 operation's name; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    verb: str
    bucket: str
    key: str
    query: Mapping[str, str]

    @classmethod
    def parse(cls, head: bytes) -> Request:
        """From the bytes up to the empty line. Path-style addressing; ValueError for what is no HTTP request."""
        line, *rest = head.decode("latin-1").split("\r\n")
        method, target, _version = line.split(" ", 2)
        headers = {}
        for header in filter(None, rest):
            name, _, value = header.partition(":")
            headers[name.strip().lower()] = value.strip()
        url = urlsplit(target if target.startswith("http") else "//host" + target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        bucket, _, key = url.path.removeprefix("/").partition("/")
        verb = _operation(method, bool(key), query, "x-amz-copy-source" in headers)
        return cls(method, target, headers, verb, unquote(bucket), unquote(key), query)

    @property
    def content_length(self) -> int:
        return int(self.headers.get("content-length") or 0)


@dataclass(slots=True)
class Event:
    """One request, recorded as it arrives and filled in as it goes on.

    `fault` is "" where none applied, `status` 0 where no answer was sent; bytes are those of the bodies.
    """

    request: Request
    at: float
    fault: str = ""
    status: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    etag: str = ""

    @property
    def verb(self) -> str:
        return self.request.verb

    @property
    def key(self) -> str:
        return self.request.key

    def line(self) -> str:
        """For a log: when it came and went, what it was, its conditions, how it ended."""
        headers = self.request.headers
        conditions = "".join(f" {name}={headers[name]}" for name in CONDITIONS if name in headers)
        what = f"{self.verb} {self.request.target}{conditions} {self.fault or '-'} {self.status}"
        return f"{self.at:.3f} {time.time():.3f} {what} up {self.bytes_up} down {self.bytes_down} {self.etag}\n"


def _operation(method: str, has_key: bool, query: Mapping[str, str], copies: bool) -> str:
    if method == "GET" and not has_key:
        return "ListMultipartUploads" if "uploads" in query else "ListObjectsV2" if query.get("list-type") else "GetBucket"
    if method == "GET":
        return "ListParts" if "uploadId" in query else "GetObject"
    if method == "HEAD":
        return "HeadObject" if has_key else "HeadBucket"
    if method == "PUT":
        if "partNumber" in query:
            return "UploadPartCopy" if copies else "UploadPart"
        return "CopyObject" if copies else "PutObject" if has_key else "CreateBucket"
    if method == "POST":
        if "delete" in query:
            return "DeleteObjects"
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject" if has_key else "DeleteBucket"
    return method


@dataclass(slots=True)
class ActiveRule:
    """A rule in use: how often it matched and hit. Its own generator, so one rule's draws never depend on another's."""

    rule: Rule
    draws: random.Random
    matched: int = 0
    hit: int = 0

    def applies(self, request: Request) -> bool:
        """Decide for one request, and count it."""
        rule = self.rule
        if not (fnmatchcase(request.verb, rule.verb) and fnmatchcase(request.key, rule.key)):
            return False
        self.matched += 1
        if self.matched <= rule.skip or (rule.times is not None and self.hit >= rule.times):
            return False
        if rule.probability < 1 and self.draws.random() >= rule.probability:
            return False
        self.hit += 1
        return True
