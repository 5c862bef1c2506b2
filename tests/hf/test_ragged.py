"""Ragged rows: joined or padded, they are the rows, wherever these lie in memory."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import sys
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

from dataporter import UnifiedHFDatasetWrapper
from dataporter.hf import ragged
from dataporter.hf.ragged import Ragged

hf.disable_progress_bars()

DTYPES = [
    *(torch.bool, torch.int8, torch.uint16, torch.int32, torch.int64, torch.complex128),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@st.composite
def raggeds(draw: st.DrawFn) -> tuple[Ragged, list[torch.Tensor]]:
    """Rows of some lengths in a tensor of any dtype, and the same rows one by one."""
    inner = draw(st.sampled_from([(), (2,), (2, 3)]))
    count = draw(st.integers(0, 40))
    dtype = draw(st.sampled_from(DTYPES))
    numbers = torch.arange(1, 1 + count * int(np.prod(inner))).view(count, *inner)
    flat = (numbers % 2 == 0) if dtype is torch.bool else numbers.to(dtype)
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
        lengths = [length for end, length in zip(np.cumsum(lengths), lengths) if end <= count]
        lengths.append(count - sum(lengths))
        rows = list(flat.split(lengths))  # type: ignore[no-untyped-call]  # torch's
        return Ragged(flat, np.array(lengths, dtype=np.int64)), rows
    rows, spans = [], []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, count))
        stop = draw(st.integers(start, count))
        spans.append((start, stop - start, draw(st.integers(stop, count))))
        rows.append(flat[start:stop])
    starts, lengths, ends = np.array(spans, dtype=np.int64).T
    return Ragged(flat, lengths, starts, ends), rows


def as_bits(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).tolist()


@given(raggeds(), st.sampled_from([0, 1]))
def test_padding_adds_the_value_and_nothing_else(
    made: tuple[Ragged, list[torch.Tensor]], value: int
) -> None:
    form, rows = made
    padded, mask = form.padded(torch.tensor([value]).to(form.flat.dtype))
    longest = max(map(len, rows))
    assert padded.dtype is form.flat.dtype
    assert padded.shape == (len(rows), longest, *form.flat.shape[1:])
    for row, there, wanted in zip(padded, mask, rows):
        assert there.tolist() == [1] * len(wanted) + [0] * (longest - len(wanted))
        assert as_bits(row[: len(wanted)]) == as_bits(wanted)
        assert bool((row[len(wanted) :] == value).all())


@given(raggeds(), st.sampled_from([1, 5, 128]))
def test_joined_rows_are_the_rows_one_after_the_other(
    made: tuple[Ragged, list[torch.Tensor]], long: int
) -> None:
    form, rows = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "_LONG", long)
        assert as_bits(form.joined()) == as_bits(torch.cat(rows))
        assert [as_bits(row) for row in form.rows()] == [as_bits(row) for row in rows]


NUMBERS = {
    "int8": st.integers(-128, 127),
    "uint16": st.integers(0, 65535),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
}


@given(st.data(), st.sampled_from(sorted(NUMBERS)))
def test_a_padded_batch_is_its_samples_padded(data: st.DataObject, name: str) -> None:
    """In chunks, sliced, and with a mapping of the indices; after a conversion too."""
    rows = st.lists(st.lists(NUMBERS[name], max_size=5), min_size=1, max_size=5)
    features = Features({"x": List(Value(name))})
    parts = data.draw(st.lists(rows, min_size=1, max_size=3))
    dataset = hf.concatenate_datasets(
        [Dataset.from_dict({"x": part}, features=features) for part in parts]
    )
    if data.draw(st.booleans()):
        dataset = dataset.select(range(min(1, len(dataset) - 1), len(dataset)))
    if data.draw(st.booleans()):
        dataset = dataset.shuffle(seed=0)
    rules = {"x": "bfloat16"} if name == "int8" and data.draw(st.booleans()) else None
    wrapper = UnifiedHFDatasetWrapper(dataset, rules, pad={"x": 1})
    order = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8))
    samples = [wrapper[index]["x"] for index in order]
    batch = wrapper.__getbatch__(np.array(order))
    longest = max(map(len, samples))
    assert batch["x"].shape == (len(order), longest)
    for sample, row, mask in zip(samples, batch["x"], batch["x_mask"]):
        assert row.dtype is sample.dtype
        filled = torch.cat([sample, torch.ones(longest - len(sample)).to(sample.dtype)])
        assert as_bits(row) == as_bits(filled)
        assert mask.tolist() == [1] * len(sample) + [0] * (longest - len(sample))


def pad_at_the_end_of_memory() -> None:
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    beyond = ctypes.c_void_p(address + mmap.PAGESIZE)
    assert libc.mprotect(beyond, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    flat = torch.frombuffer(pages, dtype=torch.int32)
    count = mmap.PAGESIZE // 4
    starts, lengths = np.array([0, count - 1, count - 7]), np.array([1000, 1, 7])
    padded, _ = Ragged(flat, lengths, starts, np.full(3, count)).padded(
        torch.tensor([5], dtype=torch.int32)
    )
    assert padded[1].tolist() == [0] + [5] * 999


@pytest.mark.skipif(sys.platform != "linux", reason="calls mprotect")
def test_memory_beyond_a_chunk_is_never_read() -> None:
    """The chunks of a column may have unmapped memory between them."""
    child = multiprocessing.get_context("fork").Process(target=pad_at_the_end_of_memory)
    child.start()
    child.join()
    assert child.exitcode == 0
