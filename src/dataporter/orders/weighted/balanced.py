"""`balanced`: a weighted order in which every class is equally likely."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from dataporter.checks import given
from dataporter.errors import ConfigurationError
from dataporter.orders.weighted.order import WeightedOrder

__all__ = ["balanced"]

# The attributes in which datasets keep one label for each sample: torchvision's and others.
_ATTRIBUTES = ("targets", "labels")


def balanced(
    dataset: Any,
    labels: Iterable[Any] | str | Callable[[int], Any] | None = None,
    *,
    power: float = 1.0,
    samples: int | None = None,
) -> WeightedOrder:
    """A :class:`~dataporter.WeightedOrder` in which every class of a dataset is equally likely.

    A class of n samples is drawn in proportion to n**(1 - power), and its samples alike. No sample
    is read: the labels are given, or found beside the samples.

    Args:
        dataset: the dataset that the loader reads.
        labels: one label for each sample, of any hashable kind: an array, a tensor or a list; or
            the name of the column or attribute that has them, as ``"label"`` of a Hugging Face
            dataset; or a function of the index. By default the dataset's ``targets`` or
            ``labels``; those of a ``torch.utils.data.Subset`` are found in the whole dataset.
        power: how far to balance: 1 equally, 0 as the data is, 0.5 by the square roots of the
            classes' sizes, as multilingual models often are trained.
        samples: as in ``WeightedOrder``.

    Raises:
        ConfigurationError: (a ``ValueError``) no labels can be found, or not one for each sample.

    Example:
        >>> import numpy as np
        >>> from dataporter import ResumableDataLoader
        >>> data = {"x": np.arange(1000), "label": np.repeat(["rare", "often"], [10, 990])}
        >>> loader = ResumableDataLoader(data, 500, order=balanced(data, "label"), seed=1)
        >>> [batch["label"].count("rare") for batch in loader]
        [254, 246]
    """
    if isinstance(power, bool) or not isinstance(power, int | float) or not 0 <= power <= 1:
        raise ConfigurationError(f"{given('power', power)}: expected a number from 0 to 1")
    codes, counts = _numbered(_found(dataset, labels))
    if len(codes) != (length := _length_of(dataset)):
        raise ConfigurationError(
            f"labels= has {len(codes)} labels and the dataset has {length} samples: pass one label "
            "for each sample"
        )
    return WeightedOrder(_weights(counts, power)[codes], samples=samples)


def _found(dataset: Any, labels: Any) -> Any:
    """The labels that are given, or those that the dataset keeps."""
    if callable(labels):
        return [labels(index) for index in range(_length_of(dataset))]
    if labels is not None and not isinstance(labels, str):
        return labels
    if isinstance(dataset, Subset):
        whole = _listed(_found(dataset.dataset, labels))
        return [whole[index] for index in dataset.indices]
    for name in _ATTRIBUTES if labels is None else (labels,):
        column = _column(dataset, name) if labels else getattr(dataset, name, None)
        if column is not None and not callable(column):
            return column
    names = " or ".join(map(repr, _ATTRIBUTES if labels is None else (labels,)))
    raise ConfigurationError(
        f"balanced(): the {type(dataset).__name__} has no {names}, and its samples are not read "
        "for their labels: write balanced(dataset, labels) with an array or a list of one label "
        'for each sample, balanced(dataset, "column") with the name of a column, or '
        "balanced(dataset, lambda index: ...)"
    )


def _column(dataset: Any, name: str) -> Any:
    """A column of a dataset that has columns, else the attribute of this name, else None."""
    dataset = getattr(dataset, "hf_dataset", dataset)  # of UnifiedHFDatasetWrapper
    columns = dataset.keys() if hasattr(dataset, "keys") else getattr(dataset, "column_names", ())
    return dataset[name] if name in (columns or ()) else getattr(dataset, name, None)


def _length_of(dataset: Any) -> int:
    """The number of samples; of a dict of columns, their length."""
    if isinstance(dataset, Mapping):
        return len(next(iter(dataset.values()), ()))
    return len(dataset)


def _listed(labels: Any) -> Any:
    """Labels as an array of one dimension, where they are one, or as a list."""
    if not hasattr(labels, "dtype") and hasattr(labels, "__getitem__"):
        labels = labels[:]  # a column that is read at once, and not one by one
    if callable(getattr(labels, "detach", None)):
        labels = labels.detach().cpu().numpy()
    if hasattr(labels, "dtype"):
        array = np.asarray(labels)
        if array.ndim != 1:
            raise ConfigurationError(
                f"labels= has the shape {array.shape}: expected one label for each sample, in one "
                "dimension"
            )
        return array
    return list(labels)


def _numbered(labels: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each sample's class, and the number of samples of each class."""
    labels = _listed(labels)
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biufUS":
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return codes, counts
    numbers: dict[Any, int] = {}
    try:
        # Tensors and arrays of one number are equal by their value, not by their hash.
        values = (label.item() if hasattr(label, "item") else label for label in labels)
        codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"labels=: expected hashable labels ({error})") from error
    return codes, np.bincount(codes)


def _weights(counts: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """The weight of a sample of each class."""
    if power == 1:
        return 1 / counts
    # To 12 digits, since powers differ in the last bit from one platform to another, and the
    # weights are part of the order's name.
    return np.array([float(f"{count**-power:.12g}") for count in counts.tolist()])
