"""Reused memory: large results lie where nobody looks any more, and what is held never changes."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter import KeyBasedDtypeConverter
from dataporter.convert import reused
from dataporter.convert.reused import Reused

LARGE = 1 << 20  # numbers
HELD: list[Callable[[torch.Tensor], Any]] = [
    lambda made: made,
    lambda made: made[3:],
    lambda made: made.detach(),
    lambda made: made.numpy()[::2],
    lambda made: memoryview(made.numpy()),
    lambda made: made.untyped_storage(),
    lambda made: torch.from_dlpack(made),
    lambda made: (made.requires_grad_() * 2).grad_fn,
]


@pytest.mark.parametrize("hold", HELD)
def test_memory_is_used_again_once_its_last_view_is_gone(
    hold: Callable[[torch.Tensor], Any],
) -> None:
    empty = Reused()
    first = empty((LARGE,), torch.float32)
    address = first.data_ptr()
    assert address % 64 == 0
    held = hold(first)
    del first
    gc.collect()
    assert empty((LARGE,), torch.float32).data_ptr() != address
    del held
    gc.collect()
    again = [empty((LARGE,), torch.float32) for _ in range(2)]
    assert address in [made.data_ptr() for made in again]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=40))
def test_what_is_held_never_changes(steps: list[tuple[int, int]]) -> None:
    """Each step makes a tensor of some size, and drops one of those that are held."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reused, "LARGE", 1)
        empty, held = Reused(), []
        for number, (size, dropped) in enumerate(steps):
            made = empty((size, 2), torch.int64)
            assert made.shape == (size, 2)
            held.append((number, made.fill_(number)[1:]))
            del made
            assert all(bool((kept == number).all()) for number, kept in held)
            del held[dropped : dropped + 1]
        assert len(empty._blocks) <= reused._MOST


def test_threads_never_have_the_same_memory() -> None:
    empty = Reused()

    def fill(number: int) -> bool:
        made = empty((LARGE,), torch.int64).fill_(number)
        return bool((made == number).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(fill, range(200)))


@pytest.mark.parametrize("form", ["float16", "uint8:scale", "bits"])
def test_a_loop_widens_in_two_blocks_and_no_batch_changes_while_it_is_held(form: str) -> None:
    levels = torch.randint(0, 2 if form == "bits" else 256, (8, 1 << 17))
    source = levels.float() if form == "bits" else levels.float() / 255
    if form == "float16":
        source = source.half().float()
    converter = KeyBasedDtypeConverter({"x": form})
    narrow = [converter.convert_batch({"x": source.roll(turn)}) for turn in range(6)]
    addresses, kept = set(), []
    for turn, batch in enumerate(narrow):
        wide = converter.widen(batch)["x"]
        assert torch.equal(wide, source.roll(turn))
        addresses.add(wide.data_ptr())
        if turn == 3:
            kept.append(wide)
    assert len(addresses) == 3
    assert torch.equal(kept[0], source.roll(3))


def test_a_converter_is_copied_and_pickled_without_its_memory() -> None:
    converter = KeyBasedDtypeConverter({"x": "float16"})
    narrow = converter.convert_batch({"x": torch.ones(LARGE)})
    wide = converter.widen(narrow)["x"]
    for twin in (copy.deepcopy(converter), pickle.loads(pickle.dumps(converter))):
        assert len(pickle.dumps(twin)) < 10_000
        other = twin.widen(narrow)["x"]
        assert other.data_ptr() != wide.data_ptr()
        assert torch.equal(other, wide)


@pytest.mark.parametrize("original", [torch.float64, torch.float32, torch.int64, torch.bool])
def test_widening_gives_the_values_and_strides_of_torch(original: torch.dtype) -> None:
    like = torch.ones(64, 3, 224, 224).to(original)
    for source in (like, like.to(memory_format=torch.channels_last), like.movedim(1, 3), like[::2]):
        converter = KeyBasedDtypeConverter({"x": "uint8"})
        narrow = converter.convert_batch({"x": source})["x"]
        wide = converter.widen({"x": narrow})["x"]
        assert torch.equal(wide, narrow.to(original))
        assert wide.stride() == narrow.to(original).stride()
        array = KeyBasedDtypeConverter({"x": "uint8"})
        small = array.convert_batch({"x": source.numpy()})
        np.testing.assert_array_equal(array.widen(small)["x"], source.numpy())
