"""Values of every feature are the same, however a stream is split."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from subjects import digest

from dataporter import ResumableDataLoader

COUNT = 6
COLUMNS: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "array": (Array2D((2, 1), "int32"), lambda n: [[1], [n]]),
    "time": (Value("timestamp[s]"), lambda n: datetime.datetime(2020, 1, 1 + n)),
    "date": (Value("date32"), lambda n: datetime.date(2020, 1, 1 + n)),
    "decimal": (Value("decimal128(5, 2)"), lambda n: decimal.Decimal(n) / 4),
    "label": (ClassLabel(names=["a", "b"]), lambda n: n % 2),
    "int8": (Value("int8"), lambda n: n),
    "float32": (Value("float32"), lambda n: n / 3),
    "int or null": (Value("int64"), lambda n: None if n % 2 else n),
    "float or null": (Value("float64"), lambda n: None if n % 2 else n / 2),
    "text": (Value("string"), str),
    "bytes": (Value("binary"), lambda n: bytes([n])),
    "list": (List(Value("int16")), lambda n: [n] * (n % 3)),
    "struct": ({"x": Value("int32")}, lambda n: {"x": n}),
    "list of structs": (List({"x": Value("int32")}), lambda n: [{"x": n}]),
    "image": (Image(), lambda n: Pillow.new("L", (2, 2), n)),
}


def same(example: Any) -> Any:
    return example


def always(example: Any) -> bool:
    return True


def joined(*streams: Any) -> Any:
    return datasets.concatenate_datasets([*streams])


PIPELINES: dict[str, Callable[[Callable[[], Any], Features], Any]] = {
    "plain": lambda rows, _: rows(),
    "map": lambda rows, _: rows().map(same),
    "map, then plain": lambda rows, _: joined(rows().map(same), rows()),
    "plain, then map": lambda rows, _: joined(rows(), rows().map(same)),
    "map with features": lambda rows, kinds: joined(rows().map(same, features=kinds), rows()),
    "filter, then plain": lambda rows, _: joined(rows().filter(always), rows()),
    "shuffled": lambda rows, _: rows().repeat(2).shuffle(seed=1, buffer_size=3),
    "interleaved": lambda rows, _: datasets.interleave_datasets(
        [rows().map(same), rows()], stopping_strategy="all_exhausted_without_replacement"
    ),
}


def shown(sample: dict[str, Any]) -> str:
    value = sample["c"]
    pixels = [value.size, value.tobytes()] if hasattr(value, "getbands") else value
    return f"{type(value)} {digest(pixels)}"


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_a_split_changes_no_value(column: str, form: str | None) -> None:
    feature, value = COLUMNS[column]
    kinds = Features({"c": feature})
    values = {"c": list(map(value, range(COUNT)))}

    def rows() -> Any:
        return Dataset.from_dict(values, features=kinds).to_iterable_dataset(num_shards=2)

    compared = []
    for name, build in PIPELINES.items():
        try:
            stream = build(rows, kinds).with_format(form)
            expected = sorted(map(shown, stream))
        except Exception:  # features that do not fit together, or the format
            continue
        stream = build(rows, kinds).with_format(form)
        loader = ResumableDataLoader(stream, 2, seed=1, collate_fn=list)
        assert sorted(shown(sample) for batch in loader for sample in batch) == expected, name
        compared.append(name)
    # torch has no tensors of times and decimal numbers.
    assert {"plain", "map", "shuffled"} <= set(compared) or form == "torch"
