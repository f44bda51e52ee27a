"""Receives bytes of a plain socket straight into memory, without the GIL and with few system calls.

It must never interpret what it receives.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void*, size_t, int)
    int MSG_DONTWAIT


cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd*, unsigned long, int)
    const short POLLIN


def receive(int fd, object buffer, Py_ssize_t start, double seconds, Py_ssize_t step):
    """Fill `buffer` from `start` until `step` more bytes are in, it is full, or the peer ended; returns the new position.

    Waits at most `seconds` for a next byte, then raises TimeoutError (bytes received by then are returned first). OSError for
    what recv(2) says. The socket may be blocking or not.
    """
    cdef Py_buffer target
    cdef Py_ssize_t position = start, goal, got = 0
    cdef int state, failed = 0, milliseconds = <int> (seconds * 1000)
    cdef pollfd waiting
    PyObject_GetBuffer(buffer, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        goal = min(target.len, start + step)
        waiting.fd = fd
        waiting.events = POLLIN
        while position < goal:
            state = 1
            with nogil:
                while position < goal:
                    got = recv(fd, <char*> target.buf + position, goal - position, MSG_DONTWAIT)
                    if got > 0:
                        position += got
                        continue
                    if got == 0:
                        break
                    failed = errno
                    if failed != EAGAIN:
                        break
                    waiting.revents = 0
                    state = poll(&waiting, 1, milliseconds)
                    if state <= 0:
                        failed = errno
                        break
            if position >= goal or got == 0:
                break
            if state == 0:
                if position > start:
                    break
                raise TimeoutError(f"no byte within {seconds:g} s")
            if failed == EINTR:
                PyErr_CheckSignals()
                continue
            raise OSError(failed, os.strerror(failed))
        return position
    finally:
        PyBuffer_Release(&target)
