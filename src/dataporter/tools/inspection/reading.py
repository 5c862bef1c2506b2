"""Reading: a file of a checkpoint as plain data; nothing in it is executed, no tensor is read."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dataporter.checkpoints.atomic import fault_of, is_sealed
from dataporter.errors import UnreadableCheckpointError

__all__ = ["CHECKED_UP_TO", "looks_like_one", "read"]

# Bytes of a sealed file up to which its SHA-256 is compared without being asked to: a few seconds.
CHECKED_UP_TO = 1 << 30
_LARGEST_JSON = 64 << 20  # B
# Files of before torch 1.6 cannot be mapped, so that their tensors come into memory.
_LARGEST_LEGACY = 2 << 30  # B
_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".json"}
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_NAMES_SHOWN = 3


def looks_like_one(path: Path) -> bool:
    """Whether a file of a folder may be a checkpoint, by its name or its first bytes."""
    if path.suffix in _SUFFIXES:
        return True
    try:
        return _head(path)[:4] == _ZIP and _is_of_torch(path)
    except OSError:
        return False


def read(path: Path, *, check: bool = False) -> Any:
    """What a file of ``torch.save`` or of JSON holds. Tensors are mapped, and never looked at.

    Args:
        check: compare the SHA-256 of a sealed file also where it is large.

    Raises:
        UnreadableCheckpointError: it is neither, is damaged, or holds what has to be executed.
    """
    try:
        size, head = path.stat().st_size, _head(path)
        if size == 0:
            raise UnreadableCheckpointError(
                f"{path} is empty: it was not written to its end; take another checkpoint"
            )
        if head.startswith(_ZIP):
            if is_sealed(path) and (check or size <= CHECKED_UP_TO):
                _check_seal(path)
            return _archive(path)
        if head.startswith(_PICKLE):
            return _legacy(path, size)
        if head.lstrip()[:1] in (b"{", b"[") or path.suffix == ".json":
            return _json(path, size)
    except OSError as error:
        raise UnreadableCheckpointError(f"{path} cannot be read: {error.strerror}") from error
    raise UnreadableCheckpointError(
        f"{path} is no checkpoint: it begins with {head[:8]!r}; expected a file of torch.save or "
        "save_atomically, a file of JSON, or a folder of them or of torch.distributed.checkpoint"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_seal(path: Path) -> None:
    fault = fault_of(path)
    if fault is not None:
        raise UnreadableCheckpointError(
            f"{path} is damaged: {fault}; load_latest passes it over, and takes the one before"
        )


def _archive(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise UnreadableCheckpointError(
            f"{path} is damaged: it was cut short, so that its table of contents, which stands at "
            "the end, is missing; take another checkpoint"
        )
    if not _is_of_torch(path):
        raise UnreadableCheckpointError(
            f"{path} is a zip archive, and not one of torch.save: it has no data.pkl"
        )
    with _explained(path):
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)


def _is_of_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # and a damaged one


def _legacy(path: Path, size: int) -> Any:
    if size > _LARGEST_LEGACY:
        raise UnreadableCheckpointError(
            f"{path} is in the format of before torch 1.6, which has to be read as a whole "
            f"({size / 2**30:.1f} GB): load it and save it again with torch.save"
        )
    with _explained(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def _json(path: Path, size: int) -> Any:
    if size > _LARGEST_JSON:
        raise UnreadableCheckpointError(
            f"{path} is a text of {size / 2**20:.0f} MB, and a state has a few kilobytes: save the "
            "state by itself"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        found = "it is no text in UTF-8"
    except (ValueError, RecursionError) as error:
        found = str(error)
    raise UnreadableCheckpointError(f"{path} is no JSON, or was cut short: {found}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """torch's errors, which are long, as one line that says what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        names = _pickled(path, error)
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            raise UnreadableCheckpointError(
                f"{path} holds pickled objects ({', '.join(names[:_NAMES_SHOWN])}{more}), and to "
                "read them is to execute what the file says, which is not done here: save "
                "loader.state_dict() in a file without them, by torch.save or json.dump"
            ) from error
        what = str(error).strip().partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError) or "magic number" in what:
            what = "it is no whole file of torch.save; torch.load(weights_only=True) refuses it"
        raise UnreadableCheckpointError(
            f"{path} is damaged: {what or type(error).__name__}; take another checkpoint"
        ) from error


def _pickled(path: Path, error: Exception) -> list[str]:
    """The names of what would have to be executed, if that is what torch refused."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not an archive, or one that is damaged as well
        names = []
    return sorted(names) or re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))
