"""Placing: torch functions have the same results in a slot, to the bit and the stride."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter.datasets.columns import MappedColumns, columns_of, gather
from dataporter.engines import placing
from dataporter.engines.placing import Placing
from dataporter.engines.ring import Slot, WorkerSlots

SIZE = 1 << 22
DTYPES = [torch.float32, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.complex64]


@pytest.fixture(autouse=True)
def _everything_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "_SMALLEST", 1)


def slot() -> Slot:
    slots = WorkerSlots()
    made = slots.make(SIZE)
    slots.forget_descriptor(made)
    return made


def switched_on(memory: Slot) -> Placing:
    context = Placing()
    context.learn(SIZE, 0)
    context.begin(memory)
    return context


def outcome(make: Callable[[], Any]) -> Any:
    try:
        made = make()
    except Exception as error:
        return type(error), str(error)
    assert type(made) is torch.Tensor
    dense = made.detach().resolve_conj().resolve_neg()
    dense = dense.clone(memory_format=torch.contiguous_format)
    # A tensor of one value counts as contiguous with any stride, and would not be viewed as bytes.
    raw = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
    # The stride of a dimension of length 1, or of an empty tensor, has no meaning.
    strides = [
        stride for stride, size in zip(made.stride(), made.shape) if size > 1 and made.numel()
    ]
    return made.dtype, made.shape, strides, made.requires_grad, raw.numpy().tobytes()


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def build(dtype: torch.dtype, shape: list[int], way: int) -> torch.Tensor:
        whole = torch.arange(int(np.prod(shape))).remainder(7).reshape(shape).to(dtype)
        ways = (
            lambda t: t,
            lambda t: t.movedim(0, -1),
            lambda t: t[::2],
            lambda t: t.conj() if t.is_complex() else t,
            lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
            lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
            lambda t: t.to(memory_format=torch.channels_last_3d) if t.ndim == 5 else t,
        )
        return ways[way](whole)

    shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5)
    return st.builds(build, st.sampled_from(DTYPES), shapes, st.integers(0, 6))


@st.composite
def calls(draw: st.DrawFn) -> Callable[[], Any]:
    """A call of one of the functions that can be placed, with valid and invalid arguments."""
    rows = draw(tensors())
    others = draw(st.lists(st.sampled_from([rows, rows.clone().detach(), rows[:1]]), max_size=3))
    dim = draw(st.integers(-2, 2))
    numbers = draw(st.lists(st.integers(-2, 4), max_size=4))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from([None, *DTYPES]))
    return draw(
        st.sampled_from(
            [
                lambda: torch.stack([rows, *others], dim),
                lambda: torch.stack([rows, *others]),
                lambda: torch.cat([rows, *others]),
                lambda: torch.cat([rows, *others], dim=dim),
                lambda: torch.stack(tensors=[rows, rows], dim=0),
                lambda: rows[numbers],
                lambda: rows[torch.tensor(numbers, dtype=torch.int64)],
                lambda: rows[np.array(numbers, dtype=np.int64)],
                lambda: rows[torch.ones(len(rows), dtype=torch.bool)],
                lambda: rows[0],
                lambda: rows[None, 1:],
                lambda: rows.index_select(0, torch.tensor(numbers, dtype=torch.int64)),
                lambda: torch.index_select(rows, dim, torch.tensor(numbers, dtype=torch.int64)),
                lambda: torch.zeros(shape, dtype=dtype),
                lambda: torch.zeros(*shape),
                lambda: torch.ones(*shape, dtype=dtype),
                lambda: torch.full(shape, 3, dtype=dtype),
                lambda: torch.full(shape, 0.5),
                lambda: torch.full(shape, True, requires_grad=False),
                lambda: torch.empty(*shape, dtype=dtype).fill_(1),
                lambda: torch.empty(shape).zero_(),
                lambda: torch.zeros(shape, dtype=torch.float32, requires_grad=True),
            ]
        )
    )


@settings(max_examples=cases(500))
@given(calls())
def test_a_call_has_the_same_result_with_placing_and_without(call: Callable[[], Any]) -> None:
    expected = outcome(call)
    with switched_on(slot()):
        found = outcome(call)
    assert found == expected


CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "stack": lambda rows: torch.stack([rows, rows]),
    "cat": lambda rows: torch.cat([rows, rows]),
    "a list": lambda rows: rows[[1, 2]],
    "a tensor": lambda rows: rows[torch.tensor([1, 2])],
    "an array": lambda rows: rows[np.array([1, 2])],
    "index_select": lambda rows: rows.index_select(0, torch.tensor([1, 2])),
    "zeros": lambda rows: torch.zeros(4, 4),
    "ones": lambda rows: torch.ones((4, 4)),
    "full": lambda rows: torch.full((4, 4), 2.0),
    "empty": lambda rows: torch.empty(4, 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_lie_in_the_slot_within_the_context_and_only_there(name: str) -> None:
    memory, rows = slot(), torch.arange(64.0).reshape(8, 8)

    def lies_there(tensor: torch.Tensor) -> bool:
        return memory.address <= tensor.data_ptr() < memory.address + memory.size

    context = switched_on(memory)
    with context:
        assert lies_there(CALLS[name](rows))
        with context:  # as a nested call enters it
            pass
    assert not lies_there(CALLS[name](rows))


def test_a_result_that_does_not_fit_the_slot_is_made_elsewhere() -> None:
    with switched_on(slot()):
        made = torch.zeros(SIZE, dtype=torch.float64)
    assert made.shape == (SIZE,)
    assert not made.any()


def test_torch_still_fills_uninitialised_memory_if_algorithms_are_deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with switched_on(slot()):
            assert torch.empty(100).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_with_another_default_device_nothing_is_made_in_the_slot() -> None:
    with switched_on(slot()), torch.device("meta"):
        made = [torch.zeros(8), torch.empty(8), torch.full((8,), 1.0)]
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_columns_of_numpy_are_gathered_on_the_cpu_whatever_the_default_device_is() -> None:
    column = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    with torch.device("meta"):
        made = gather(columns_of(MappedColumns({"x": column})), np.arange(50))["x"]
    assert torch.equal(made, torch.from_numpy(column[:50]))


@pytest.mark.parametrize(
    ("size", "wasted", "lies_there"),
    [(SIZE, 0, True), (1 << 10, 0, False), (SIZE, SIZE // 2, False)],
)
def test_small_batches_and_intermediate_results_switch_it_off(
    size: int, wasted: int, lies_there: bool
) -> None:
    memory, context = slot(), Placing()
    context.learn(size, wasted)
    context.begin(memory)
    with context:
        made = torch.zeros(100)
    assert (memory.address <= made.data_ptr() < memory.address + memory.size) is lies_there
    context.learn(SIZE, 0)
    with context:
        made = torch.zeros(100)
    assert (memory.address <= made.data_ptr() < memory.address + memory.size) is (wasted == 0)


def test_threads_of_a_dataset_receive_no_memory_of_the_slot() -> None:
    """Two threads could receive the same bytes."""
    context = switched_on(slot())
    assert context.arena is not None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: context.arena).result() is None
