"""The errors DataPorter raises: one family, each also the built-in type that people would catch."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any

__all__ = [
    "CheckpointNotFoundError",
    "ConfigurationError",
    "DataPorterError",
    "DatasetChangedError",
    "InvalidStateError",
    "LossyConversionError",
    "MissingLibraryError",
    "RankMismatchError",
    "SampleError",
    "StateMismatchError",
    "UnreadableCheckpointError",
    "UnsupportedDatasetError",
    "WorkerDiedError",
    "WorkerTimeoutError",
    "add_note",
    "warn",
]


class DataPorterError(Exception):
    """Everything DataPorter raises of its own accord is one of these."""


class ConfigurationError(DataPorterError, ValueError):
    """An argument is wrong by itself or contradicts another one."""


class UnsupportedDatasetError(DataPorterError, TypeError):
    """The dataset does not offer what the call needs (a length, random access)."""


class InvalidStateError(DataPorterError, ValueError):
    """What was given to ``load_state_dict`` is no state of this library, damaged, or too new."""


class StateMismatchError(DataPorterError, ValueError):
    """The state is sound, but belongs to another dataset or configuration than this loader's."""


class RankMismatchError(DataPorterError, ValueError):
    """The ranks of a process group hold loaders or states that differ, or one of them failed.

    Raised on every rank, except on those that have an error of their own to raise.
    """


class SampleError(DataPorterError, RuntimeError):
    """A sample failed and its own exception cannot be raised here.

    Raised instead of the dataset's exception only when that one cannot cross a process boundary,
    when it is a ``StopIteration`` (which would silently end the loop), or when ``on_error="skip"``
    left nothing of a batch.
    """


class LossyConversionError(DataPorterError, ValueError):
    """A conversion would change a value by more than it may.

    Attributes:
        path: of the leaf.
        value: as it was.
        sample: its place in the batch; None where there is no batch, or no order in it.
        dtype: the name of the dtype or form that does not hold the value.
        fits: the name of the smallest dtype that holds all values of the leaf, if there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str,
        value: Any,
        sample: int | None,
        dtype: str,
        fits: str | None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.value = value
        self.sample = sample
        self.dtype = dtype
        self.fits = fits

    def __reduce__(self) -> Any:
        details = {name: vars(self)[name] for name in ("path", "value", "sample", "dtype", "fits")}
        return partial(type(self), **details), self.args, self.__dict__


class MissingLibraryError(DataPorterError, ImportError):
    """A library that is needed is not installed, or too old; the message says what to install."""


class DatasetChangedError(DataPorterError, RuntimeError):
    """The dataset has another length than when the loader was built."""


class WorkerDiedError(DataPorterError, RuntimeError):
    """Workers died more often than ``worker_restarts`` allows, or of the same batch twice."""


class WorkerTimeoutError(DataPorterError, RuntimeError):
    """A worker gave no batch within ``timeout`` seconds."""


class CheckpointNotFoundError(DataPorterError, FileNotFoundError):
    """There is no checkpoint where ``load_latest`` looked for one, or none that is whole."""


class UnreadableCheckpointError(DataPorterError, ValueError):
    """A file or folder is no checkpoint, is damaged, or cannot be read without executing it."""


def add_note(error: Exception, text: str) -> None:
    """Add to an exception's traceback; Python 3.10 keeps the note without printing it."""
    if hasattr(error, "add_note"):
        error.add_note(f"dataporter: {text}")
    else:
        error.__notes__ = [*getattr(error, "__notes__", ()), f"dataporter: {text}"]  # type: ignore[attr-defined]  # PEP 678


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the line outside of DataPorter that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module == "dataporter" or module.startswith("dataporter.")
