"""Fetch: the fast roads give what default_collate would, and failures say where they happened."""

from __future__ import annotations

import contextlib
import gc
import random
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subjects import Batched, Indices, digest, ids
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset, TensorDataset

from dataporter import ResumableDataLoader, SampleError, sample_rng
from dataporter.fetch.fetch import WholeFetch, fetch_for
from dataporter.fetch.samples import SampleFetch

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


def column(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).remainder(100).reshape(shape).to(dtype)


def columns_used(dataset: Any) -> bool:
    fetch = fetch_for(
        dataset,
        torch.utils.data.default_collate,
        batched=True,
        seeds_each="sample",
        on_error="raise",
    )
    return isinstance(fetch, WholeFetch)


@pytest.mark.parametrize(
    "dataset",
    [
        *(TensorDataset(column(dtype, 9, 3), column(dtype, 9)) for dtype in DTYPES),
        TensorDataset(column(torch.float32, 6, 9).T),
        Subset(TensorDataset(column(torch.float32, 9, 2)), [4, 4, 0, 8]),
        Subset(Subset(TensorDataset(column(torch.int64, 9)), range(1, 9)), torch.tensor([7, 0, 3])),
        column(torch.float32, 7, 2, 2),
        column(torch.float32, 7, 2).numpy(),
        np.arange(14.0)[::-2],
        np.frombuffer(bytes(range(20)), dtype=np.uint8),
        np.arange(6, dtype=np.uint16),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
@pytest.mark.filterwarnings("error")
def test_gathered_columns_are_what_torch_collates(dataset: Any) -> None:
    assert columns_used(dataset)
    theirs, ours = DataLoader(dataset, 4), ResumableDataLoader(dataset, 4)
    for expected, found in zip(theirs, ours, strict=True):
        assert type(found) is type(expected)
        assert leaves_equal(expected, found)


def leaves_equal(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(leaves_equal, one, other))
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and digest_bits(one) == digest_bits(other)
    )


def digest_bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


class Doubling(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return tuple(2 * tensor for tensor in super().__getitem__(index))


@pytest.mark.parametrize(
    "dataset",
    [
        Doubling(torch.arange(4.0)),
        TensorDataset(torch.ones(4, 2).to_sparse()),
        TensorDataset(torch.ones(4, requires_grad=True)),
        np.array(["a", "b", "c"]),
        np.arange(4, dtype=">i4"),
        [1, 2, 3],
        Subset(TensorDataset(torch.arange(4.0)), [-1, 0]),
    ],
    ids=["subclass", "sparse", "grad", "strings", "byte order", "list", "negative"],
)
def test_what_a_gather_could_get_wrong_is_read_by_sample(dataset: Any) -> None:
    assert not columns_used(dataset)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int16])
def test_rows_are_gathered_where_torch_has_a_kernel_for_it(dtype: torch.dtype) -> None:
    column = torch.arange(4).to(dtype)
    try:
        column.index_select(0, torch.tensor([0]))
    except RuntimeError:
        assert not columns_used(TensorDataset(column)), "some versions of torch have none"
    else:
        assert columns_used(TensorDataset(column))
    first, second = ResumableDataLoader(TensorDataset(column), 2)
    assert (first[0].dtype, [*first[0].tolist(), *second[0].tolist()]) == (dtype, [0, 1, 2, 3])


def test_a_subclass_keeps_its_own_getitem() -> None:
    assert [b[0].tolist() for b in ResumableDataLoader(Doubling(torch.arange(3.0)), 2)] == [
        [0, 2],
        [4],
    ]


def test_a_dict_of_arrays_is_read_by_row() -> None:
    columns = {"x": np.arange(6.0).reshape(3, 2), "y": torch.tensor([7, 8, 9])}
    first, second = ResumableDataLoader(columns, 2)
    assert {k: v.tolist() for k, v in first.items()} == {"x": [[0, 1], [2, 3]], "y": [7, 8]}
    assert second["y"].tolist() == [9]
    rows = next(iter(ResumableDataLoader(columns, 2, collate_fn=list)))
    assert [int(row["y"]) for row in rows] == [7, 8], "a collate function of one's own gets rows"


def test_a_read_only_memory_map_is_gathered_without_a_warning(tmp_path: Path) -> None:
    np.arange(12.0).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=float, mode="r", shape=(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (first, _) = ResumableDataLoader(mapped, 3)
    assert first.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@given(columns=st.integers(1, 4), rows=st.integers(1, 30), batch_size=st.integers(1, 9))
def test_the_fast_road_and_the_slow_one_deliver_the_same(
    columns: int, rows: int, batch_size: int
) -> None:
    class Slow(Dataset[Any]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> Any:
            return fast[index]

    fast = TensorDataset(*(torch.randn(rows, k + 1) for k in range(columns)))
    streams = [
        [digest(batch) for batch in ResumableDataLoader(dataset, batch_size, shuffle=True, seed=4)]
        for dataset in (fast, Slow())
    ]
    assert streams[0] == streams[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_getitems_is_asked_once_a_batch(workers: int) -> None:
    dataset = Batched(10)
    streams = [
        [digest(batch) for batch in ResumableDataLoader(dataset, 4, seed=1, num_workers=n)]
        for n in (workers, 0)
    ]
    assert streams[0] == streams[1]
    assert dataset.asked == 3 * (2 if workers == 0 else 1)


def test_torchs_wrappers_are_asked_once_a_batch_only_where_they_read_at_once() -> None:
    def asked_at_once(dataset: Any) -> bool:
        fetch = fetch_for(dataset, list, batched=True, seeds_each="sample", on_error="raise")
        assert isinstance(fetch, SampleFetch)
        return fetch.offers_batches

    assert asked_at_once(Subset(Batched(9), [1, 2]))
    assert not asked_at_once(Subset(Indices(9), [1, 2]))
    assert asked_at_once(StackDataset(Batched(9), Indices(9)))
    assert not asked_at_once(StackDataset(a=Indices(9), b=Indices(9)))


class Rngs(Indices):
    def __getitem__(self, index: int) -> Any:
        assert sample_rng() is sample_rng(), "one generator a sample"
        return index, sample_rng().random(), sample_rng().random()


class BatchedRngs(Rngs):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [
            (index, sample_rng(place).random(), sample_rng(place).random())
            for place, index in enumerate(indices)
        ]


def test_sample_rng_is_a_function_of_the_position_however_samples_are_read() -> None:
    def stream(dataset: Any, batch_size: int, strategy: str) -> list[tuple[Any, ...]]:
        loader = ResumableDataLoader(
            dataset, batch_size, shuffle=True, seed=3, strategy=strategy, collate_fn=list
        )
        return [sample for batch in loader for sample in batch]

    expected = stream(Rngs(11), 4, "advanced")
    assert len({sample[1] for sample in expected}) == 11
    assert stream(Rngs(11), 3, "simple") == expected
    assert stream(BatchedRngs(11), 5, "advanced") == expected


def test_sample_rng_outside_a_loader_follows_torch_manual_seed() -> None:
    torch.manual_seed(3)
    first = sample_rng().random()
    assert sample_rng().random() != first
    torch.manual_seed(3)
    assert sample_rng().random() == first


def test_sample_rng_outside_the_batch_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="expected an offset from 0 to 1"):
        next(iter(ResumableDataLoader(Indices(3), 2, collate_fn=lambda batch: sample_rng(2))))


def test_the_generators_are_not_copies_of_one_another() -> None:
    """NumPy and torch run the same algorithm; seeded alike they would give the same bits."""

    class Draws(Indices):
        def __getitem__(self, index: int) -> Any:
            return (
                np.random.randint(2**32, dtype=np.uint32).item(),
                torch.randint(2**32, ()).item(),
                random.getrandbits(32),
            )

    draws = [
        draw for batch in ResumableDataLoader(Draws(500), 50, collate_fn=list) for draw in batch
    ]
    assert len({number for draw in draws for number in draw}) > 1490


# ---- failures


class Rotten(Indices):
    """Index 5 fails."""

    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise ValueError("rotten")
        return index


class RottenBatches(Rotten):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Rotten(12), RottenBatches(12)], ids=["sample", "batch"])
def test_a_failing_sample_raises_its_own_exception_and_its_place(
    dataset: Any, workers: int
) -> None:
    loader = ResumableDataLoader(dataset, 2, shuffle=True, seed=1, num_workers=workers)
    step = next(s for s in range(6) if 5 in loader.samples_at(0, s))
    batches = iter(loader)
    for _ in range(step):
        next(batches)
    with pytest.raises(ValueError, match="rotten") as failure:
        next(batches)
    assert failure.value.args == ("rotten",)
    (note,) = failure.value.__notes__
    assert f"epoch 0, step {step}" in note
    assert "5" in note
    if workers:
        assert 'raise ValueError("rotten")' in str(failure.value.__cause__)
    assert loader.step == step, "not delivered: a state taken now comes back to this batch"

    rest = [ids(batch) for batch in batches]
    assert rest == [loader.samples_at(0, s).tolist() for s in range(step + 1, 6)]
    assert loader.epoch == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_who_goes_on_after_a_failure_has_passed_the_batch_over(workers: int) -> None:
    loader = ResumableDataLoader(Rotten(12), 2, seed=1, num_workers=workers)
    batches = iter(loader)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="rotten"):
        next(batches)
    assert ids(next(batches)) == [6, 7]
    state = loader.state_dict()
    assert (state["step"], state["position"], state["early"]) == (4, 8, [])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Rotten(8), RottenBatches(8)], ids=["sample", "batch"])
def test_skip_leaves_the_sample_out_and_says_so(dataset: Any, workers: int) -> None:
    loader = ResumableDataLoader(dataset, 3, on_error="skip", num_workers=workers)
    said = r"1 sample failed .*index 5 \(epoch 0, step 1, position 5\).*rotten"
    with pytest.warns(RuntimeWarning, match=said):
        assert [ids(batch) for batch in loader] == [[0, 1, 2], [3, 4], [6, 7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_warning_comes_when_the_pass_is_over_and_costs_no_batch(workers: int) -> None:
    loader = ResumableDataLoader(Rotten(8), 2, on_error="skip", num_workers=workers)
    batches = iter(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [ids(next(batches)) for _ in range(4)]
        assert found == [[0, 1], [2, 3], [4], [6, 7]]
        assert (loader.epoch, loader.position) == (0, 8)
        with pytest.raises(RuntimeWarning, match="index 5"):
            next(batches)
        assert next(batches, "over") == "over"
    assert (loader.epoch, loader.position) == (1, 0)


def test_skip_with_nothing_left_raises() -> None:
    with pytest.raises(SampleError, match=r"nothing of the batch.*\[5\].*rotten"):
        list(ResumableDataLoader(Rotten(8), 1, on_error="skip"))


def test_a_function_gives_the_sample_that_takes_the_place() -> None:
    def replace(error: Exception, index: int) -> int:
        assert str(error) == "rotten"
        return -index

    loader = ResumableDataLoader(Rotten(8), 4, on_error=replace)
    assert [ids(batch) for batch in loader] == [[0, 1, 2, 3], [4, -5, 6, 7]]


def test_a_failing_collate_names_the_batch() -> None:
    def collate(samples: list[int]) -> Any:
        raise KeyError("label")

    with pytest.raises(KeyError) as failure:
        list(ResumableDataLoader(Indices(4), 2, collate_fn=collate))
    assert (
        "while collating the batch of 2 samples with indices [0, 1]" in failure.value.__notes__[0]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_iteration_does_not_end_the_epoch(workers: int) -> None:
    class Stopping(Indices):
        def __getitem__(self, index: int) -> int:
            if index == 3:
                raise StopIteration
            return index

    with pytest.raises(SampleError, match="sample index 3"):
        list(ResumableDataLoader(Stopping(6), 2, num_workers=workers))


def test_an_exception_whose_class_is_only_in_the_worker_is_named() -> None:
    class Raising(Indices):
        def __getitem__(self, index: int) -> int:
            class Stubborn(Exception):
                """Made anew in each call."""

            raise Stubborn("1 and 2")

    with pytest.raises(SampleError, match=r"Stubborn: 1 and 2[^$]*its traceback is above"):
        list(ResumableDataLoader(Raising(6), 2, num_workers=1))


class FailingRow(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise ValueError("broken")
        return index


def test_a_loader_whose_sample_has_raised_is_freed_without_the_garbage_collector() -> None:
    loader = ResumableDataLoader(FailingRow(8), 2)
    freed = weakref.ref(loader)
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            list(loader)
        del loader
        assert freed() is None
    finally:
        gc.enable()
