"""`WeightedOrder`: samples drawn by weight, each position by a keyed hash (C9)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.checks import given, positive_number
from dataporter.errors import ConfigurationError
from dataporter.orders.weighted.alias import MOST_WEIGHTS, AliasTable
from dataporter.orders.weighted.successive import SuccessiveDraws
from dataporter.seeding.hashing import STREAM_ORDER, fold

__all__ = ["WeightedOrder", "is_weighted"]

_NAME = "weighted("


class WeightedOrder:
    """Samples drawn by weight, as by ``torch.utils.data.WeightedRandomSampler``, but resumable.

    With replacement, every position draws for itself: by a hash of (seed, epoch, position) and an
    alias table (Walker 1977), in the same time for any number of weights. So a resume needs no
    replay, ranks share one sequence of draws, and their number may change. The share of each sample
    is exact to one part in 10**10, also for a weight of a billionth of the mean; a weight of zero
    never comes. The table takes 12 bytes a weight; the weights themselves are not kept.

    Without replacement, an epoch has ``samples`` distinct samples, each drawn by weight among those
    that are left (Efraimidis and Spirakis 2006). That is no function of one position: each rank
    draws the epoch when its first index is needed, in about a second for a million weights, and
    holds 9 bytes a weight and 8 for each sample of two epochs. It suits up to about 10**7 weights.

    The name, and with it the state, contains a digest of the weights: a resume with other weights
    is refused.

    Args:
        weights: one number for each sample of the dataset, in proportion to how often it shall
            come: an array, a tensor or a list, all finite, none negative, not all zero. They need
            not sum to 1. They count as float64.
        replacement: whether a sample may come several times in an epoch.
        samples: number of samples of an epoch; by default as many as there are weights.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong, or more distinct samples are
            asked for than have a weight above zero. The loader raises it where the dataset has
            another length than the weights.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> order = WeightedOrder([0.5, 0.25, 0, 0.25], samples=12)
        >>> loader = ResumableDataLoader(["a", "b", "c", "d"], 6, order=order, seed=1)
        >>> ["".join(batch) for batch in loader]
        ['daaada', 'dddaba']
    """

    version: ClassVar[int] = 1

    __slots__ = ("_count", "_draws", "_replacement", "_samples", "name")

    name: str

    def __init__(
        self, weights: Any, *, replacement: bool = True, samples: int | None = None
    ) -> None:
        checked = _checked(weights)
        if not isinstance(replacement, bool):
            raise ConfigurationError(f"{given('replacement', replacement)}: expected True or False")
        self._count = len(checked)
        self._samples = self._count if samples is None else positive_number("samples", samples)
        self._replacement = replacement
        self._draws: AliasTable | SuccessiveDraws
        if replacement:
            self._draws = AliasTable.of(checked)
        else:
            _enough(checked, self._samples)
            self._draws = SuccessiveDraws(checked, self._samples)
        self.name = (
            f"{_NAME}weights={_digest(checked)}, samples={self._samples}, "
            f"replacement={replacement})"
        )

    def epoch_length(self, dataset_length: int) -> int:
        """The number of samples of an epoch.

        Raises:
            ConfigurationError: the dataset has another length than the weights.
        """
        if dataset_length != self._count:
            raise ConfigurationError(
                f"order=WeightedOrder(...) has {self._count} weights and the dataset has "
                f"{dataset_length} samples: pass one weight for each sample, 0 for those that "
                "shall not come"
            )
        return self._samples

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices of the samples at these positions; both int64 of the same shape."""
        key = fold(seed, epoch, STREAM_ORDER)
        return self._draws.draw(positions.astype(np.uint64), key)

    def __deepcopy__(self, memo: Any) -> WeightedOrder:
        # It never changes, and a copy of a loader need not have a second table.
        return self

    def __repr__(self) -> str:
        return (
            f"WeightedOrder(<{self._count} weights>, replacement={self._replacement}, "
            f"samples={self._samples})"
        )


def is_weighted(name: object) -> bool:
    """Whether an order's name in a state is that of a weighted order."""
    return isinstance(name, str) and name.startswith(_NAME)


def _checked(weights: Any) -> NDArray[np.float64]:
    if callable(getattr(weights, "detach", None)):
        weights = weights.detach().cpu()
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"{given('weights', weights)}: expected one number for each sample ({error})"
        ) from error
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise ConfigurationError(
            f"{given('weights', weights)}: expected one number for each sample, in one dimension, "
            f"and got {array.dtype} of shape {array.shape}"
        )
    if not 1 <= len(array) <= MOST_WEIGHTS:
        raise ConfigurationError(
            f"weights= has {len(array)} numbers: expected 1 to {MOST_WEIGHTS}, one for each sample"
        )
    array = np.ascontiguousarray(array, dtype=np.float64)
    lowest, highest = array.min(), array.max()
    if not (lowest >= 0 and highest < np.inf):  # NaN is neither
        index = int(np.flatnonzero(~((array >= 0) & (array < np.inf)))[0])
        raise ConfigurationError(
            f"weights[{index}]={float(array[index])}: expected finite numbers from 0"
        )
    if highest == 0:
        raise ConfigurationError(
            f"weights= has {len(array)} zeros, so that no sample can come: expected a number above "
            "0"
        )
    return array


def _enough(weights: NDArray[np.float64], samples: int) -> None:
    """Refuse to draw more distinct samples than there are."""
    if samples > (there := int(np.count_nonzero(weights))):
        raise ConfigurationError(
            f"samples={samples} without replacement, but only {there} of {len(weights)} weights "
            f"are above 0: pass samples={there} or less, or replacement=True"
        )


def _digest(weights: NDArray[np.float64]) -> str:
    # -0.0 is equal to 0.0 and has other bytes.
    return blake2b((weights + 0.0).astype("<f8").data, digest_size=8).hexdigest()
