"""The fingerprint: equal for equal content wherever it lies, and another one for other content."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from subjects import Indices
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

from dataporter import ResumableDataLoader, SharedSequence
from dataporter.datasets.columns import MappedColumns
from dataporter.datasets.fingerprint import fingerprint_of
from dataporter.datasets.spread import bytes_of, spread

LARGE = 300_000
NUMBERS = torch.arange(LARGE)


class Folder(Dataset[Any]):
    """A folder of images, as torchvision lists it. Nothing of it can be read."""

    def __init__(self, paths: list[str], transform: Any = None) -> None:
        self.samples = [(path, number % 10) for number, path in enumerate(paths)]
        self.targets = [label for _, label in self.samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")

    @property
    def paths(self) -> list[str]:
        raise AssertionError("a property was read")


class Wrapped(Dataset[Any]):
    """What people write to give the parts of a random_split transforms of their own."""

    def __init__(self, part: Any, transform: Any = None) -> None:
        self.part, self.transform = part, transform

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")


def paths_in(root: str, count: int = 64) -> list[str]:
    return [f"{root}/{number % 4}/{number:03d}.jpg" for number in range(count)]


def split(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return random_split(Indices(1000), [800, 200], generator=generator)[0]  # type: ignore[arg-type]


def object_array(*values: Any) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def mapped(tmp_path: Path, values: Any) -> Any:
    np.save(tmp_path / "values.npy", values)
    return np.load(tmp_path / "values.npy", mmap_mode="r")


# Two that hold the same.
ALIKE: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "a tensor in shared memory": lambda _: (NUMBERS, NUMBERS.clone().share_memory_()),
    "a tensor and an array": lambda _: (NUMBERS, NUMBERS.numpy()),
    "a small tensor and an array": lambda _: (NUMBERS[:9], NUMBERS[:9].numpy()),
    "bfloat16, cloned": lambda _: (NUMBERS.bfloat16(), NUMBERS.bfloat16().clone()),
    "an array and a memory map": lambda path: (NUMBERS.numpy(), mapped(path, NUMBERS.numpy())),
    "another layout": lambda _: (
        NUMBERS.reshape(100, 3000),
        NUMBERS.reshape(100, 3000).t().contiguous().t(),
    ),
    "another layout, as an array": lambda _: (
        NUMBERS.numpy().reshape(100, 3000),
        np.asfortranarray(NUMBERS.numpy().reshape(100, 3000)),
    ),
    "a conjugate that is not computed yet": lambda _: (
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 - 2j]),
    ),
    "the bytes of another platform": lambda _: (
        np.arange(LARGE, dtype="<i4"),
        np.arange(LARGE, dtype=">i4"),
    ),
    "a gradient": lambda _: (torch.ones(9), torch.ones(9, requires_grad=True)),
    "a NaN": lambda _: (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
    "a dict": lambda _: ({"a": NUMBERS, "b": NUMBERS}, MappedColumns({"b": NUMBERS, "a": NUMBERS})),
    "a list in shared memory": lambda _: (
        paths_in("/data", 5000),
        SharedSequence(paths_in("/data", 5000)),
    ),
    "indices as a list, an array": lambda _: (
        Subset(range(LARGE), list(range(0, LARGE, 2))),  # type: ignore[arg-type]
        Subset(range(LARGE), np.arange(0, LARGE, 2)),  # type: ignore[arg-type]
    ),
    "indices as a range, a tensor": lambda _: (
        Subset(range(99), range(9)),  # type: ignore[arg-type]
        Subset(range(99), torch.arange(9)),  # type: ignore[arg-type]
    ),
    "a folder on another disk": lambda _: (
        Folder(paths_in("/data")),
        Folder(paths_in("/scratch/job 17/data")),
    ),
    "paths as objects": lambda _: (
        [PurePosixPath(path) for path in paths_in("/data")],
        paths_in("/data"),
    ),
    "another transform": lambda _: (
        Folder(paths_in("/data"), transform=abs),
        Folder(paths_in("/data"), transform=len),
    ),
    "another transform of a part": lambda _: (Wrapped(split(1), abs), Wrapped(split(1), len)),
    "objects at other addresses": lambda _: (
        [(1, object()), (2, object())],
        [(1, object()), (2, object())],
    ),
    "a cache that fills": lambda _: (_cached([None, None]), _cached([b"pixels", None])),
}


def _cached(samples: list[Any]) -> Any:
    dataset: Any = Wrapped(TensorDataset(torch.arange(2)))
    dataset.data = samples
    return dataset


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_content_has_the_same_fingerprint(name: str, tmp_path: Path) -> None:
    one, other = map(fingerprint_of, ALIKE[name](tmp_path))
    assert one is not None
    assert one == other


# Two of one length that do not hold the same.
APART: dict[str, Callable[[], tuple[Any, Any]]] = {
    "other values": lambda: (TensorDataset(torch.ones(9)), TensorDataset(torch.zeros(9))),
    "other values of a large tensor": lambda: (NUMBERS, NUMBERS + 1),
    "another order of a large tensor": lambda: (NUMBERS, NUMBERS[torch.randperm(LARGE)]),
    "images of which most columns are empty": lambda: _images(),
    "rows of which both ends are empty": lambda: _rows(),
    "another dtype": lambda: (torch.zeros(9), torch.zeros(9, dtype=torch.int32)),
    "another shape": lambda: (torch.zeros(9, 2), torch.zeros(9, 1, 2)),
    "a NaN less": lambda: (torch.tensor([float("nan")]), torch.tensor([0.0])),
    "other bfloat16": lambda: (torch.ones(3).bfloat16(), torch.zeros(3).bfloat16()),
    "columns exchanged": lambda: (
        {"a": torch.ones(3), "b": torch.zeros(3)},
        {"a": torch.zeros(3), "b": torch.ones(3)},
    ),
    "other texts": lambda: (np.array(["a", "b"]), np.array(["b", "a"])),
    "other objects": lambda: (object_array("a", 2), object_array("a", 3)),
    "an unseeded split": lambda: (split(1), split(2)),
    "an unseeded split with a transform": lambda: (Wrapped(split(1)), Wrapped(split(2))),
    "subsets of other data": lambda: (
        Subset(TensorDataset(torch.ones(9)), [1, 2]),
        Subset(TensorDataset(torch.zeros(9)), [1, 2]),
    ),
    "parts in another order": lambda: (
        ConcatDataset([TensorDataset(torch.ones(9)), TensorDataset(torch.zeros(9))]),
        ConcatDataset([TensorDataset(torch.zeros(9)), TensorDataset(torch.ones(9))]),
    ),
    "parts of other lengths": lambda: (
        ConcatDataset([Indices(3), Indices(4)]),  # type: ignore[list-item]
        ConcatDataset([Indices(4), Indices(3)]),  # type: ignore[list-item]
    ),
    "other stacked data": lambda: (
        StackDataset(a=TensorDataset(torch.ones(9)), b=Folder(paths_in("/data", 9))),
        StackDataset(a=TensorDataset(torch.zeros(9)), b=Folder(paths_in("/data", 9))),
    ),
    "other stacked data in a tuple": lambda: (
        StackDataset(TensorDataset(torch.ones(9))),
        StackDataset(TensorDataset(torch.zeros(9))),
    ),
    "files in another order": lambda: (
        Folder(paths_in("/data")),
        Folder([*paths_in("/data")[32:], *paths_in("/data")[:32]]),
    ),
    "other ranges": lambda: (range(9), range(1, 10)),
    "other numbers": lambda: ([1, 2, 3], [1, 2, 4]),
    "other entries that hold tensors": lambda: (
        [(torch.ones(2), 1), (torch.ones(2), 2)],
        [(torch.ones(2), 1), (torch.zeros(2), 2)],
    ),
    "other records": lambda: ([{"a": 1, "b": "x"}], [{"a": 1, "b": "y"}]),
    "other numbers of one value": lambda: ([1], [1.0]),
    "the end of a long text": lambda: (["x" * 9999 + "a"], ["x" * 9999 + "b"]),
    "fingerprints of the user's": lambda: (_marked("one"), _marked("two")),
    "parts with fingerprints of the user's": lambda: (
        ConcatDataset([_marked("one")]),
        ConcatDataset([_marked("two")]),
    ),
}


def _images() -> tuple[Any, Any]:
    images = torch.zeros(5000, 28, 28, dtype=torch.uint8)
    images[:, 8:20, 8:20] = torch.randint(1, 255, (5000, 12, 12), dtype=torch.uint8)
    return images, images.flip(0)


def _rows() -> tuple[Any, Any]:
    rows = torch.zeros(1600, 4096, dtype=torch.uint8)
    rows[:, 1024:3072] = torch.arange(1600 * 2048).reshape(1600, 2048) % 251 + 1
    return rows, rows.flip(0)


def _marked(name: str) -> Any:
    dataset: Any = Wrapped(range(9))
    dataset.fingerprint = name
    return dataset


@pytest.mark.parametrize("name", APART)
def test_other_content_has_another_fingerprint(name: str) -> None:
    one, other = map(fingerprint_of, APART[name]())
    assert None not in (one, other)
    assert one != other


UNKNOWN = {
    "a custom dataset": Indices(9),
    "a wrapper around one": Wrapped(Indices(9)),
    "objects": [object(), object()],
    "nothing": [],
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a tensor without memory": torch.empty(3, device="meta"),
    "a large dict": {str(number): number for number in range(1000)},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_nothing_is_known_there_is_no_fingerprint(name: str) -> None:
    assert fingerprint_of(UNKNOWN[name]) is None
    assert fingerprint_of(UNKNOWN[name], "mine") == "mine"


def _unread(*_: Any) -> Any:
    raise AssertionError("a sample was read")


def _subclass(kind: type, **attributes: Any) -> Any:
    return type(f"Reading{kind.__name__}", (kind,), {"__getitem__": _unread, **attributes})


# Datasets whose class is a list, a dict or an array, and reads samples in its own way.
READING: dict[str, Any] = {
    "a list": _subclass(list)([1, 2, 3]),
    "a tuple": _subclass(tuple)([1, 2, 3]),
    "a dict": _subclass(dict)(a=torch.arange(3)),
    "an array": np.arange(LARGE).view(_subclass(np.ndarray)),
    "a tensor": torch.arange(LARGE).as_subclass(_subclass(torch.Tensor)),
    "an array in two dimensions": np.asfortranarray(np.ones((999, 999))).view(
        _subclass(np.ndarray)
    ),
    "a list in a custom class": Folder(_subclass(list)(["a", "b"])),
    "a list in a list": [_subclass(list)([1, 2, 3])],
}
READING["a list in a custom class"].samples = _subclass(list)(["a", "b"])


@pytest.mark.parametrize("name", READING)
def test_no_sample_is_read_of_a_class_that_reads_in_its_own_way(name: str) -> None:
    known = fingerprint_of(READING[name])
    plain = {"an array": NUMBERS, "a tensor": NUMBERS}.get(name)
    if plain is not None:
        assert known == fingerprint_of(plain)


def test_content_that_cannot_be_looked_at_is_unknown_and_ends_no_pass() -> None:
    """As names in place of indices, which have no common length."""
    subset = Subset({(1,): 0, (1, 2): 1}, [(1,), (1, 2)])  # type: ignore[arg-type]
    assert [batch.tolist() for batch in ResumableDataLoader(subset)] == [[0], [1]]
    endless = Wrapped(range(2))
    endless.__dict__["data"] = {"a": _Lengthless()}
    assert fingerprint_of(Subset(endless, _Lengthless())) is None  # type: ignore[arg-type]


class _Lengthless(list[int]):
    def __len__(self) -> int:
        raise OSError("not mounted")


def test_datasets_in_each_other_end() -> None:
    one, other = Wrapped(Indices(9)), Wrapped(Indices(9))
    one.part, other.part = other, one
    assert fingerprint_of(one) is None


DTYPES = st.sampled_from(
    [np.dtype(name) for name in ("?", "u1", "i2", ">i4", "f2", "f8", "c8", "U3", "S2", "M8[s]")]
)


@settings(max_examples=cases(50))
@given(data=st.data(), dtype=DTYPES, shape=arrays.array_shapes(max_dims=3, max_side=5))
def test_each_value_of_a_small_array_counts(
    data: st.DataObject, dtype: Any, shape: tuple[int, ...]
) -> None:
    array = data.draw(arrays.arrays(dtype, shape))
    assert fingerprint_of(array) == fingerprint_of(array.copy(order="F"))
    place = data.draw(st.tuples(*(st.integers(0, side - 1) for side in shape)))
    other = array.copy()
    other[place] = data.draw(arrays.from_dtype(dtype))
    same = array.tobytes() == other.tobytes()
    assert (fingerprint_of(array) == fingerprint_of(other)) is same


@given(length=st.integers(0, 10**12), run=st.integers(1, 99), runs=st.integers(1, 40))
def test_what_is_looked_at_is_spread_over_all(length: int, run: int, runs: int) -> None:
    places = spread(length, run, runs)
    assert len(places) == min(length, run * runs)
    assert (np.diff(places) > 0).all()
    if runs > 1 and length:
        assert places[0] == 0
        assert places[-1] == length - 1


@pytest.mark.parametrize("dtype", ["u1", "f4", "U300"])
def test_of_a_large_array_only_some_pages_are_read(dtype: str) -> None:
    array = np.empty(10**6, dtype=dtype)
    assert len(bytes_of(array, 1)[2]) <= 1 << 16


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_fingerprint import ALIKE, APART, fingerprint_of
from pathlib import Path
import torch
torch.manual_seed(0)
print([fingerprint_of(APART[name]()[0]) for name in APART])
print([fingerprint_of(ALIKE[name](Path(sys.argv[2]))[0]) for name in ALIKE])
"""


def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    printed = []
    for number in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": ":".join(paths)}
        command = [sys.executable, "-c", SCRIPT, str(tests), str(tmp_path)]
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        printed.append(ran.stdout)
    assert printed[0] == printed[1]
    assert "content1:" in printed[0]


def test_a_list_that_reads_by_itself_is_not_read() -> None:
    class Reading(list[int]):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("read")

    fingerprint_of(Reading(range(6)))
    fingerprint_of(Subset(Reading(range(6)), [1, 2]))  # type: ignore[arg-type]  # has a length
