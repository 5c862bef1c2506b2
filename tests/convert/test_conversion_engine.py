"""Conversion in worker processes: converted batches are in slots, and stay unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dataporter import KeyBasedDtypeConverter, ResumableDataLoader
from dataporter.engines import placing
from dataporter.engines.packing import Packer
from dataporter.engines.placing import Placing
from dataporter.engines.ring import Slot, WorkerSlots

SHAPE = (16, 3, 64, 64)
RULES = {"image": "float16", "label": "int32"}


def slot(size: int) -> Slot:
    slots = WorkerSlots()
    made = slots.make(size)
    slots.forget_descriptor(made)
    return made


def lies_in(tensor: torch.Tensor, memory: Slot) -> bool:
    return memory.address <= tensor.data_ptr() < memory.address + memory.size


def made(context: Placing, memory: Slot | None, converter: KeyBasedDtypeConverter) -> Any:
    """A batch as a worker makes it; returns the wide image and the packed batch's."""
    arena = context.begin(memory)
    with context:
        wide = torch.zeros(SHAPE).fill_(0.5)
    batch = {"image": wide, "label": torch.arange(16)}
    narrow = converter.conversion.batch(batch, context.empty).batch
    packer = Packer(narrow, arena)
    context.end()
    context.learn(packer.size, packer.wasted)
    return wide, narrow["image"]


def test_narrow_batches_are_made_in_the_slot_and_wide_ones_in_memory_that_is_used_again() -> None:
    converter, context = KeyBasedDtypeConverter(RULES), Placing()
    memory = slot(2 * 16 * 3 * 64 * 64 + 10_000)
    _, first = made(context, None, converter)
    assert not lies_in(first, memory)
    addresses = []
    for _ in range(4):
        wide, narrow = made(context, memory, converter)
        assert lies_in(narrow, memory)
        assert not lies_in(wide, memory)
        addresses.append(wide.data_ptr())
        del wide, narrow
        assert not memory.is_held
    # Once the needed size is known, the memory is always the same.
    assert len(set(addresses[-3:])) == 1


def test_a_kept_part_of_the_wide_batch_is_not_overwritten() -> None:
    converter, context = KeyBasedDtypeConverter(RULES), Placing()
    memory = slot(2 * 16 * 3 * 64 * 64 + 10_000)
    for _ in range(3):
        made(context, memory, converter)
    kept, _ = made(context, memory, converter)
    kept.fill_(0.25)
    made(context, memory, converter)
    assert bool((kept == 0.25).all())


class Keeping(Dataset[Any]):
    """Keeps every wide batch that it made, and checks whether one changes."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full(SHAPE[1:], index / 512)

    def collate(self, samples: Sequence[torch.Tensor]) -> Any:
        image = torch.stack(tuple(samples))
        self.kept.append(image)
        changed = sum(bool((kept != kept[:, :1, :1, :1]).any()) for kept in self.kept)
        first = [float(kept[0, 0, 0, 0]) for kept in self.kept]
        return {"image": image, "changed": changed, "first": first}


@pytest.mark.parametrize("in_order", [True, False])
def test_a_dataset_may_keep_what_it_made_in_a_worker(in_order: bool) -> None:
    dataset = Keeping()
    loader = ResumableDataLoader(
        dataset, 16, num_workers=2, collate_fn=dataset.collate, converter={"image": "float16"},
        in_order=in_order,
    )  # fmt: skip
    firsts: list[float] = []
    for batch in loader:
        assert batch["changed"] == 0
        firsts += batch["first"]
        image = batch["image"].float()
        assert torch.equal(image, image[:, :1, :1, :1].expand_as(image))
    # Each kept batch still begins with the same sample.
    assert set(firsts) == {index / 512 for index in range(0, 400, 16)}


class Mixed(Dataset[Any]):
    """Batches that change their size, their dtypes and their unconverted leaves."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return index

    @staticmethod
    def collate(samples: Sequence[int]) -> Any:
        first = samples[0]
        size = (1, 50, 3, 200, 7)[first // 4 % 5]
        image = torch.stack([torch.full((size, 300), index / 256) for index in samples])
        return {
            "image": image.double() if first % 3 else image,
            "half": image,
            "plain": torch.cat([image, image]),
            "array": np.arange(first * 100),
            "label": torch.tensor(samples),
            "mask": image > 0.1,
            "name": str(first),
        }


def test_converted_batches_of_any_size_are_those_of_the_inline_engine() -> None:
    rules = {"image": "float16", "label": "uint8", "mask": "bits", "array": "int16"}

    def loader(num_workers: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Mixed(), 4, num_workers=num_workers, collate_fn=Mixed.collate, converter=rules,
            shuffle=True, seed=2, persistent_workers=num_workers > 0,
        )  # fmt: skip

    inline, workers = loader(0), loader(2)
    held = []
    for _ in range(3):
        for wanted, got in zip(inline, workers, strict=True):
            assert list(got) == list(wanted)
            for name, leaf in wanted.items():
                if isinstance(leaf, torch.Tensor):
                    assert got[name].dtype is leaf.dtype
                    assert torch.equal(got[name], leaf)
                elif isinstance(leaf, np.ndarray):
                    np.testing.assert_array_equal(got[name], leaf)
                else:
                    assert got[name] == leaf
            held.append((got, wanted))
        held = held[-3:]
    for got, wanted in held:
        assert torch.equal(got["image"], wanted["image"])


def test_small_batches_need_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches are the same if every tensor, however small, is placed."""
    monkeypatch.setattr(placing, "_SMALLEST", 1)
    monkeypatch.setattr(placing, "_SMALLEST_BATCH", 1)
    test_converted_batches_of_any_size_are_those_of_the_inline_engine()
