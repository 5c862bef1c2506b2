"""A `worker_init_fn` that seeds: without effect on the samples, and with a warning that says so."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dataporter import ResumableDataLoader
from dataporter.seeding.generators import isolated_generators
from dataporter.seeding.seeded import notice_of_seeding

TEXT = (
    "worker_init_fn seeds {}, which has no effect on the samples: the loader seeds the global "
    "generators by seed=, epoch and position before it reads each sample (strategy='simple': each "
    "batch), so that a resume is exact. Leave the seeding out, and pass seed= to choose the "
    "samples' randomness"
)
TORCHS, NUMPYS, PYTHONS = "torch's default generator", "numpy.random", "Python's random"


def seeds_torch(worker: int) -> None:
    torch.manual_seed(42 + worker)


def seeds_numpy(worker: int) -> None:
    np.random.seed(42 + worker)


def seeds_python(worker: int) -> None:
    random.seed(42 + worker)


def seeds_all(worker: int) -> None:
    seeds_torch(worker)
    seeds_numpy(worker)
    seeds_python(worker)


def seeds_by(seed: int, worker: int) -> None:
    torch.manual_seed(seed + worker)


def recipe(worker: int) -> None:
    """As PyTorch's notes on reproducibility print it."""
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)


def recipe_with_its_number(worker: int) -> None:
    np.random.seed((torch.initial_seed() + worker) % 2**32)


def recipe_for_torch(worker: int) -> None:
    recipe(worker)
    torch.manual_seed(torch.initial_seed() % 2**32)


def draws(worker: int) -> None:
    random.random()
    np.random.random()
    torch.rand(1)


def nothing(worker: int) -> None:
    pass


CASES: list[tuple[Callable[[int], None], str | None]] = [
    (seeds_torch, TEXT.format(TORCHS)),
    (seeds_numpy, TEXT.format(NUMPYS)),
    (seeds_python, TEXT.format(PYTHONS)),
    (seeds_all, TEXT.format(f"{TORCHS} and {NUMPYS} and {PYTHONS}")),
    (partial(seeds_by, 7), TEXT.format(TORCHS)),
    (recipe, None),
    (recipe_with_its_number, None),
    (recipe_for_torch, None),
    (draws, None),
    (nothing, None),
    (torch.manual_seed, None),  # a library's
]


@pytest.mark.parametrize(("function", "text"), CASES)
@pytest.mark.parametrize("worker", [0, 3])
def test_what_is_said(function: Callable[[int], None], text: str | None, worker: int) -> None:
    with isolated_generators():
        torch.manual_seed(2**40 + 11)
        assert notice_of_seeding(function, worker) == text


class Drawing(Dataset[list[float]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([random.random(), np.random.random(), float(torch.rand(1))])


def batches(**arguments: Any) -> list[Any]:
    loader = ResumableDataLoader(Drawing(), 2, seed=1, num_workers=2, **arguments)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("strategy", ["simple", "advanced"])
def test_it_changes_no_sample_and_warns_once(strategy: str) -> None:
    expected = batches(strategy=strategy)
    with pytest.warns(RuntimeWarning, match="worker_init_fn seeds") as warned:
        assert batches(strategy=strategy, worker_init_fn=seeds_all) == expected
    (warning,) = [each for each in warned if issubclass(each.category, RuntimeWarning)]
    assert str(warning.message) == TEXT.format(f"{TORCHS} and {NUMPYS} and {PYTHONS}")
    assert warning.filename == __file__, "it points at the loop"


@pytest.mark.parametrize("function", [recipe, nothing])
def test_the_usual_recipe_is_silent(function: Callable[[int], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batches(worker_init_fn=function) == batches()


def test_a_generator_of_the_datasets_own_stays_as_it_was_seeded() -> None:
    class Own(Dataset[float]):
        generator = random.Random(1)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> float:
            return self.generator.random()

    dataset = Own()
    loader = ResumableDataLoader(
        dataset, 2, num_workers=1, worker_init_fn=lambda _: dataset.generator.seed(5)
    )
    ours = random.Random(5)
    assert next(iter(loader)).tolist() == pytest.approx([ours.random(), ours.random()])
