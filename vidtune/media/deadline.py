"""Time limits for decoding: reader processes that can be killed.

A decoder that hangs does so inside C code, where neither an exception nor a thread reaches it, and one that crashes
takes its process along; so media are read in a child. It is forked once and then reads one medium after another: a
fork for each would cost a fifth of the CPU time of a short clip (``benchmarks/README.md``). Frames come through memory
that both processes share, everything else through a pipe. Data workers are daemonic, so that ``multiprocessing``
refuses them children; a plain fork is allowed, and needs no second import of anything. The child touches nothing but
the decoder, its pipe and the shared memory.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from vidtune.contracts import UserError
from vidtune.media.errors import MediaError

SHARED_BYTES = 32 * 2**20
"""Room for frames; untouched pages cost nothing, and a frame that is larger goes through the pipe."""
BATCH = 32
"""Frames handed over at once: a message for each would cost a third of the time of decoding small ones."""
_LOOK_UP_S = 5.0
"""How often an idle child looks whether its parent still lives."""
_ARRAYS, _LARGE, _VALUE, _DONE, _FAILED, _NEXT = "arrays", "large", "value", "done", "failed", "next"


def read_with_deadline(function: Callable[..., Iterable[Any]], *args: Any, seconds: float, path: str) -> Iterator[Any]:
    """The items of ``function(*args)``, computed in a child process that is killed when it takes too long.

    Args:
        function: of a module; gives arrays or small values that can be pickled. Without ``os.fork`` (Windows) it runs
            here, and nothing limits its time.
        seconds: how long the caller waits for items in total; its own work between them does not count.
        path: for messages.

    Raises:
        MediaError: raised by ``function``, or the deadline has passed, or the child has died.
        UserError: raised by ``function``.
    """
    if not hasattr(os, "fork"):
        yield from function(*args)
        return
    reader = _take()
    try:
        yield from reader.items((function, args, seconds), seconds, path)
    finally:
        if reader.waits:
            _give_back(reader)
        else:  # it hangs, or the caller left early and what it is about to send would be in the way
            reader.kill()


def start_reader() -> None:
    """Have a reader process ready.

    A child keeps the memory that its parent had at the fork: forked early, that is little.
    """
    if hasattr(os, "fork"):
        _give_back(_take())


def idle_readers() -> list[_Reader]:
    """Reader processes that nobody uses at the moment."""
    return list(_idle)


class _Reader:
    """The parent's side of a child that reads media."""

    waits = True
    """Whether the child is ready for a request."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, SHARED_BYTES)
        self._pipe, theirs = Pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; see the module's docstring for why this one is safe.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            self._pipe.close()
            _serve(theirs, self._shared)
        theirs.close()
        with contextlib.suppress(EOFError, OSError):  # a child that is dead already shows at the first request
            self._pipe.recv()  # it has let go of what this process holds open

    def items(self, request: tuple[Any, ...], seconds: float, path: str) -> Iterator[Any]:
        left, self.waits = seconds, False
        self._send(request, path)
        while True:
            began = time.monotonic()
            kind, value = self._receive(left, f"was not decoded within {seconds:g} s and was given up", path)
            left -= time.monotonic() - began
            self.waits = kind in (_DONE, _FAILED)
            if kind == _DONE:
                return
            if kind == _FAILED:
                raise value
            if kind == _VALUE:
                yield value
                continue
            shared = kind == _ARRAYS
            frames = self._frames(value, self._shared if shared else self._bytes(path))
            if shared:
                self._send(_NEXT, path)  # the child decodes on while the caller works
            yield from frames

    def kill(self) -> None:
        self._pipe.close()
        os.kill(self.pid, signal.SIGKILL)
        for _ in range(100):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        # Even SIGKILL waits for a file system that does not answer; the run does not.

    @staticmethod
    def _frames(layout: Sequence[tuple[tuple[int, ...], str]], data: Any) -> list[np.ndarray]:
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout]
        block = np.frombuffer(data, np.uint8, sum(sizes)).copy()  # one for all: large blocks come in large pages
        frames, offset = [], 0
        for (shape, dtype), size in zip(layout, sizes):
            frames.append(block[offset : offset + size].view(dtype).reshape(shape))
            offset += size
        return frames

    def _bytes(self, path: str) -> bytes:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise MediaError(path, "crashed its decoder") from error

    def _send(self, message: Any, path: str) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise MediaError(path, "crashed its decoder") from error

    def _receive(self, seconds: float, too_late: str, path: str) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(max(seconds, 0)):
                raise MediaError(path, too_late)
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise MediaError(path, "crashed its decoder") from error


_idle: list[_Reader] = []
_owner = os.getpid()
_lock = threading.Lock()


def _take() -> _Reader:
    """A reader of this process that nobody uses; those of its parent are not its own."""
    global _owner
    with _lock:
        if _owner != os.getpid():
            _owner = os.getpid()
            _idle.clear()
        return _idle.pop() if _idle else _Reader()


def _give_back(reader: _Reader) -> None:
    with _lock:
        _idle.append(reader)


class _ParentGone(BaseException):
    """Ends the child; no ``Exception``, so that no decoder's error is taken for it."""


def _serve(pipe: Connection, shared: mmap.mmap) -> NoReturn:
    """The child: never returns to the code of its parent."""
    try:
        # Ctrl-C and a scheduler's signals reach the whole group; the parent decides what becomes of the run, and until
        # then a medium must not look broken.
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        parent = os.getppid()
        _close_all_but(pipe.fileno())
        pipe.send(_DONE)
        while True:
            function, args, seconds = _next_message(pipe, parent)
            try:
                out = _Outbox(pipe, shared, parent, seconds)
                for item in function(*args):
                    out.put(item)
                out.flush()
                end: tuple[str, Any] = (_DONE, None)
            except (UserError, MediaError) as error:
                end = (_FAILED, error)
            except Exception as error:
                end = (_FAILED, MediaError(str(args[0]) if args else "", str(error) or type(error).__name__))
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(end)
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    """Close what the parent had open: a lock on a file or a socket would outlive its owner here.

    Handlers that log into files go with them; what a reader has to say, it says by its errors.
    """
    logging.disable(logging.CRITICAL)
    for name in os.listdir("/dev/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # that of the listing itself is closed by now
                os.close(descriptor)


def _next_message(pipe: Connection, parent: int) -> Any:
    try:
        while not pipe.poll(_LOOK_UP_S):
            if os.getppid() != parent:
                raise _ParentGone
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise _ParentGone from error


class _Outbox:
    """Frames of a request on their way to the parent."""

    def __init__(self, pipe: Connection, shared: mmap.mmap, parent: int, seconds: float) -> None:
        self._pipe, self._shared, self._parent, self._seconds = pipe, shared, parent, seconds
        self._layout: list[tuple[tuple[int, ...], str]] = []
        self._used = 0
        self._set_alarm(True)

    def put(self, item: Any) -> None:
        if not isinstance(item, np.ndarray):
            self._send((_VALUE, item))
            return
        item = np.ascontiguousarray(item)
        if self._used + item.nbytes > SHARED_BYTES:
            self.flush()
        if item.nbytes > SHARED_BYTES:
            self._send((_LARGE, [(item.shape, item.dtype.str)]), item.reshape(-1).view(np.uint8).data)
            return
        np.frombuffer(self._shared, item.dtype, item.size, self._used)[:] = item.reshape(-1)
        self._layout.append((item.shape, item.dtype.str))
        self._used += item.nbytes
        if len(self._layout) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand over what is waiting, and wait until it is taken: the parent's time does not count."""
        if not self._layout:
            return
        self._send((_ARRAYS, self._layout))
        self._set_alarm(False)
        _next_message(self._pipe, self._parent)
        self._set_alarm(True)
        self._layout, self._used = [], 0

    def _send(self, message: tuple[str, Any], body: memoryview | None = None) -> None:
        self._set_alarm(False)
        try:
            self._pipe.send(message)
            if body is not None:
                self._pipe.send_bytes(body)
        except OSError as error:
            raise _ParentGone from error
        self._set_alarm(True)

    def _set_alarm(self, on: bool) -> None:
        """The kernel ends a child that hangs even if its parent is gone by then."""
        signal.setitimer(signal.ITIMER_REAL, self._seconds + _LOOK_UP_S if on else 0)
