"""Packing and the ring: a batch arrives equal, and keeps its slot while anything refers to it."""

from __future__ import annotations

import gc
import os
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter.engines.layout import Arena
from dataporter.engines.packing import Packer, unpack
from dataporter.engines.ring import TrainingSlots, WorkerSlots

Pair = namedtuple("Pair", ["one", "two"])


@dataclass
class Record:
    """A custom batch."""

    image: Any
    name: str


class Marked(torch.Tensor):
    """A tensor that cannot lie in a slot as it is."""


class Frozen(Mapping[str, Any]):
    """A mapping that is not a dict."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def build(dtype: torch.dtype, shape: list[int], way: int) -> torch.Tensor:
        whole = torch.arange(int(np.prod(shape))).remainder(2).reshape(shape).to(dtype)
        ways = (
            lambda t: t,
            lambda t: t.T if t.ndim == 2 else t,
            lambda t: t[::2] if t.ndim else t,
            lambda t: t.expand(3, *t.shape),
            lambda t: t.conj() if t.is_complex() else t,
            lambda t: t.unsqueeze(0).transpose(0, -1),
        )
        return ways[way](whole)

    return st.builds(
        build, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 5)
    )


def arrays() -> st.SearchStrategy[Any]:
    kinds = ["f4", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", ">i4", "f4,i2", "O"]
    return st.builds(
        lambda kind, shape, order: np.zeros(shape, dtype=kind, order=order),
        st.sampled_from(kinds),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from("CF"),
    )


def odd_tensors() -> st.SearchStrategy[Any]:
    made = [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.ones(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
    ]
    if hasattr(torch, "quantize_per_tensor"):  # which torch will remove
        made.append(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    return st.sampled_from(made)


LEAVES = st.one_of(
    tensors(),
    arrays(),
    odd_tensors(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.none(),
    st.booleans(),
    st.builds(np.float32, st.floats(width=32)),
    st.sampled_from([torch.float32, torch.Size([1, 2]), slice(1, 2)]),
)
BATCHES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers()), inner, max_size=4),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(OrderedDict),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(Frozen),
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, st.just("name")),
        inner.map(lambda twice: [twice, twice]),
        st.lists(st.text(max_size=1), min_size=30, max_size=40),
    ),
    max_leaves=8,
)


def described(value: Any) -> Any:
    """A batch as something that ``==`` compares to the last bit, with every type."""
    if isinstance(value, torch.Tensor):
        dense = value.detach()
        if value.is_quantized:
            dense = dense.int_repr()
        if dense.layout is not torch.strided:
            dense = dense.to_dense()
        dense = dense.contiguous().resolve_conj()
        flat = (
            dense.flatten()
            .clone(memory_format=torch.contiguous_format)
            .as_strided((dense.numel(),), (1,))
        )
        raw = flat.view(torch.uint8).numpy().tobytes() if dense.numel() else b""
        strides = value.stride() if value.layout is torch.strided else None
        return (
            type(value),
            value.dtype,
            value.layout,
            strides,
            value.shape,
            value.requires_grad,
            raw,
        )
    if isinstance(value, np.ndarray):
        return type(value), value.dtype, value.shape, value.tolist(), value.flags.f_contiguous
    if isinstance(value, Mapping):
        return type(value), [(key, described(inner)) for key, inner in value.items()]
    if isinstance(value, torch.Size):
        return "size", list(value)
    if isinstance(value, list | tuple):
        return type(value), [described(inner) for inner in value]
    if isinstance(value, Record):
        return Record, described(value.image), value.name
    return type(value), repr(value)


class Ends:
    """A worker's slots and the training process's, in one process."""

    def __init__(self) -> None:
        self.worker, self.training = WorkerSlots(), TrainingSlots()

    def carry(self, batch: Any, *, copy: bool = False) -> Any:
        self.worker.release(*self.training.returned())
        packer = Packer(batch, None)
        if not packer.size:
            return unpack(packer.message, None)
        slot = self.worker.take(0)
        if slot is None or slot.size < packer.size:
            if slot is not None:
                self.worker.give_up(slot)
            slot = self.worker.make(packer.size)
            assert slot.descriptor is not None
            self.training.map(slot.number, os.dup(slot.descriptor))
            self.worker.forget_descriptor(slot)
        self.training.unmap(self.worker.given_up())
        packer.write(slot, moved=True)
        self.worker.send(slot)
        give = self.training.copy if copy else self.training.lease
        return unpack(packer.message, give(slot.number, packer.size))


@settings(max_examples=cases(500))
@given(BATCHES, st.booleans())
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantize.*", "ignore:TypedStorage")
def test_any_batch_arrives_as_it_was(batch: Any, copy: bool) -> None:
    assert described(Ends().carry(batch, copy=copy)) == described(batch)


def test_an_object_that_occurs_twice_is_one_object_on_arrival() -> None:
    twice = torch.arange(3)
    batch = {"a": twice, "b": [twice], "c": (inner := [1]), "d": inner}
    found = Ends().carry(batch)
    assert found["a"] is found["b"][0]
    assert found["c"] is found["d"]


ROWS = torch.arange(40.0).reshape(4, 10)
VIEWS = {
    "channels last": torch.arange(48.0).reshape(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "one channel, last": torch.zeros(2, 1, 4, 4).to(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0)[:, None].expand(3, 5),
    "expanded far beyond what memory there is": torch.ones(1).expand(1 << 45),
    "with gaps": ROWS[:, :-1],
    "in another order, with gaps": ROWS[:, 1:].T,
    "without values": torch.empty(3, 0).T,
    "within its values": ROWS.reshape(-1).unfold(0, 4, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_its_strides(view: torch.Tensor) -> None:
    (found,) = Ends().carry([view])
    assert found.shape == view.shape
    assert found.stride() == view.stride()
    assert view.numel() > 1000 or torch.equal(found, view)


def test_a_small_view_does_not_carry_the_whole_tensor() -> None:
    column = torch.arange(1_000_000.0).reshape(1000, 1000)[:, 7]
    packer = Packer([column], None)
    assert packer.size == 4032, "4000 bytes, to the next multiple of 64"
    assert torch.equal(Ends().carry([column])[0], column)


def writes_to_the_first_and_looks_at_all(batch: Any) -> list[list[float]]:
    tensors = list(batch.values() if isinstance(batch, dict) else batch)
    tensors[0].fill_(1)
    return [tensor.float().flatten().tolist() for tensor in tensors]


SHARED = {
    "rows": lambda rows: [rows, rows[1], rows[2:]],
    "a row first": lambda rows: [rows[1], rows],
    "inputs and targets": lambda rows: {"inputs": rows[:, :-1], "targets": rows[:, 1:]},
    "a narrow view of it": lambda rows: [rows, rows[:, 3]],
    "in a batch that is pickled": lambda rows: OrderedDict(a=rows, b=rows.view(-1), c=rows.T),
    "other dtypes": lambda rows: [rows.view(torch.int32)[1:], rows.view(torch.uint8), rows],
    "at an odd byte": lambda rows: [(raw := rows.view(torch.uint8).view(-1))[3:], raw[4:], rows[1]],
    "a subclass": lambda rows: [rows[1:], rows.as_subclass(Marked), rows.as_subclass(Marked)[1]],
    "columns": lambda rows: [rows[:, 2], rows[:, 1:3], rows[1:, 2:4], rows[:, 2]],
    "columns of other dtypes": lambda rows: [rows[:, 2], rows.view(torch.int16)[::2, 4:6]],
    "a channel": lambda rows: [rows.view(2, 2, 10)[:, :, 3], rows[1:, 3], rows[::2, 3, None]],
    "every second row and every third": lambda rows: [
        rows.view(20, 2)[::2, 0],
        rows.view(20, 2)[::3, 0],
    ],
    "an expanded column": lambda rows: [rows[:, 2], rows[:, 2].expand(3, 4)],
    "neighbours that share nothing": lambda rows: [rows[0], rows[1], rows[2]],
}


@pytest.mark.parametrize("in_arena", [False, True])
@pytest.mark.parametrize("views", SHARED.values(), ids=SHARED)
def test_tensors_that_share_memory_share_it_on_arrival(views: Any, in_arena: bool) -> None:
    ends, arena, rows = Ends(), None, ROWS.clone()
    expected = writes_to_the_first_and_looks_at_all(views(ROWS.clone()))
    slot = ends.worker.make(1000)
    if in_arena:
        arena = Arena(slot)
        placed = arena.empty(rows.shape, rows.dtype)
        assert placed is not None
        rows = placed.copy_(rows)
    packer = Packer(views(rows), arena)
    packer.write(slot, moved=False)
    found = unpack(packer.message, slot.lease(packer.size))
    assert writes_to_the_first_and_looks_at_all(found) == expected
    ends.worker.forget_descriptor(slot)


BASE = torch.arange(72 * 60, dtype=torch.int32).reshape(72, 60)
SPANS = st.tuples(st.integers(0, 57), st.integers(1, 3)).map(lambda at: slice(at[0], sum(at)))
ROWS_OF = st.builds(slice, st.integers(0, 4), st.integers(12, 24))
COLUMNS = st.tuples(ROWS_OF, st.one_of(SPANS, st.integers(0, 59)))


@settings(max_examples=cases(300))
@given(st.lists(COLUMNS, min_size=1, max_size=5), st.integers(1, 3))
def test_columns_share_memory_on_arrival_as_before_and_carry_no_gaps(
    keys: list[Any], step: int
) -> None:
    def numbered(views: list[torch.Tensor]) -> list[list[int]]:
        for view in views:
            view += torch.arange(view.numel(), dtype=torch.int32).reshape(view.shape)
        return [view.flatten().tolist() for view in views]

    views = [BASE.clone()[::step][key] for key in keys]
    packer = Packer(views, None)
    assert packer.size <= 2 * sum(view.nbytes for view in views) + 64 * len(views)
    base = BASE.clone()[::step]
    found = Ends().carry([base[key] for key in keys])
    assert numbered(found) == numbered([base[key] for key in keys])


RARE = ["complex32", "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "uint4"]


@pytest.mark.parametrize("name", RARE)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_rare_dtypes_are_carried_as_well(name: str) -> None:
    if (dtype := getattr(torch, name, None)) is None:
        pytest.skip("this torch does not have it")
    raw = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    (found,) = Ends().carry([raw.view(dtype)])
    assert found.dtype is dtype
    assert torch.equal(found.view(torch.uint8), raw)


HOLDS = {
    "tensor": lambda batch: batch["x"],
    "view": lambda batch: batch["x"][1:, ::2],
    "numpy": lambda batch: batch["x"].numpy(),
    "storage": lambda batch: batch["x"].untyped_storage(),
    "detached": lambda batch: batch["x"].detach(),
    "reinterpreted": lambda batch: batch["x"].view(torch.int32),
    "array": lambda batch: batch["n"][::2],
    "array as tensor": lambda batch: torch.from_numpy(batch["n"]),
    "memoryview": lambda batch: memoryview(batch["x"].numpy()),
    "half precision": lambda batch: batch["h"][:1],
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_a_slot_is_reused_only_once_nothing_refers_to_its_batch(hold: Any) -> None:
    def batch(value: int) -> dict[str, Any]:
        return {
            "x": torch.full((4, 8), float(value)),
            "n": np.full(8, value),
            "h": torch.full((4,), float(value), dtype=torch.bfloat16),
        }

    gc.disable()  # a cycle would keep a slot until the next collection
    try:
        ends = Ends()
        held = hold(ends.carry(batch(1)))
        before = bytes(memoryview(held)) if isinstance(held, memoryview) else repr(held)
        for value in range(2, 6):
            ends.carry(batch(value))
        after = bytes(memoryview(held)) if isinstance(held, memoryview) else repr(held)
        assert before == after
        assert ends.worker._made == 2
        del held
        ends.carry(batch(6)), ends.carry(batch(7))
        assert ends.training.leases == 0
        assert ends.worker._made == 2
    finally:
        gc.enable()


def test_slots_grow_with_the_batches_and_small_ones_are_given_up() -> None:
    ends = Ends()
    for size in (10, 5000, 100, 70000, 1, 300000):
        batch = torch.arange(size)
        assert torch.equal(ends.carry(batch), batch)
    assert len(ends.training._slots) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_keeps_the_batches_that_it_inherited() -> None:
    ends = Ends()
    batch = ends.carry(torch.full((1000,), 1.0))
    reading, writing = os.pipe()
    waiting, going = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(going)
            os.read(waiting, 1)
            os.write(writing, bytes([int((batch == 1.0).all())]))
        finally:
            os._exit(0)
    os.close(waiting)
    del batch
    for value in range(2, 5):
        ends.carry(torch.full((1000,), float(value)))
    os.close(going)
    assert os.read(reading, 1) == b"\x01"
    os.waitpid(child, 0)
    os.close(reading), os.close(writing)


def test_an_arena_hands_out_what_fits_and_recognises_it() -> None:
    slots = WorkerSlots()
    slot = slots.make(1000)
    slots.forget_descriptor(slot)
    arena = Arena(slot)
    first, second = arena.empty((4, 4), torch.float32), arena.empty((), torch.bool)
    assert first is not None
    assert second is not None
    assert arena.empty((slot.size,), torch.uint8) is None
    assert arena.offset_of(first.data_ptr()) == 0
    assert arena.offset_of(second.data_ptr()) == 64
    assert arena.offset_of(torch.ones(3).data_ptr()) is None
    packer = Packer({"a": first, "b": second}, arena)
    assert packer._layout._outside == []
    assert packer.size == arena.top
