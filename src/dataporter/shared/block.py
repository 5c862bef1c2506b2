"""A block of read-only memory that processes share, and the handle by which they find it.

On Linux the memory is a file without a name. A handle says in which processes it is open; another
process opens it through `/proc/PID/fd`, and knows by the block's first bytes, which are random,
that it is the right one: process and descriptor numbers are given out anew. multiprocessing's own
DupFd serves once, and needs either a process that is just being started or a thread that answers;
this serves any number of processes, whichever way and whenever they were started.

Elsewhere the memory is anonymous: forked processes share it, and a handle carries the bytes
themselves. So it is on macOS and Windows, where this has not been tried.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any, Protocol

from dataporter.errors import ConfigurationError
from dataporter.shared.memfile import create_memory

__all__ = ["TOKEN_SIZE", "Block", "Handle", "Writer", "create_block", "find_block"]

TOKEN_SIZE = 16

_HAS_DESCRIPTORS = os.path.isdir("/proc/self/fd")


class Writer(Protocol):
    """What a block's content is written to, from its beginning to its end."""

    def write(self, data: Any, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Handle:
    """The way to a block.

    Attributes:
        token: the block's first bytes, which no other block has.
        size: of the block, in bytes.
        holders: processes that had it open, and the descriptors they had it under.
        content: the block itself, where descriptors of other processes cannot be opened.
    """

    token: bytes
    size: int
    holders: tuple[tuple[int, int], ...] = ()
    content: bytes | None = None


class Block:
    """A block as this process has it mapped; unmapped when nothing made of ``memory`` is left."""

    def __init__(
        self,
        token: bytes,
        memory: memoryview,
        descriptor: int | None = None,
        made_at: tuple[int, int] | None = None,
    ) -> None:
        self.memory = memory
        self._token = token
        self._descriptor = descriptor
        self._made_at = made_at
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor).atexit = False
        _BLOCKS[token] = self

    def handle(self) -> Handle:
        """Where other processes find the block, as long as this one, or its maker, has it."""
        popen = get_spawning_popen()
        if popen is not None:
            # A process that is being started opens the block later than its starter may drop it.
            _STARTING.setdefault(popen, []).append(self)
        if self._descriptor is None:
            return Handle(self._token, len(self.memory), content=bytes(self.memory))
        here = (os.getpid(), self._descriptor)
        made_at = self._made_at or here
        holders = (here,) if here == made_at else (here, made_at)
        return Handle(self._token, len(self.memory), holders)


def create_block(size: int, write: Callable[[Writer], None]) -> Block:
    """A new block whose content ``write`` writes: ``size`` bytes behind those of the token."""
    token, size = secrets.token_bytes(TOKEN_SIZE), TOKEN_SIZE + size
    if not _HAS_DESCRIPTORS:
        memory = mmap.mmap(-1, size)
        memory.write(token)
        write(memory)
        return Block(token, memoryview(memory).toreadonly())
    descriptor = create_memory(size)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(token)
            write(file)
        mapped = _mapped(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return Block(token, mapped, descriptor, (os.getpid(), descriptor))


def find_block(handle: Handle) -> Block:
    """The block of a handle: this process's own, if it has it, or else one of another process's.

    Raises:
        ConfigurationError: no process that the handle knows has the block any more.
    """
    known = _BLOCKS.get(handle.token)
    if known is not None:
        return known
    if handle.content is not None:
        memory = mmap.mmap(-1, handle.size)
        memory.write(handle.content)
        return Block(handle.token, memoryview(memory).toreadonly())
    for holder in handle.holders:
        descriptor = _opened(holder, handle)
        if descriptor is None:
            continue
        try:
            mapped = _mapped(descriptor, handle.size)
        except BaseException:
            os.close(descriptor)
            raise
        return Block(handle.token, mapped, descriptor, handle.holders[-1])
    processes = " and ".join(str(pid) for pid, _ in handle.holders)
    raise ConfigurationError(
        f"the shared memory behind this pickle ({handle.size:,} bytes) is gone or out of reach: "
        f"a pickle of shared memory holds none of its content, only the way to it through a "
        f"process that has it (here {processes}), on the same machine, in the same container, as "
        "the same user. Keep the SharedSequence alive in that process until it is unpickled; to "
        "keep the objects in a file, pickle list(sequence) and build a SharedSequence of that"
    )


# What this process has mapped, by token, so that a block is mapped once however many pickles of it
# are loaded, and one that comes back from a worker that has ended is still found.
_BLOCKS: weakref.WeakValueDictionary[bytes, Block] = weakref.WeakValueDictionary()

# Blocks in the arguments of processes, by the object that multiprocessing keeps of each process.
_STARTING: weakref.WeakKeyDictionary[Any, list[Block]] = weakref.WeakKeyDictionary()


def _opened(holder: tuple[int, int], handle: Handle) -> int | None:
    path = "/proc/{}/fd/{}".format(*holder)
    try:
        status = os.stat(path)
        # Nothing else is opened: that alone may change, or wait for, a device or a pipe.
        if not stat.S_ISREG(status.st_mode) or status.st_size != handle.size:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.pread(descriptor, TOKEN_SIZE, 0) == handle.token:
        return descriptor
    os.close(descriptor)
    return None


def _mapped(descriptor: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
