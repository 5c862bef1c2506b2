"""A block of read-only memory that processes share, and the handle by which they find it.

On Linux the memory is a file without a name. A handle names the processes that have it open, and
another process opens it through `/proc/PID/fd`. The block starts with a random token that confirms
its identity, since process and descriptor numbers are reused. The DupFd of multiprocessing serves
only once, and needs a process that is just starting or a thread that answers; a handle serves any
number of processes, however and whenever they start.

Elsewhere (on macOS and Windows, where this is untested) the memory is anonymous: forked processes
share it, and a handle carries the bytes.
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
    """Receives the content of a block, from beginning to end."""

    def write(self, data: Any, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Handle:
    """Where to find a block.

    Attributes:
        token: the block's first bytes, unique to it.
        size: of the block, in bytes.
        holders: (process, descriptor) pairs under which the block was open.
        content: the whole block, if descriptors of other processes cannot be opened.
    """

    token: bytes
    size: int
    holders: tuple[tuple[int, int], ...] = ()
    content: bytes | None = None


class Block:
    """A block mapped by this process, until nothing refers to its ``memory`` any more."""

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
        """A handle that is valid as long as this process, or the block's creator, has it open."""
        popen = get_spawning_popen()
        if popen is not None:
            # The parent may drop the block before the starting process has opened it.
            _STARTING.setdefault(popen, []).append(self)
        if self._descriptor is None:
            return Handle(self._token, len(self.memory), content=bytes(self.memory))
        here = (os.getpid(), self._descriptor)
        made_at = self._made_at or here
        holders = (here,) if here == made_at else (here, made_at)
        return Handle(self._token, len(self.memory), holders)


def create_block(size: int, write: Callable[[Writer], None]) -> Block:
    """A new block, for which ``write`` writes ``size`` bytes of content after the token."""
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
    """The block of a handle, already mapped by this process or opened through another.

    Raises:
        ConfigurationError: no process that the handle names has the block open any more.
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
        f"the shared memory of this pickle ({handle.size:,} bytes) is gone or out of reach: the "
        f"pickle holds none of its content, only where to find it in a process that has it (here "
        f"{processes}), on the same machine, in the same container, as the same user. Keep the "
        "SharedSequence alive in that process until it is unpickled; to keep the objects in a "
        "file, pickle list(sequence) and build a SharedSequence from that"
    )


# The blocks mapped by this process, by token. A block is mapped once, however many of its pickles
# are loaded, and is found even if its pickle comes from a worker that has ended.
_BLOCKS: weakref.WeakValueDictionary[bytes, Block] = weakref.WeakValueDictionary()

# Blocks in the arguments of processes, by the object that multiprocessing has for each process.
_STARTING: weakref.WeakKeyDictionary[Any, list[Block]] = weakref.WeakKeyDictionary()


def _opened(holder: tuple[int, int], handle: Handle) -> int | None:
    path = "/proc/{}/fd/{}".format(*holder)
    try:
        status = os.stat(path)
        # Open regular files only: opening a device or pipe may change it, or block.
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
