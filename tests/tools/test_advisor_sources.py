"""Sources of an advisor: which samples and batches it reads, without moving a loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from example_advice import Counting, Watched, at
from torch.utils.data import DataLoader

from dataporter import (
    ResumableDataLoader,
    SampleError,
    suggest_conversions,
)
from dataporter.seeding.generators import global_state


def test_samples_are_drawn_without_repetition_from_the_whole() -> None:
    def read(seed: int, samples: int = 500, length: int = 10**12) -> list[int]:
        watched = Watched(length)
        suggest_conversions(watched, samples, seed=seed)
        return watched.read

    assert read(1) == read(1) != read(2)
    assert len(set(read(1))) == 500
    assert min(read(1)) < 10**11 < 9 * 10**11 < max(read(1))
    assert read(1, 50, 50) == list(range(50))
    assert sorted(read(1, 49, 50)) != list(range(49))


def test_an_iterable_dataset_is_read_from_the_front_and_no_further() -> None:
    endless = Counting(10**9)
    plan = suggest_conversions(endless, 300)
    assert (endless.taken, plan.samples, plan.length) == (300, 300, None)
    assert (at(plan, "").high, at(plan, "").certainty) == (299, "guess")
    short = suggest_conversions(Counting(10), 11)
    assert (short.samples, at(short, "").certainty) == (10, "certain")
    batched = Counting(10**9)
    plan = suggest_conversions(DataLoader(batched, 7), 30)
    assert (batched.taken, plan.samples, at(plan, "").before) == (30, 30, 8)


# ---- loaders


def collate(samples: list[int]) -> dict[str, torch.Tensor]:
    return {"padded": torch.tensor([[sample, -100, 0, 0] for sample in samples])}


@pytest.mark.parametrize("make", [DataLoader, ResumableDataLoader])
def test_the_paths_of_a_loader_are_those_of_its_batches(make: Any) -> None:
    plan = suggest_conversions(make(range(50), 8, collate_fn=collate))
    assert plan.as_rules() == {"padded": "int8"}
    assert (at(plan, "padded").before, at(plan, "padded").after, plan.samples) == (32, 4, 50)
    assert at(plan, "padded").values == 200


def test_a_loader_keeps_its_position() -> None:
    generator = torch.Generator().manual_seed(5)
    arguments: dict[str, Any] = {
        "batch_size": 4, "shuffle": True, "generator": generator, "converter": {"": "int16"}
    }  # fmt: skip
    loader = ResumableDataLoader(range(100), **arguments)
    untouched = ResumableDataLoader(
        range(100), **{**arguments, "generator": torch.Generator().manual_seed(5)}
    )
    states = generator.get_state(), global_state()
    plan = suggest_conversions(loader)
    assert at(plan, "").dtypes == ("int64",), "the converter is not used"
    assert torch.equal(generator.get_state(), states[0])
    assert global_state() == states[1]
    batches, others = iter(loader), iter(untouched)
    assert next(batches).tolist() == next(others).tolist()
    state = loader.state_dict()
    suggest_conversions(loader)
    assert loader.state_dict() == state == untouched.state_dict()
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in others]


def test_a_loader_reads_as_it_does_in_training() -> None:
    class Together(Watched):
        def __getitems__(self, indices: list[int]) -> list[int]:
            self.read.append(-len(indices))
            return indices

    together = Together(10)
    suggest_conversions(DataLoader(together, 4))
    assert together.read == [-4, -4, -2]
    single = suggest_conversions(DataLoader([{"x": 5}, {"x": np.arange(3)}], batch_size=None))
    assert single.as_rules() == {"x": "uint8"}, "converted by torch, and a number is no leaf"
    own = DataLoader(Watched(10), batch_sampler=[[0, 1], [2]])
    assert suggest_conversions(own).as_rules() == {"": "uint8"}
    rows = ResumableDataLoader({"x": torch.arange(9), "y": np.ones(9)}, 4)
    assert suggest_conversions(rows).as_rules() == {"x": "uint8", "y": "float16"}


def test_samples_that_fail_are_left_out_if_the_loader_skips_them() -> None:
    class Broken(Watched):
        def __getitem__(self, index: int) -> int:
            if index % 2:
                raise OSError("unreadable")
            return index

    loader = ResumableDataLoader(Broken(10), 4, on_error="skip")
    plan = suggest_conversions(loader)
    assert (plan.samples, at(plan, "").certainty) == (5, "guess")
    assert "left out 5 samples" in plan.notes[0]
    replaced = ResumableDataLoader(Broken(10), 4, on_error=lambda error, index: 1000)
    assert at(suggest_conversions(replaced), "").high == 1000
    with pytest.raises(OSError, match="unreadable") as failed:
        suggest_conversions(ResumableDataLoader(Broken(10), 4))
    assert "index 1" in "".join(failed.value.__notes__)

    class Hopeless(Watched):
        def __getitem__(self, index: int) -> int:
            raise OSError("unreadable")

    with pytest.raises(SampleError, match="all 3 samples"):
        suggest_conversions(ResumableDataLoader(Hopeless(3), 2, on_error="skip"))
