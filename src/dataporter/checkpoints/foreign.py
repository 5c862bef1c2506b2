"""Foreign: what a file is that `save_atomically` has not written, and what reads it.

Only a few bytes are read, and nothing is executed. A file that is known to be cut short is not
recognised.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

__all__ = ["foreign"]

_TORCHS = "torch.save wrote it, without a seal: torch.load(path) reads it"
_ZIP = b"PK\x03\x04"
# The magic number with which torch.save began before torch 1.6, as a pickle.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_END = b"."
_ZIP_END = b"PK\x05\x06"
_ZIP_END_LENGTH = 22  # B, without a comment, which torch does not write
_LARGEST_HEADER = 100 << 20  # B, as safetensors limits it
_LARGEST_JSON = 64 << 20  # B


def foreign(path: Path) -> str | None:
    """What a file is, and what reads it; None: nothing that is known, or cut short.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(_ZIP):
            return _archive(file)
        if head.startswith(_LEGACY):
            return _TORCHS
        if head.startswith(_PROTOCOLS) and _tail(file, 1) == _PICKLE_END:
            return "it is a pickle: pickle.load reads it"
        if _is_safetensors(file):
            return "it is a safetensors file: safetensors.torch.load_file(path) reads it"
        if head.lstrip()[:1] in (b"{", b"[") and _is_json(file):
            return "it is a JSON file: json.load reads it"
    return None


def _archive(file: BinaryIO) -> str | None:
    # Its table of contents comes last. What follows it is the rest of a seal, which is cut short.
    if not _tail(file, _ZIP_END_LENGTH).startswith(_ZIP_END):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            is_torchs = any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return None
    return _TORCHS if is_torchs else "it is a zip archive of another program: zipfile reads it"


def _tail(file: BinaryIO, length: int) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - length))
    return file.read()


def _is_safetensors(file: BinaryIO) -> bool:
    """Whether the length of a header, a JSON header and as many bytes as it names are there."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= _LARGEST_HEADER:
        return False
    header = _parsed(file.read(length))
    if not isinstance(header, dict):
        return False
    try:
        ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
        return os.fstat(file.fileno()).st_size == 8 + length + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        return False


def _is_json(file: BinaryIO) -> bool:
    if os.fstat(file.fileno()).st_size > _LARGEST_JSON:
        return False
    file.seek(0)
    return _parsed(file.read()) is not None


def _parsed(text: bytes) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found
