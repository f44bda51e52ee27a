"""Every example of SEMANTICS.md, run as it stands, on fresh mounts.

A fenced block ```console is a shell session: lines beginning with "$ " are commands, what follows is their output, with errors.
"…" stands for any text. Words after `console` are options of the mounts. /mnt/a and /mnt/b are two mounts of one bucket;
`bucket put|cat|ls|head|rm` is an S3 client.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket
from tests.mount.helpers import User, let_others_in

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "SEMANTICS.md"
BLOCK = re.compile(r"^```console *([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "--end-of-command--"
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the examples act as root")


@dataclass(frozen=True)
class Example:
    """One block. `steps`: (command, expected output) each."""

    name: str
    options: list[str]
    steps: list[tuple[str, str]]


def examples() -> Iterator[Example]:
    text = DOCUMENT.read_text()
    for found in BLOCK.finditer(text):
        heading = re.findall(r"^#+ (.*)$", text[: found.start()], re.MULTILINE)[-1]
        line = text[: found.start()].count("\n") + 1
        steps: list[tuple[str, str]] = []
        for row in found[2].splitlines():
            if row.startswith("$ "):
                steps.append((row[2:], ""))
            else:
                command, output = steps.pop()
                steps.append((command, output + row + "\n"))
        yield Example(f"{heading} (line {line})", found[1].split(), steps)


@pytest.fixture
def bucket(ministack: DevServer) -> Iterator[Bucket]:
    yield from new_bucket(ministack)


CLIENT = """#!{python}
import os, sys
sys.path.insert(0, {root!r})
from sluicefs.store.s3 import S3Store
store = S3Store({name!r}, endpoint={endpoint!r}, region={region!r}, credentials=({access!r}, {secret!r}))
verb, *words = sys.argv[1:]
if verb == "put":
    store.put(words[0], (" ".join(words[1:]) + "\\n").encode() if words[1:] else b"")
elif verb == "cat":
    sys.stdout.buffer.write(store.get(words[0])[1])
elif verb == "ls":
    for info in store.list(words[0] if words else "").objects:
        print(info.size, info.key)
elif verb == "head":
    info = store.head(words[0])
    print("Content-Type:", info.content_type)
    for key in sorted(info.metadata or {{}}):
        print(f"x-amz-meta-{{key}}: {{info.metadata[key]}}")
elif verb == "rm":
    store.delete(words[0])
store.close()
"""


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_example(example: Example, bucket: Bucket, tmp_path: Path) -> None:
    user = User(tmp_path, bucket)
    programs = tmp_path / "bin"
    programs.mkdir()
    server = bucket.server
    client = programs / "bucket"
    client.write_text(
        CLIENT.format(
            python=sys.executable,
            root=str(ROOT / "src"),
            name=bucket.name,
            endpoint=server.endpoint,
            region=server.region,
            access=server.access_key,
            secret=server.secret_key,
        )
    )
    client.chmod(0o755)
    (programs / "sluicefs").write_text(f'#!/bin/sh\nexec {sys.executable} -m sluicefs "$@"\n')
    (programs / "sluicefs").chmod(0o755)
    let_others_in(tmp_path)
    text = " ".join(command for command, _ in example.steps)
    try:
        mounts = {f"/mnt/{name}": user.mount(*example.options, name=name) for name in "ab" if f"/mnt/{name}" in text}
        script = "umask 022\n"
        for command, _ in example.steps:
            script += f"{command}\necho {END}\n"
        for path, real in mounts.items():
            script = script.replace(path, real)
        done = subprocess.run(
            ["bash"],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**user.environment, "PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
            cwd=tmp_path,
            timeout=60,
        )
    finally:
        user.clean_up()
    outputs = done.stdout.replace("‘", "'").replace("’", "'")
    for path, real in mounts.items():
        outputs = outputs.replace(real, path)
    outputs = re.sub(r"^bash: line \d+: ", "bash: ", outputs, flags=re.MULTILINE)
    found = outputs.split(END + "\n")
    for (command, expected), output in zip(example.steps, found, strict=False):
        pattern = re.escape(expected).replace("…", ".*")
        assert re.fullmatch(pattern, output), f"$ {command}\n{output}--- expected:\n{expected}"
    assert len(found) == len(example.steps) + 1, outputs


def test_every_promise_has_an_example() -> None:
    """Each section of the first part ends in at least one."""
    text = DOCUMENT.read_text().partition("## What is not there")[0]
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) >= 12
    for section in sections:
        assert "```console" in section, section.partition("\n")[0]
