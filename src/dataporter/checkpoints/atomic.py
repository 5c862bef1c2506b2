"""Checkpoints that a kill cannot damage: written to a new file, sealed, and renamed when complete.

`path` is always the newest checkpoint. Older ones are in the same folder, as
`NAME.previous-NUMBER.SUFFIX`; the higher the number, the newer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dataporter.checkpoints.foreign import foreign
from dataporter.errors import CheckpointNotFoundError, ConfigurationError, warn

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

__all__ = ["fault_of", "is_sealed", "load_latest", "previous_of", "save_atomically"]

# Follows the zip archive that torch.save writes. Readers of zip archives search for the directory
# from the end of the file, so torch.load and zipfile ignore it.
_SEAL = b"\ndataporter checkpoint, sha256 %s\n"
_SEAL_LENGTH = len(_SEAL % (b"0" * 64))
_UNFINISHED = ".unfinished"
_READ_AT_ONCE = 1 << 20  # B
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def save_atomically(obj: Any, path: str | os.PathLike[str], keep: int = 3) -> Path:
    """``torch.save``, such that a kill or a power cut at any moment leaves a complete checkpoint.

    Writes the object to a new file in the same folder, seals it with a SHA-256, forces it to disk,
    and replaces ``path`` with it in one step. The previous checkpoint is kept under a number:
    ``checkpoint.pt`` becomes ``checkpoint.previous-000001.pt``. Plain ``torch.load`` reads the
    files; :func:`load_latest` also checks the seal.

    Only one process should write to a path; in distributed training, rank 0. Concurrent writers do
    not damage each other's files: every file is complete, and the last one written is the newest.
    A later save removes the unfinished file of a killed process.

    Args:
        obj: any object that ``torch.save`` accepts.
        path: the file of the newest checkpoint, in an existing folder.
        keep: how many checkpoints to keep, including the new one. More than one requires a file
            system with hard links.

    Returns:
        ``path``.

    Raises:
        ConfigurationError: (a ``ValueError``) ``path`` is a folder, or ``keep`` is less than 1.
        OSError: the disk is full, or the folder is missing or cannot be written to. Like any other
            exception, such as one from pickling, it leaves the existing checkpoints unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in range(5):
        ...         _ = save_atomically({"step": step}, f"{folder}/checkpoint.pt")
        ...     print(sorted(os.listdir(folder)))
        ...     load_latest(f"{folder}/checkpoint.pt")
        ['checkpoint.previous-000003.pt', 'checkpoint.previous-000004.pt', 'checkpoint.pt']
        {'step': 4}
    """
    path = _file(path)
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ConfigurationError(f"keep={keep!r}: expected a whole number of 1 or more")
    _remove_abandoned(path)
    with _unfinished(path) as file:
        _write_sealed(obj, file)
        if os.name == "nt":
            file.close()  # an open file cannot be moved there
        if keep > 1:
            _set_aside(path)
        os.replace(file.name, path)
    _sync_folder(path.parent)
    previous = previous_of(path)
    for _, older in previous[: max(0, len(previous) - (keep - 1))]:
        with suppress(FileNotFoundError):
            os.unlink(older)
    return path


def load_latest(
    path: str | os.PathLike[str], *, weights_only: bool = True, **torch_load_arguments: Any
) -> Any:
    """Load the newest complete checkpoint that :func:`save_atomically` has written to ``path``.

    A file is complete if every byte of it is as it was written. A truncated or changed file is
    skipped with a ``RuntimeWarning``, and the previous one is loaded. An error from ``torch.load``
    itself is raised, because an older checkpoint would cause it as well.

    Args:
        path: the path that was passed to :func:`save_atomically`.
        weights_only, torch_load_arguments: passed to ``torch.load``.

    Raises:
        CheckpointNotFoundError: (a ``FileNotFoundError``) there is no checkpoint, or none is
            complete.
        ConfigurationError: (a ``ValueError``) ``path`` is a folder.
    """
    path = _file(path)
    candidates = [path, *(older for _, older in reversed(previous_of(path)))]
    damaged: list[str] = []
    for candidate in candidates:
        if not os.path.lexists(candidate):
            continue
        fault = fault_of(candidate)
        if fault is None:
            for skipped in damaged:
                warn(
                    f"skipped the checkpoint {skipped}; loaded {candidate.name} instead",
                    RuntimeWarning,
                )
            return torch.load(candidate, weights_only=weights_only, **torch_load_arguments)
        damaged.append(f"{candidate.name}, because {fault}")
    folder = path.parent.absolute()
    if not damaged:
        raise CheckpointNotFoundError(
            f"there is no checkpoint {path.name} in {folder}: train from the start, or pass the "
            "path that was passed to save_atomically"
        )
    others = [kind for one in candidates if (kind := _written_otherwise(one)) is not None]
    raise CheckpointNotFoundError(
        f"load_latest found no checkpoint of save_atomically under {path.name} in {folder}:"
        + "".join(f"\n  - {one}" for one in damaged)
        + (
            "\nLoad a file that was written otherwise as it was written, and save the next one "
            "with save_atomically"
            if len(others) == len(damaged)
            else "\nRestore one from a backup, or move these files away to train from the start"
        )
    )


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if (path / ".metadata").is_file():
        raise ConfigurationError(
            f"path={str(path)!r} is a checkpoint of torch.distributed.checkpoint: load it with "
            "torch.distributed.checkpoint.load(state, checkpoint_id=path)"
        )
    if path.is_dir() or not path.name:
        raise ConfigurationError(
            f"path={str(path)!r} is a folder: name a file in it, such as "
            f"{str(path / 'checkpoint.pt')!r}"
        )
    return path


# ---- the series


def previous_of(path: Path) -> list[tuple[int, Path]]:
    """The checkpoints before the newest and their numbers, oldest first."""
    named = re.compile(
        rf"{re.escape(path.stem)}\.previous-(\d{{6,}}){re.escape(path.suffix)}", re.ASCII
    )
    found = []
    with suppress(FileNotFoundError), os.scandir(path.parent) as entries:
        found = [
            (int(match[1]), path.with_name(entry.name))
            for entry in entries
            if (match := named.fullmatch(entry.name))
        ]
    return sorted(found)


def _set_aside(path: Path) -> None:
    """Give the newest checkpoint a second name, which remains when ``path`` is replaced."""
    previous = previous_of(path)
    number, newest = previous[-1] if previous else (0, None)
    if newest is not None and _are_one_file(path, newest):
        return  # an earlier save was killed after this step
    while True:
        number += 1
        older = path.with_name(f"{path.stem}.previous-{number:06}{path.suffix}")
        try:
            os.link(path, older)
        except FileExistsError:
            continue  # another process writes here too
        except FileNotFoundError:
            return  # this is the first checkpoint
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise OSError(
                error.errno,
                "older checkpoints are kept as hard links, which this file system does not "
                "support: use keep=1, or a folder on a different file system",
                str(path),
            ) from error
        return


def _are_one_file(one: Path, other: Path) -> bool:
    with suppress(FileNotFoundError):
        return one.samefile(other)
    return False


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, which Windows cannot do."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- one file


class _Hashing:
    """The file that ``torch.save`` writes to, with a hash of everything written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def _write_sealed(obj: Any, file: BinaryIO) -> None:
    hashing = _Hashing(file)
    try:
        torch.save(obj, hashing)  # type: ignore[arg-type]  # needs only these two methods
    except Exception:
        # torch reports a full disk as a RuntimeError about a position in its archive.
        if hashing.failure is not None:
            raise hashing.failure from None
        raise
    file.write(_SEAL % hashing.sha256.hexdigest().encode())
    file.flush()
    os.fsync(file.fileno())


def is_sealed(path: Path) -> bool:
    """Whether a file ends like those of :func:`save_atomically`; its contents are not checked."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _SEAL_LENGTH))
        return file.read().startswith(_SEAL.partition(b"%")[0])


def fault_of(path: Path) -> str | None:
    """Why a file is not a complete checkpoint; None if it is one."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _SEAL_LENGTH
            while left > 0 and (data := file.read(min(left, _READ_AT_ONCE))):
                sha256.update(data)
                left -= len(data)
            seal = file.read()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if seal == _SEAL % sha256.hexdigest().encode():
        return None
    if len(seal) == _SEAL_LENGTH and seal.startswith(_SEAL.partition(b"%")[0]):
        return "its bytes differ from those that were saved"
    return _written_otherwise(path) or "it is truncated, or was not written by save_atomically"


def _written_otherwise(path: Path) -> str | None:
    """What a file is that another function wrote whole; None if no such thing is known."""
    with suppress(OSError):
        return foreign(path)
    return None


# ---- unfinished files


@contextmanager
def _unfinished(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, removed unless the block renames it."""
    file = _created(path)
    try:
        with file:
            yield file
    except BaseException:
        with suppress(OSError):
            os.unlink(file.name)
        raise


def _created(path: Path) -> BinaryIO:
    """A new file, locked while its writer lives, so that no other writer removes it."""
    while True:
        name = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        file = name.open("xb")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()  # another writer saw it before it was locked, and is removing it
            continue
        except OSError:
            return file  # the file system has no locks, so abandoned files stay
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _remove_abandoned(path: Path) -> None:
    """Remove the files of killed writers, but not those that a living one is writing."""
    unfinished = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(_UNFINISHED)}")
    with suppress(FileNotFoundError), os.scandir(path.parent) as entries:
        for entry in entries:
            if unfinished.fullmatch(entry.name):
                with suppress(OSError), open(entry.path, "ab") as file:
                    if fcntl is not None:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(entry.path)
                if fcntl is None:
                    with suppress(OSError):
                        os.unlink(entry.path)
