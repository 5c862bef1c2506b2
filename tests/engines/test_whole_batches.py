"""Batches that are made as a whole, in their slots: what a dataset keeps of them is safe."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from subjects import digest

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


PICKED = torch.arange(4096 * 128, dtype=torch.float32).reshape(4096, 128)


class Picked:
    """Reads batches of 256 kB and more as a whole, in several ways."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Any:
        return PICKED[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return {
            "rows": lambda: PICKED[indices],
            "negative": lambda: PICKED[torch.tensor(indices) - 4096],
            "resized": lambda: torch.empty(len(indices), 64).resize_(len(indices), 128).zero_(),
            "intermediate": lambda: PICKED[torch.tensor(indices)].double() * 2,
            "zeros": lambda: torch.zeros(len(indices), 128).add_(torch.tensor(indices)[:, None]),
        }[self.way]()


def as_it_is(batch: Any) -> Any:
    return batch


def stack_by_hand(samples: list[Any]) -> Any:
    return torch.stack(samples), torch.cat(samples)


@pytest.mark.parametrize("way", ["rows", "negative", "resized", "intermediate", "zeros", "stack"])
def test_a_batch_that_is_made_in_its_slot_equals_the_inline_engine_s(way: str) -> None:
    dataset, collate = (PICKED, stack_by_hand) if way == "stack" else (Picked(way), as_it_is)
    arguments = {"shuffle": True, "seed": 3, "collate_fn": collate}
    expected = [digest(batch) for batch in ResumableDataLoader(dataset, 600, **arguments)]
    loader = ResumableDataLoader(
        dataset, 600, num_workers=2, prefetch_factor=1, persistent_workers=True, **arguments
    )
    assert [digest(batch) for batch in loader] == expected
    loader.set_epoch(0)
    assert [digest(batch) for batch in loader] == expected


def collate_views(samples: list[torch.Tensor]) -> Any:
    rows = torch.stack(samples)
    return rows[:, :-1], rows[:, 1:], rows[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_of_one_tensor_are_views_of_one_tensor_in_every_batch(
    workers: int,
) -> None:
    loader = ResumableDataLoader(PICKED, 600, num_workers=workers, collate_fn=collate_views)
    for inputs, targets, first in loader:
        assert inputs.stride() == targets.stride() == (128, 1)
        targets.fill_(-1.0)
        assert bool((inputs[:, 1:] == -1.0).all())
        assert bool((first[1:] == -1.0).all())


class Keeping:
    """Keeps tensors that it has returned, and returns them again."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        first = indices[0] % 6
        if first not in self.kept:
            self.kept[first] = torch.full((300, 300), float(first))
        return self.kept[first].clone() if indices[0] < 12 else self.kept[first]


def test_tensors_that_a_dataset_keeps_are_not_overwritten() -> None:
    loader = ResumableDataLoader(Keeping(), 1, num_workers=1, collate_fn=as_it_is)
    assert [int(batch[-1, -1]) for batch in loader] == [index % 6 for index in range(24)]


class Refilling:
    """Reuses one buffer for all batches of the same length."""

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        if self.buffer is None or len(self.buffer) != len(indices):
            self.buffer = torch.empty(len(indices), 1 << 15)
        return self.buffer.copy_(torch.tensor(indices)[:, None])


def test_a_buffer_that_a_dataset_reuses_does_not_change_delivered_batches() -> None:
    """Placing makes the buffer in a slot, and the dataset writes to it while that is read."""
    loader = ResumableDataLoader(
        Refilling(), 12, num_workers=1, collate_fn=as_it_is, persistent_workers=True
    )
    for _ in range(3):
        found = []
        for batch in loader:
            time.sleep(0.003)  # the worker reads meanwhile
            found += batch.min(dim=1).values.tolist()
            assert torch.equal(batch.min(dim=1).values, batch.max(dim=1).values)
        assert found == list(range(200))


class Remembering:
    """Keeps a small tensor of each batch."""

    def __init__(self) -> None:
        self.recent: list[torch.Tensor] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        batch = torch.full((1 << 19,), float(indices[0]))
        self.recent.append(torch.zeros(1 << 15))
        return batch


class KeepingResized(Remembering):
    """Keeps a tensor, then resizes another, which only memory that torch has allocated can do."""

    def __getitems__(self, indices: list[int]) -> Any:
        kept = torch.full((1 << 17,), float(indices[0]))
        batch = torch.empty(1 << 17) if indices[0] < 6 else torch.empty(1 << 16)
        if indices[0] >= 6:
            batch.resize_(1 << 17)
        self.recent.append(kept)
        return batch.fill_(float(indices[0])), float(self.recent[0].sum())


def test_tensors_that_a_dataset_keeps_cost_only_a_few_slots() -> None:
    loader = ResumableDataLoader(
        Remembering(), 1, num_workers=1, collate_fn=as_it_is, persistent_workers=True
    )
    assert [int(batch[-1]) for batch in loader] == list(range(40))
    (member,) = loader._serving._engine._pass._crew._members  # type: ignore[union-attr]
    assert member.slots._slots
    assert max(member.slots._slots) < 12, "the number of slots that were made"


def test_a_batch_that_is_made_again_does_not_overwrite_tensors_that_were_kept() -> None:
    expected = list(ResumableDataLoader(KeepingResized(), 1, collate_fn=as_it_is))
    loader = ResumableDataLoader(KeepingResized(), 1, num_workers=1, collate_fn=as_it_is)
    for (batch, kept), (inline_batch, inline_kept) in zip(loader, expected):
        assert kept == inline_kept
        assert batch[0] == batch[-1] == inline_batch[0]
