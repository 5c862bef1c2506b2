"""The remainder of an epoch over a dataset that has changed since, each sample once (C6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, Subset

from dataporter.datasets.beginning import beginning_of
from dataporter.datasets.fingerprint import fingerprint_of, is_digest
from dataporter.datasets.mixture import Mixture
from dataporter.datasets.rows import length_of, rows_of
from dataporter.errors import (
    ConfigurationError,
    StateMismatchError,
    UnsupportedDatasetError,
    warn,
)
from dataporter.orders import Order
from dataporter.orders.by_name import order_of_state, sampler_named
from dataporter.schedule.planned import PlannedSchedule
from dataporter.state.resume import OnMismatch, contradiction, on_mismatch_checked
from dataporter.state.schema import Identity, State, parse

__all__ = ["remainder"]


def remainder(
    dataset: Any,
    state: Mapping[str, Any],
    *,
    order: Order | None = None,
    on_mismatch: OnMismatch = "error",
) -> Subset[Any]:
    """The rest of an epoch over the dataset as it is now, after it grew or shrank in mid-epoch.

    It has each sample once that was not delivered in the epoch of the state, in the order in which
    it would have come, and after them those that are new. Samples that are no longer in the dataset
    are left out. A loader over it finishes the epoch, and resumes by its own states; the next epoch
    is one over the whole dataset.

    Growing means that samples were added at the end, and shrinking that the last ones were removed,
    so that the others keep their indices. Where the content of a dataset that grew is known (see
    the loader's ``fingerprint``), it is compared; otherwise a warning says that it was not.

    Args:
        dataset: map-style, as a loader takes it.
        state: of a loader over the dataset as it was, with any strategy, batch size and world.
        order: the loader's, if it is a custom one.
        on_mismatch: ``"error"``, or ``"warn"`` and go by the indices alone, if the samples have
            changed.

    Returns:
        A ``torch.utils.data.Subset`` of the dataset.

    Raises:
        InvalidStateError: (a ``ValueError``) not a state of a map-style dataset, or damaged.
        StateMismatchError: (a ``ValueError``) the samples that both datasets have differ.
        ConfigurationError: (a ``ValueError``) the order of the state is unknown.
        UnsupportedDatasetError: (a ``TypeError``) the dataset is a stream, or has no length.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> samples = list(range(6))
        >>> loader = ResumableDataLoader(samples, batch_size=2, shuffle=True, seed=7)
        >>> next(iter(loader)).tolist()
        [1, 0]
        >>> samples += [6, 7]
        >>> list(remainder(samples, loader.state_dict()))
        [5, 3, 2, 4, 6, 7]
    """
    on_mismatch_checked("on_mismatch", on_mismatch)
    if isinstance(dataset, IterableDataset):
        raise UnsupportedDatasetError(
            f"remainder(): a {type(dataset).__name__} is an IterableDataset, whose samples have no "
            "index; load the state into a loader of it"
        )
    saved = parse(state)
    if isinstance(dataset, Mixture) or saved.mixture is not None:
        raise ConfigurationError(
            "remainder(): a mixture needs none: build it with the sources as they are now, and "
            "load the state into a loader of it; each source continues where it stands"
        )
    rows = rows_of(dataset)
    present = length_of(rows)
    schedule = _schedule(saved.identity, order)
    before, progress = schedule.dataset_length, saved.progress
    if schedule.within(progress) != progress:
        raise contradiction(progress)
    _check_content(rows, saved, before, present, on_mismatch)
    unseen = schedule.unseen(progress, progress, saved.seed)
    new = np.arange(before, present, dtype=np.int64)
    return Subset(rows, _Indices(np.concatenate([unseen[unseen < present], new])))


def _schedule(identity: Identity, order: Order | None) -> PlannedSchedule:
    name, version = identity.order, identity.order_version
    if (sampler := sampler_named(name)) is not None:
        raise ConfigurationError(
            f"remainder(): the state is of a loader with a custom sampler ({sampler}), which alone "
            "knows its indices; write torch.utils.data.Subset(dataset, loader.unseen()) with that "
            "loader"
        )
    if order is None:
        order = order_of_state(name, version)
    if order is None or (order.name, order.version) != (name, version):
        raise ConfigurationError(
            f"remainder(): the state has the order {name!r}, version {version}: pass this order as "
            "order="
        )
    if identity.dataset_length is None:
        raise ConfigurationError("remainder(): the state does not say how long the dataset was")
    return PlannedSchedule.for_rank(order, identity.dataset_length, 1, 0, 1, "pad")


def _check_content(
    rows: Any, saved: State, before: int, present: int, on_mismatch: OnMismatch
) -> None:
    """Compare the samples that the dataset had and has, as far as they are known."""
    old = saved.identity.dataset_fingerprint
    try:
        new = None if present < before else fingerprint_of(_beginning(rows, before, present))
    except LookupError:
        new = None
    if before != present and (
        old is None or new is None or not (is_digest(old) and is_digest(new))
    ):
        warn(
            f"remainder(): the dataset had {before} samples and has {present}; whether the first "
            f"{min(before, present)} are the same ones, under the same indices, is not known and "
            "was not checked",
            RuntimeWarning,
        )
    elif old != new and None not in (old, new):
        message = (
            f"remainder(): the first {before} samples of the dataset are not those that it had "
            f"when the state was saved: the fingerprint was {old!r}, and is {new!r}, so that an "
            "index means another sample; put new samples at the end"
        )
        if on_mismatch == "error":
            raise StateMismatchError(
                f'{message}. To go by the indices anyway, pass on_mismatch="warn".'
            )
        warn(f"{message}. It goes by the indices alone.", RuntimeWarning)


def _beginning(rows: Any, before: int, present: int) -> Any:
    return rows if before == present else beginning_of(rows, before)


class _Indices(Sequence[int]):
    """Indices as Python's numbers, which all datasets know, held as an array."""

    def __init__(self, array: NDArray[np.int64]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> _Indices: ...

    def __getitem__(self, place: int | slice) -> int | _Indices:
        found = self._array[place]
        return _Indices(found) if isinstance(place, slice) else int(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<{len(self)} indices>"
