"""`balanced`: every class equally likely, its labels found without reading a sample."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets as hf_datasets
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, Subset, TensorDataset

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
    WeightedOrder,
    balanced,
)

LABELS = [0, 0, 0, 1, 0, 2, 0, 1]
EVEN = WeightedOrder([1 / LABELS.count(label) for label in LABELS]).name


class Labelled(Dataset[Any]):
    """Fails where a sample is read."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        tuple(LABELS),
        np.array(LABELS, dtype=np.int8),
        torch.tensor(LABELS),
        [torch.tensor(label) for label in LABELS],
        list(np.array(LABELS)),
        [("cat", "dog", None)[label] for label in LABELS],
        np.array(["cat", "dog", "emu"])[LABELS],
        np.array([("cat",), 1, 2.5], dtype=object)[LABELS],
        [frozenset({label}) for label in LABELS],
        (label for label in LABELS),
        lambda index: LABELS[index],
        "targets",
    ],
)
def test_labels_of_any_kind_give_the_same_order(labels: Any) -> None:
    dataset = Labelled(targets=LABELS)
    assert balanced(dataset, labels).name == EVEN


def test_labels_are_found_beside_the_samples() -> None:
    assert balanced(Labelled(targets=torch.tensor(LABELS))).name == EVEN
    assert balanced(Labelled(labels=LABELS, targets=None)).name == EVEN
    columns = {"x": np.zeros(len(LABELS)), "label": LABELS}
    assert balanced(columns, "label").name == EVEN
    table = hf_datasets.Dataset.from_dict({"x": list(range(len(LABELS))), "label": LABELS})
    for form in (None, "torch", "numpy"):
        assert balanced(table.with_format(form), "label").name == EVEN
    assert balanced(UnifiedHFDatasetWrapper(table), "label").name == EVEN


def test_the_labels_of_a_subset_are_found_in_the_whole() -> None:
    whole = Labelled(targets=[9, *LABELS[:-1]])
    part = Subset(Subset(whole, [7, 6, 5, 4, 3, 2, 1]), [6, 5, 4, 3, 2, 1, 0])
    expected = balanced(Labelled(), [*LABELS[:-1], 0]).name
    assert balanced(Subset(whole, [*range(1, 8), 1])).name == expected
    assert balanced(part).name == WeightedOrder([0.2, 0.2, 0.2, 1, 0.2, 1, 0.2]).name


@pytest.mark.parametrize("power", [0, 0.25, 0.5, 1])
def test_a_class_comes_in_proportion_to_a_power_of_its_size(power: float) -> None:
    labels = np.repeat(["rare", "often"], [10, 1000])
    order = balanced(labels, labels, power=power, samples=100_000)
    drawn = order.indices(np.arange(100_000), seed=3, epoch=0, dataset_length=1010)
    rare = float((labels[drawn] == "rare").mean())
    sizes = np.array([10.0, 1000.0]) ** (1 - power)
    assert rare == pytest.approx(sizes[0] / sizes.sum(), abs=0.006)


def test_digits_that_are_rare_come_as_often_as_the_others() -> None:
    digits = load_digits()
    kept = np.flatnonzero((digits.target != 3) | (np.arange(len(digits.target)) % 20 == 0))
    data = TensorDataset(torch.tensor(digits.data[kept]), torch.tensor(digits.target[kept]))
    order = balanced(data, data.tensors[1], samples=20_000)
    loader = ResumableDataLoader(data, 500, order=order, seed=1)
    counts = Counter(label for _, labels in loader for label in labels.tolist())
    assert sorted(counts) == list(range(10))
    assert max(abs(count - 2000) for count in counts.values()) < 250


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (None, {}, r"has no 'targets' or 'labels'.*balanced\(dataset, labels\)"),
        ("label", {}, "has no 'label', and its samples are not read"),
        ([1, 2], {}, "has 2 labels and the dataset has 8 samples"),
        (np.zeros((8, 2)), {}, r"shape \(8, 2\): expected one label for each sample"),
        ([[1]] * 8, {}, "expected hashable labels"),
        (LABELS, {"power": 2}, "power=2: expected a number from 0 to 1"),
        (LABELS, {"power": True}, "power=True"),
        (LABELS, {"samples": 0}, "samples=0"),
    ],
)
def test_labels_that_are_missing_or_wrong_are_one_clear_error(
    labels: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        balanced(Labelled(), labels, **options)
