"""Time limits for decoding: a clock that the reader looks at between packets, and a child that can be killed.

The clock costs nothing and is enough where decoding is slow. A decoder that hangs does so inside C code, where neither
an exception nor a thread reaches it; only the end of its process does. So what is not known to return is read in a
forked child. Data workers are daemonic, so that ``multiprocessing`` refuses them children; a plain fork is allowed,
costs milliseconds, and needs no second import of anything. The child touches nothing but the decoder and its pipe,
and leaves without running any exit handler of its parent.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from vidtune.contracts import UserError
from vidtune.media.errors import MediaError

HEADER = struct.Struct("<cQ")
FRAME, DONE, FAILED = b"f", b"d", b"e"
SHAPE = struct.Struct("<3Q")


class Clock:
    """Counts down while somebody works on ``path`` or waits for it.

    Args:
        seconds: allowance; None means no limit.
    """

    def __init__(self, seconds: float | None, path: str) -> None:
        self.seconds, self.path = seconds, path
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def check(self) -> None:
        """Raises:
        MediaError: the time is up.
        """
        if time.monotonic() > self._end:
            raise MediaError(self.path, f"was not decoded within {self.seconds:g} s and was given up")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - began


def read_with_deadline(read: Callable[[], Iterable[np.ndarray]], seconds: float, *, path: str) -> Iterator[np.ndarray]:
    """The frames of ``read()``, computed in a child process that is killed when it takes too long.

    Args:
        read: gives (H, W, 3) uint8 frames; runs in the child.
        seconds: how long the caller waits for frames in total; its own work between them does not count.
        path: for messages.

    Raises:
        MediaError: raised by ``read``, or the deadline has passed, or the child has died.
        UserError: raised by ``read``.
    """
    if not hasattr(os, "fork"):
        yield from read()
        return
    receive, send = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; see the module's docstring for why this one is safe.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(receive)
        _serve(read, send, seconds)
    os.close(send)
    try:
        yield from _receive(receive, seconds, path)
    finally:
        os.close(receive)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _serve(read: Callable[[], Iterable[np.ndarray]], send: int, seconds: float) -> NoReturn:
    """The child: never returns to the code of its parent."""
    status = 1
    try:
        # The kernel ends a child that hangs even if its parent is gone by then. While it waits for a slow reader the
        # clock stands still.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for frame in read():
            signal.setitimer(signal.ITIMER_REAL, 0)
            frame = np.ascontiguousarray(frame, dtype=np.uint8)
            _write(send, HEADER.pack(FRAME, SHAPE.size + frame.nbytes) + SHAPE.pack(*frame.shape))
            _write(send, frame.data.cast("B"))
            signal.setitimer(signal.ITIMER_REAL, seconds)
        _write(send, HEADER.pack(DONE, 0))
        status = 0
    except BaseException as error:
        kind = "user" if isinstance(error, UserError) else "media" if isinstance(error, MediaError) else "other"
        text = error.reason if isinstance(error, MediaError) else str(error) or type(error).__name__
        body = json.dumps({"kind": kind, "path": getattr(error, "path", ""), "text": text}).encode()
        _write(send, HEADER.pack(FAILED, len(body)) + body)
    finally:
        os._exit(status)


def _receive(receive: int, seconds: float, path: str) -> Iterator[np.ndarray]:
    clock = Clock(seconds, path)
    while True:
        kind, size = HEADER.unpack(_read(receive, HEADER.size, clock))
        if kind == DONE:
            return
        body = _read(receive, size, clock)
        if kind == FRAME:
            with clock.paused():
                yield np.frombuffer(body, dtype=np.uint8, offset=SHAPE.size).reshape(SHAPE.unpack_from(body))
            continue
        failure = json.loads(bytes(body))
        if failure["kind"] == "user":
            raise UserError(failure["text"])
        raise MediaError(failure["path"] or path, failure["text"])


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, size: int, clock: Clock) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        select.select([descriptor], [], [], max(clock.left, 0))
        clock.check()
        received = os.readv(descriptor, [view[done:]])
        if not received:
            raise MediaError(clock.path, "crashed its decoder")
        done += received
    return data
