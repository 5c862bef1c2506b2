"""Reading: a checkpoint file as plain data. Nothing in it is executed, and no tensor is read."""

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

__all__ = ["CHECKED_UP_TO", "looks_like_checkpoint", "read"]

# Bytes of a sealed file whose SHA-256 is compared without check=True: it takes a few seconds.
CHECKED_UP_TO = 1 << 30
_LARGEST_JSON = 64 << 20  # B
# Files from before torch 1.6 cannot be mapped: their tensors are read into memory.
_LARGEST_LEGACY = 2 << 30  # B
_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".json"}
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_NAMES_SHOWN = 3


def looks_like_checkpoint(path: Path) -> bool:
    """Whether a file may be a checkpoint, by its name or its first bytes."""
    if path.suffix in _SUFFIXES:
        return True
    try:
        return _head(path)[:4] == _ZIP and _is_torch_archive(path)
    except OSError:
        return False


def read(path: Path, *, check: bool = False) -> Any:
    """The content of a file of ``torch.save`` or of JSON; tensors are mapped and not read.

    Args:
        check: compare the SHA-256 of a sealed file even if the file is large.

    Raises:
        UnreadableCheckpointError: the file is neither, is damaged, or holds pickled objects.
    """
    try:
        size, head = path.stat().st_size, _head(path)
        if size == 0:
            raise UnreadableCheckpointError(
                f"{path} is empty: it was not written completely; use another checkpoint"
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
        f"{path} is not a checkpoint: it begins with {head[:8]!r}; expected a file of torch.save "
        "or save_atomically, a JSON file, a folder of such files, or a folder of "
        "torch.distributed.checkpoint"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_seal(path: Path) -> None:
    fault = fault_of(path)
    if fault is not None:
        raise UnreadableCheckpointError(
            f"{path} is damaged: {fault}; load_latest skips it and loads the one before it"
        )


def _archive(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise UnreadableCheckpointError(
            f"{path} is damaged: it is truncated, so the table of contents at its end is missing; "
            "use another checkpoint"
        )
    if not _is_torch_archive(path):
        raise UnreadableCheckpointError(
            f"{path} is a zip archive without data.pkl: expected a file of torch.save"
        )
    with _explained(path):
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)


def _is_torch_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # a damaged one: reading it says so


def _legacy(path: Path, size: int) -> Any:
    if size > _LARGEST_LEGACY:
        raise UnreadableCheckpointError(
            f"{path} has the format from before torch 1.6, which must be read as a whole "
            f"({size / 2**30:.1f} GB): load it and save it again with torch.save"
        )
    with _explained(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def _json(path: Path, size: int) -> Any:
    if size > _LARGEST_JSON:
        raise UnreadableCheckpointError(
            f"{path} is a JSON file of {size / 2**20:.0f} MB, and a state has a few kilobytes: "
            "save the state in a file by itself"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        found = "it is not UTF-8 text"
    except (ValueError, RecursionError) as error:
        found = str(error)
    raise UnreadableCheckpointError(
        f"{path} is not JSON, or is truncated: {found}; use another checkpoint"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn torch's long errors into one line that says what to do."""
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
                f"{path} holds pickled objects ({', '.join(names[:_NAMES_SHOWN])}{more}), and "
                "reading them would execute code from the file: save loader.state_dict() in a file "
                "without them, with torch.save or json.dump"
            ) from error
        what = str(error).strip().partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError) or "magic number" in what:
            what = "torch.load(weights_only=True) refuses it as no complete file of torch.save"
        raise UnreadableCheckpointError(
            f"{path} is damaged: {what or type(error).__name__}; use another checkpoint"
        ) from error


def _pickled(path: Path, error: Exception) -> list[str]:
    """The names of the objects that torch refused to unpickle; empty after other errors."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not an archive, or a damaged one
        names = []
    return sorted(names) or re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))
