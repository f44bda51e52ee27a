"""A stop signal that ends llfuse's loop for sure.

llfuse 1.5 sets a flag in its handler of SIGTERM, SIGINT and SIGHUP and then sends SIGUSR1 once to each of its threads, to take
them out of read(2). A thread that has looked at the flag before and is not yet in read(2) misses it: the loop waits for that
thread, and the thread for a request (1 stop in 120 with three programs writing). Here a thread of our own takes the stop
signals and sends SIGUSR1 again until the loop has returned.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from types import TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WAKE = signal.SIGUSR1
WAKE_SECONDS = 0.05

_libc = ctypes.CDLL(None, use_errno=True)


class StopSignals:
    """To be entered in the main thread, before any other thread starts; `end` follows `llfuse.main`.

    Threads started inside never get a stop signal, nor do their child processes. A stop signal does inside what it does
    outside: before and after the loop what was set (by default the process ends), in it llfuse's handler runs.
    """

    def __init__(self) -> None:
        self._main = threading.get_native_id()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._taken = False
        self._thread = threading.Thread(target=self._work, name="stop-signals", daemon=True)

    def __enter__(self) -> StopSignals:
        self._handler = signal.signal(WAKE, lambda *_: None)  # llfuse's own is there only while its loop runs
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """The loop has ended: nothing is woken any more, and stop signals reach this thread again. May be called again."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            if self._thread.is_alive() and self._thread.ident is not None:
                signal.pthread_kill(self._thread.ident, WAKE)
        self._thread.join()
        signal.signal(WAKE, self._handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def stop(self) -> None:
        """What SIGTERM does while the loop runs; nothing after it, or after one."""
        with self._lock:
            if not self._taken and not self._over.is_set() and self._thread.ident is not None:
                self._taken = True
                signal.pthread_kill(self._thread.ident, signal.SIGTERM)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [WAKE])
        number = signal.sigwait([*STOP_SIGNALS, WAKE])
        if number == WAKE:
            return
        with self._lock:
            self._taken = True
        # The handler that is set now runs here: llfuse's sets its flag.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.pthread_kill(threading.get_ident(), number)
        while not self._over.is_set():
            for thread in threading.enumerate():
                if thread.native_id == self._main or thread.name.startswith("fuse-worker-"):
                    # Not pthread_kill(3): a thread that has ended is still in this list.
                    _libc.tgkill(os.getpid(), thread.native_id, WAKE)
            self._over.wait(WAKE_SECONDS)
