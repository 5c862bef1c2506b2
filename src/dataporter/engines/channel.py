"""A channel carries messages, and the memory that belongs to them, between two processes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

from dataporter.engines.spinning import AdaptiveSpin
from dataporter.errors import TooManyOpenFilesError
from dataporter.shared.memfile import explaining_limit

__all__ = ["CAN_SEND_MEMORY", "Channel", "channels"]

# Windows has no descriptors to send over a socket.
CAN_SEND_MEMORY = sys.platform != "win32"

# Length of a message, and how many descriptors accompany it.
_HEADER = struct.Struct("<QB")
_READ_SIZE = 1 << 16
_MOST_DESCRIPTORS = 8
# The system also limits how many descriptors a user has sent that nobody has received yet.
_WAITS_FOR_RECEIVERS = 60.0  # s
_LOOKS_AGAIN_AFTER = 1e-3  # s
# Windows has no such flag: there a worker receives messages only when it waits for one.
_DO_NOT_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)


def channels() -> tuple[Channel, Channel]:
    """The two ends: the training process's, which never waits, and the worker's, which does."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Channel(ours), Channel(theirs)


class Channel:
    """One end. The socket can be passed to another process only when that process starts."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unsent = bytearray()
        self._unread = bytearray()
        self._spin = AdaptiveSpin()
        self._descriptors: deque[int] = deque()
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def end(self) -> None:
        """Close the connection: the other end notices, even if a forked process has a copy."""
        with contextlib.suppress(OSError):  # the other end is already gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close this process's copy."""
        self._socket.close()
        while self._descriptors:
            _close(self._descriptors.popleft())

    # ---- the end that waits

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with the descriptors of memory for the other end to map.

        The caller closes its descriptors.

        Raises:
            OSError: the other end is gone.
            TooManyOpenFilesError: too many descriptors that this user has sent wait to be
                received. Nothing was sent.
        """
        header = _HEADER.pack(len(message), len(descriptors))
        if descriptors:
            self._send_descriptors(header, descriptors)
            self._socket.sendall(message)
        else:
            self._socket.sendall(header + message)

    def _send_descriptors(self, header: bytes, descriptors: Sequence[int]) -> None:
        until = time.monotonic() + _WAITS_FOR_RECEIVERS
        with explaining_limit("sending memory to the training process"):
            while True:
                try:
                    socket.send_fds(self._socket, [header], list(descriptors))
                    return
                except OSError as error:
                    # The training process receives what others have sent when it waits for a batch.
                    if error.errno != errno.ETOOMANYREFS or time.monotonic() > until:
                        raise
                time.sleep(_LOOKS_AGAIN_AFTER)

    def receive(self, *, wait: bool) -> list[bytes]:
        """The messages that have arrived; with ``wait``, at least one.

        Raises:
            EOFError: the other end is gone.
        """
        received: list[bytes] = []
        while True:
            data = self._look()
            if data is None:
                if received or not wait:
                    return received
                data = self._spin.wait(self._look, lambda: self._socket.recv(_READ_SIZE))
            if not data:
                raise EOFError
            self._unread += data
            received += [message for message, _ in self._complete()]
            if received and len(data) < _READ_SIZE:
                return received

    def expect(self) -> None:
        """Poll for a while at the next wait, since a message is about to come."""
        self._spin.expect()

    def _look(self) -> bytes | None:
        if _DO_NOT_WAIT is None:
            return None
        try:
            return self._socket.recv(_READ_SIZE, _DO_NOT_WAIT)
        except BlockingIOError:
            return None

    # ---- the end that never waits

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def post(self, message: bytes) -> None:
        """Send what fits now; :meth:`flush` sends the rest."""
        self._unsent += _HEADER.pack(len(message), 0)
        self._unsent += message
        self.flush()

    def post_at_once(self, message: bytes) -> bool:
        """Send a short message if it reaches the other end's socket now; returns whether it did."""
        if self._unsent or self.ended:
            return False
        try:
            # The system takes a message of less than a page whole, or not at all.
            self._socket.send(_HEADER.pack(len(message), 0) + message)
        except OSError:
            return False
        return True

    def flush(self) -> None:
        while self._unsent and not self.ended:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:  # the other end is gone, which reading reports as well
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def messages(self) -> Iterator[tuple[bytes, list[int]]]:
        """The messages that have arrived, with descriptors, which the caller closes.

        Each is received when it is asked for, so that few descriptors are open at a time. Sets
        ``ended`` once the other end is gone. A message that it did not finish is left out.

        Raises:
            TooManyOpenFilesError: this process has too many files open to receive a descriptor.
        """
        while True:
            try:
                data = self._read()
            except BlockingIOError:
                return
            except TooManyOpenFilesError:
                raise
            except OSError:
                data = b""
            if not data:
                self.ended = True
                return
            self._unread += data
            yield from self._complete()
            if len(data) < _READ_SIZE:
                return

    def _read(self) -> bytes:
        if not CAN_SEND_MEMORY:
            return self._socket.recv(_READ_SIZE)
        data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ_SIZE, _MOST_DESCRIPTORS)
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC:  # the system has dropped descriptors
            with explaining_limit("a worker's memory for its batches"):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return data

    def _complete(self) -> list[tuple[bytes, list[int]]]:
        complete, start = [], 0
        while len(self._unread) - start >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._unread, start)
            end = start + _HEADER.size + length
            if len(self._unread) < end:
                break
            message = bytes(memoryview(self._unread)[start + _HEADER.size : end])
            complete.append((message, [self._descriptors.popleft() for _ in range(count)]))
            start = end
        del self._unread[:start]
        return complete


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
