"""Stop signals as llfuse's loop meets them, in a process of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# A thread called as llfuse's are, that is in read(2) only after the first SIGUSR1 has come and gone.
LATE = """
import ctypes, errno, os, signal, threading
from sluicefs.fuse.stopping import StopSignals
stopped = threading.Event()
libc = ctypes.CDLL(None, use_errno=True)
reading, writing = os.pipe()
def work():
    print("ready", flush=True)
    stopped.wait()
    signal.sigtimedwait([], 0.3)
    assert libc.read(reading, ctypes.create_string_buffer(1), 1) == -1
    print(errno.errorcode[ctypes.get_errno()], flush=True)
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
with StopSignals():
    thread = threading.Thread(target=work, name="fuse-worker-1")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
print("over", flush=True)
signal.pause()
"""

# What is there before the loop: the usual answer to a signal, and a thread that the kernel could give it to.
BEFORE = """
import threading, time
from sluicefs.fuse.stopping import StopSignals
with StopSignals():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def start(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_thread_that_misses_the_first_wake_up_gets_another() -> None:
    with start(LATE) as process:
        try:
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            assert process.stdout.readline() == "EINTR\n"
            assert process.stdout.readline() == "over\n"
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_the_loop_a_stop_signal_ends_the_process(number: signal.Signals) -> None:
    with start(BEFORE) as process:
        process.send_signal(number)
        try:
            assert process.wait(20) == -number
        finally:
            process.kill()


def test_before_the_loop_ctrl_c_is_a_keyboard_interrupt() -> None:
    with start(BEFORE) as process:
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=20)[0] == "interrupted\n"
            assert process.returncode == 0
        finally:
            process.kill()
