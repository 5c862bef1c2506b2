"""Epochs of custom samplers: what the user sets on a sampler, and what the loader sets on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["SamplerEpochs"]

_NAMES = ("_epoch", "current_epoch", "_current_epoch")


class _SetEpoch:
    """A sampler's ``set_epoch``, which counts its calls: the same epoch may be set once more.

    Args:
        sampler: in whose attributes it stands before the method of its class.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.calls = 0
        self.last: int | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = type(self._sampler).set_epoch(self._sampler, *arguments, **named)
        epoch = arguments[0] if arguments else next(iter(named.values()), None)
        if isinstance(epoch, int):
            self.calls, self.last = self.calls + 1, int(epoch)
        return result


class SamplerEpochs:
    """The epochs of a sampler and of the samplers in it, watched for what the user sets.

    A sampler's epoch is the user's, as with torch's loader. The loader sets it where a state is
    loaded, and where the user asks the loader for an epoch.

    Args:
        parts: the sampler and those in it. Empty for a loader without a custom sampler.

    Attributes:
        driven: whether anybody has ever set an epoch.
        asked: the epoch that the loader was asked for since the last pass began.
        begun_with: the epochs in the last pass that began.
    """

    def __init__(self, parts: Sequence[Any] = ()) -> None:
        self._parts = parts
        self._names = [_name_of(part) for part in parts]
        self._calls = [_watched(part) for part in parts]
        self._known: list[tuple[int, int | None]] = []
        self._at_construction = next(
            (epoch for epoch in self.values() if epoch is not None and epoch > 0), None
        )
        self.driven = self._at_construction is not None
        self.asked: int | None = None
        self.begun_with: tuple[int | None, ...] = self.values()
        self.overlook()

    def set_at_construction(self) -> int | None:
        """The epoch that was set on the sampler before the loader received it."""
        return self._at_construction

    def values(self) -> tuple[int | None, ...]:
        """The epoch of each part; None where it has none, or has not been given one."""
        return tuple(epoch for _, epoch in self._present())

    def requested(self) -> int | None:
        """The epoch that the user has set on the sampler since the last look at it."""
        pending = self.pending()
        self.overlook()
        self.driven |= pending is not None
        return pending

    def pending(self) -> int | None:
        """As :meth:`requested`, and it will be found again."""
        written = [
            epoch
            for (calls, epoch), (calls_known, known) in zip(self._present(), self._known)
            if epoch is not None and (calls != calls_known or epoch != known)
        ]
        return next((epoch for epoch in written if epoch >= 0), None)

    def overlook(self) -> None:
        """Ignore what was set on the sampler so far."""
        self._known = self._present()

    def set(self, epoch: int) -> None:
        """Set an epoch on all parts, as the user would."""
        if not self._parts:
            return
        self.driven = True
        self.write([epoch] * len(self._parts))
        self.asked = epoch

    def write(self, epochs: Sequence[int | None]) -> None:
        """Set these epochs on the parts, where they are not set already."""
        for i, epoch in enumerate(epochs[: len(self._parts)]):
            present, part = self.values()[i], self._parts[i]
            if epoch is None or present == epoch:
                continue
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
            elif present is not None and self._names[i] in getattr(part, "__dict__", {}):
                part.__dict__[self._names[i]] = epoch
        self.overlook()

    def saved(self) -> tuple[list[tuple[int, int | None]], list[int], bool]:
        """What :meth:`restore` takes."""
        calls_since = [
            calls - calls_known
            for (calls, _), (calls_known, _) in zip(self._present(), self._known)
        ]
        return self._present(), calls_since, self.driven

    def restore(self, saved: tuple[list[tuple[int, int | None]], list[int], bool]) -> None:
        """Set the epochs back after a walk aside, as the user had left them."""
        present, calls_since, driven = saved
        self.write([epoch for _, epoch in present])
        self._known = [
            (calls - since, None if since else epoch)
            for (calls, epoch), since in zip(self._present(), calls_since)
        ]
        self.driven = driven

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Undo what a block has set, if it raises."""
        saved = self.saved()
        try:
            yield
        except BaseException:
            self.restore(saved)
            raise

    def _present(self) -> list[tuple[int, int | None]]:
        """How often the epoch of each part was set, and what it is."""
        found = []
        for part, name, calls in zip(self._parts, self._names, self._calls):
            epoch = None if name is None else getattr(part, name, None)
            if not isinstance(epoch, int) or isinstance(epoch, bool):
                epoch = None if calls is None else calls.last
            found.append(
                (0 if calls is None else calls.calls, None if epoch is None else int(epoch))
            )
        return found


def _name_of(part: Any) -> str | None:
    if isinstance(getattr(part, "epoch", ""), int | None):
        return "epoch"
    attributes = getattr(part, "__dict__", {})
    return next((name for name in _NAMES if isinstance(attributes.get(name), int)), None)


def _watched(part: Any) -> _SetEpoch | None:
    attributes = getattr(part, "__dict__", None)
    if not isinstance(attributes, dict) or not callable(getattr(type(part), "set_epoch", None)):
        return None
    present = attributes.setdefault("set_epoch", _SetEpoch(part))
    return present if isinstance(present, _SetEpoch) else None
