"""DataPorter's errors, each also the built-in type that a caller would expect, and warnings."""

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
    "TooManyFailuresError",
    "TooManyOpenFilesError",
    "UnreadableCheckpointError",
    "UnsupportedDatasetError",
    "WorkerDiedError",
    "WorkerTimeoutError",
    "add_note",
    "warn",
]


class DataPorterError(Exception):
    """The base class of all errors that DataPorter itself raises."""


class ConfigurationError(DataPorterError, ValueError):
    """An argument is invalid or contradicts another one."""


class UnsupportedDatasetError(DataPorterError, TypeError):
    """The dataset lacks something that the call needs, such as a length or random access."""


class InvalidStateError(DataPorterError, ValueError):
    """The argument of ``load_state_dict`` is not a DataPorter state, is damaged, or is too new."""


class StateMismatchError(DataPorterError, ValueError):
    """The state is valid, but belongs to a different dataset or configuration."""


class RankMismatchError(DataPorterError, ValueError):
    """The loaders or states of a process group's ranks differ, or a rank failed.

    Raised on every rank except those that raise their own error.
    """


class SampleError(DataPorterError, RuntimeError):
    """A sample failed, and the dataset's exception cannot be raised here.

    Raised only if a worker raised it and this process lacks its class, if it is a ``StopIteration``
    (which would silently end the loop), if ``on_error="skip"`` left a batch empty, or if
    ``on_error="replace"`` found no sample that can be read.
    """


class TooManyFailuresError(DataPorterError, RuntimeError):
    """More samples failed than ``max_failures`` allows.

    The batch that failed last is not delivered. ``loader.state_dict()`` resumes with it.

    Attributes:
        failures: the :class:`~dataporter.Failure` records, with those of that batch.
        total: the number of all failures up to and with that batch.
    """

    def __init__(self, message: str, *, failures: tuple[Any, ...] = (), total: int = 0) -> None:
        super().__init__(message)
        self.failures = failures
        self.total = total

    def __reduce__(self) -> Any:
        again = partial(type(self), failures=self.failures, total=self.total)
        return again, self.args, self.__dict__


class LossyConversionError(DataPorterError, ValueError):
    """A conversion would change a value by more than the tolerance.

    Attributes:
        path: the key path of the leaf.
        value: the original value.
        sample: the sample's offset in the batch; None without a batch, or if it has no order.
        dtype: the name of the dtype or form that cannot hold the value.
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
    """A required library is not installed or too old; the message says what to install."""


class DatasetChangedError(DataPorterError, RuntimeError):
    """The dataset's length differs from when the loader was built."""


class TooManyOpenFilesError(DataPorterError, OSError):
    """A process has as many files open as its limit allows; the message says what to do.

    Attributes:
        errno: as the system reported it, mostly ``errno.EMFILE``.
    """


class WorkerDiedError(DataPorterError, RuntimeError):
    """Workers died more often than ``worker_restarts`` allows, or twice on the same batch."""


class WorkerTimeoutError(DataPorterError, RuntimeError):
    """A worker delivered no batch within ``timeout`` seconds."""


class CheckpointNotFoundError(DataPorterError, FileNotFoundError):
    """``load_latest`` found no checkpoint, or none that is complete."""


class UnreadableCheckpointError(DataPorterError, ValueError):
    """A file or folder is not a checkpoint, is damaged, or cannot be read without executing it."""


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception; Python 3.10 keeps the note without printing it."""
    # Not error.add_note(), which fails where a class forbids assignments, as a frozen dataclass.
    attributes = vars(error)
    attributes["__notes__"] = [*attributes.get("__notes__", ()), f"dataporter: {text}"]


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the caller's line outside DataPorter."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module == "dataporter" or module.startswith("dataporter.")
