"""The harness's side of `benchmarks.actor`: one process that forks a child for each run, none of which may take too long."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.processes import CommandError, last_words, module_command

_START = 60.0  # seconds for the actor to come up
_KILLED = 0.5  # seconds for a killed child to be gone; one that waits in the kernel for a mount ends only when that does


class Stage:
    """A context manager; the actor is started with the first run, and anew when it is stuck behind a child."""

    def __init__(self) -> None:
        self._actor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            assert actor.stdin is not None and actor.stdout is not None
            actor.kill()
            actor.wait()
            actor.stdin.close()
            actor.stdout.close()

    def run(self, given: dict[str, Any], timeout: float) -> dict[str, Any]:
        """What came of one run. Raises CommandError: it failed, or took over `timeout` seconds."""
        part = given["part"]
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            self._send({**given, "out": out.name, "err": err.name})
            child = self._line(_START)
            if child is None:
                self.stop()
                raise CommandError("the actor does not answer")
            try:
                status = self._line(timeout)
            except BaseException:
                self._end(child)
                raise
            if status is None:
                self._end(child)
                raise CommandError(f"{part}: no end after {timeout:.0f} s{last_words(err)}")
            if status:
                code = os.waitstatus_to_exitcode(status)
                why = f"signal {-code}" if code < 0 else f"status {code}"
                raise CommandError(f"{part}: {why}{last_words(err)}")
            answer: dict[str, Any] = json.loads(Path(out.name).read_text())
            return answer

    def _send(self, given: dict[str, Any]) -> None:
        if self._actor is None or self._actor.poll() is not None:
            self.stop()
            environment = dict(os.environ) | {
                "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
                "OPENBLAS_NUM_THREADS": "1",  # a process that forks should have no threads
            }
            pipe = subprocess.PIPE
            self._actor = subprocess.Popen(
                module_command("actor"), stdin=pipe, stdout=pipe, env=environment, bufsize=0, start_new_session=True
            )
        assert self._actor.stdin is not None
        self._actor.stdin.write(json.dumps(given).encode() + b"\n")

    def _line(self, timeout: float) -> int | None:
        """The next number from the actor; None: not within `timeout` seconds, or it has ended."""
        assert self._actor is not None and self._actor.stdout is not None
        if not select.select([self._actor.stdout], [], [], timeout)[0]:
            return None
        line = self._actor.stdout.readline()
        return int(line) if line else None

    def _end(self, child: int) -> None:
        """Kills a child and what it started; the actor too, when the child does not go."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if self._line(_KILLED) is None:
            self.stop()
