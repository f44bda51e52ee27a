"""A store that does not answer: every call ends with an errno, a killed reader at once, and the bound that is stated is one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.faults import blocking
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
ANSWERS = {"no answer": "ETIMEDOUT", "reset": "EIO"}


@pytest.mark.parametrize("fault", ANSWERS)
def test_every_call_ends_with_an_errno_that_says_why_and_the_mount_works_again(
    tmp_path: Path, ministack: DevServer, fault: str
) -> None:
    case = blocking.run(ministack, tmp_path / "home", 1.0, blocking.FAULTS[fault], [], "quick")
    assert {call: outcome for call, (_, outcome) in case.took.items()} == dict.fromkeys(case.took, ANSWERS[fault])
    assert case.works_again


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_signal_ends_a_reader_that_waits_at_once(user: User, proxy: FaultProxy, number: int) -> None:
    store = user.bucket.store()
    store.put("big", bytes(20 << 20))
    store.close()
    path = Path(user.mount("--timeout", "600"))
    proxy.add("no-answer:seconds=600,verb=GetObject")
    reader = subprocess.Popen(["cat", str(path / "big")], stdout=subprocess.DEVNULL)
    wait_until(lambda: proxy.faults["no-answer"])
    reader.send_signal(number)
    reader.wait(60)  # a tenth of what the read would wait
    assert reader.returncode == -number


def test_the_bound_is_stated() -> None:
    assert blocking.bound() > 0
