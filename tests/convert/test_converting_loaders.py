"""Converters in loaders: in every engine, resumed, and widened again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from example_batches import ROWS

from dataporter import (
    ConfigurationError,
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    LossyConversionError,
    ResumableDataLoader,
)

RULES = {"image": "uint8:scale", "label": "int32", "mask": "bits"}


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return {name: column[index] for name, column in ROWS.items()}


@pytest.mark.parametrize("dataset", [ROWS, Rows()], ids=["columns", "rows"])
@pytest.mark.parametrize(
    ("num_workers", "worker_kind"), [(0, "process"), (2, "process"), (2, "thread")]
)
def test_every_engine_converts_and_the_widened_stream_is_the_plain_one(
    dataset: Any, num_workers: int, worker_kind: str
) -> None:
    def loader(**arguments: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            dataset, 8, shuffle=True, seed=3, num_workers=num_workers, worker_kind=worker_kind,
            **arguments,
        )  # fmt: skip

    converting = loader(converter=RULES)
    converter = converting.converter
    assert converter is not None
    plain = list(loader())
    narrow = list(converting)
    assert len(narrow) == len(plain)
    for small, batch in zip(narrow, plain):
        assert small["image"].dtype is torch.uint8
        assert small["label"].dtype is torch.int32
        assert small["mask"].shape == (len(batch["label"]), 2)
    widened = list(DevicePrefetcher(loader(converter=converter), "cpu", widen=converter))
    for wide, batch in zip(widened, plain):
        for name in ROWS:
            assert wide[name].dtype is batch[name].dtype
            assert torch.equal(wide[name], batch[name])


def test_converted_and_plain_streams_resume_each_other() -> None:
    """The converter is not part of the state: the samples are the same."""

    def loader(converter: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(ROWS, 8, shuffle=True, seed=3, converter=converter)

    whole = [batch["label"].tolist() for batch in loader(None)]
    for first, second in [(RULES, None), (None, RULES), (RULES, {"label": "int16"})]:
        begun = loader(first)
        batches = iter(begun)
        seen = [next(batches)["label"].tolist() for _ in range(3)]
        resumed = loader(second)
        resumed.load_state_dict(begun.state_dict())
        assert seen + [batch["label"].tolist() for batch in resumed] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loss_in_the_loader_names_the_sample_of_the_dataset(num_workers: int) -> None:
    loader = ResumableDataLoader(
        {"label": torch.arange(400)}, 10, num_workers=num_workers, converter={"label": "uint8"}
    )
    with pytest.raises(LossyConversionError) as raised:
        list(loader)
    notes = "".join(raised.value.__notes__)
    assert (raised.value.value, raised.value.sample) == (256, 6)
    assert "index 256 in the dataset" in notes
    assert "epoch 0, step 25" in notes
    # The batch was not delivered.
    assert loader.step == 25


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_new_converter_takes_effect_at_the_next_pass(persistent_workers: bool) -> None:
    loader = ResumableDataLoader(
        Rows(), 8, num_workers=1, persistent_workers=persistent_workers,
        converter={"image": "float16"},
    )  # fmt: skip
    assert {batch["image"].dtype for batch in loader} == {torch.float16}
    first = loader.usage().workers
    assert {batch["image"].dtype for batch in loader} == {torch.float16}
    assert (loader.usage().workers == first) or not persistent_workers
    loader.converter = KeyBasedDtypeConverter({"image": "float64"})
    assert {batch["image"].dtype for batch in loader} == {torch.float64}
    loader.converter = {"image": "bfloat16"}  # type: ignore[assignment]  # rules are accepted too
    assert {batch["image"].dtype for batch in loader} == {torch.bfloat16}
    assert isinstance(loader.converter, KeyBasedDtypeConverter)
    loader.converter = None
    assert {batch["image"].dtype for batch in loader} == {torch.float32}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_strict_converter_refuses_the_first_batch_before_it_counts(num_workers: int) -> None:
    converter = KeyBasedDtypeConverter({"nowhere": "uint8"}, strict=True)
    loader = ResumableDataLoader(ROWS, 10, num_workers=num_workers, converter=converter)
    with pytest.raises(ConfigurationError, match="'nowhere'"):
        next(iter(loader))
    assert loader.position == 0


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(6))


def test_a_stream_is_converted_too() -> None:
    loader = ResumableDataLoader(Stream(), 3, converter={"": "uint8"})
    assert [(batch.dtype, batch.tolist()) for batch in loader] == [
        (torch.uint8, [0, 1, 2]),
        (torch.uint8, [3, 4, 5]),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_converter_set_during_a_pass_waits_for_the_next_one(num_workers: int) -> None:
    """The converter that converts the batches of this pass also records their dtypes."""
    loader = ResumableDataLoader(ROWS, 10, num_workers=num_workers, converter=RULES)
    before = loader.converter
    assert before is not None
    batches = iter(loader)
    next(batches)
    loader.converter = {"label": "int16"}  # type: ignore[assignment]  # rules are accepted too
    for batch in batches:
        assert before.widen(batch)["label"].dtype is torch.int64
        assert batch["label"].dtype is torch.int32
    assert next(iter(loader))["label"].dtype is torch.int16
    assert loader.converter.state_dict()["originals"] == {"label": ["int64"]}
