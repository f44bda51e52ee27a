"""Keys that are allowed and that some program has got wrong."""

from __future__ import annotations

ODD_PUNCTUATION = "*'()!~$,;:@=[]{}|\\^`"

ODD_KEYS = [
    "a b",
    " lead and trail ",
    "a+b",
    "100%",
    "%41",
    "q?x=1&y=2#z",
    "é/ü/日本語/🎈",
    "<a>&\"b'",
    ODD_PUNCTUATION,
    "dir/",
    ".hidden",
    "trailing.",
    "a//b",
    "tab\there",
    "line\nfeed",
    "return\rhere",
    "control\x01\x1f\x7f",
    "k" * 1000,
]
