"""A keyword that does not exist: the error names the one that was meant."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import dataporter
from dataporter import (
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    ResumableDistributedSampler,
    ResumableSampler,
    ShuffledStream,
    UnifiedHFDatasetWrapper,
    create_resumable_dataloader,
)
from dataporter.keywords import FOREIGN, names_keywords

ROWS = Dataset.from_dict({"label": [0, 1]})
UNEXPECTED = "{}() got an unexpected keyword argument {!r}{}"


def message_of(act: Callable[[], Any]) -> str:
    with pytest.raises(TypeError) as refused:
        act()
    assert type(refused.value) is TypeError
    return str(refused.value)


@pytest.mark.parametrize(
    ("call", "name", "end"),
    [
        ("ResumableDataLoader", "batchsize", ": did you mean batch_size=?"),
        ("ResumableDataLoader", "Batch_Size", ": did you mean batch_size=?"),
        ("ResumableDataLoader", "batch_sizes", ": did you mean batch_size=?"),
        ("ResumableDataLoader", "nworkers", ": did you mean num_workers=?"),
        ("ResumableDataLoader", "persistant_workers", ": did you mean persistent_workers=?"),
        (
            "ResumableDataLoader",
            "snapshot_every_n_steps",
            ", the name in torchdata: write snapshot_every=",
        ),
        (
            "ResumableDataLoader",
            "num_replicas",
            ", the name in torch's DistributedSampler: write world_size=",
        ),
        (
            "ResumableDataLoader",
            "per_device_train_batch_size",
            ", the name in Transformers: write batch_size=",
        ),
        (
            "ResumableDataLoader",
            "dataloader_num_workers",
            ", the name in Transformers: write num_workers=",
        ),
        (
            "ResumableDataLoader",
            "even_batches",
            ', the name in Accelerate: write tail= (tail="pad" or tail="uneven")',
        ),
        (
            "ResumableDataLoader",
            "use_distributed_sampler",
            ", the name in Lightning: give it to the Trainer, or leave it out",
        ),
        ("ResumableDataLoader", "shuffle_seed", ", the name in MosaicML Streaming: write seed="),
        (
            "ResumableDataLoader",
            "num_canonical_nodes",
            ", the name in MosaicML Streaming: leave it out, since any number of ranks can resume "
            "without it",
        ),
        ("ResumableSampler", "batchsize", ": did you mean batch_size=?"),
        (
            "ResumableSampler",
            "xyz",
            ": expected some of dataset, batch_size, shuffle, order, seed, drop_last, tail, "
            "fingerprint",
        ),
        (
            "ResumableDistributedSampler",
            "num_replicas",
            ", the name in torch's DistributedSampler: write world_size=",
        ),
        ("UnifiedHFDatasetWrapper", "dtype_conversion", ": did you mean dtype_conversions=?"),
        ("KeyBasedDtypeConverter", "onloss", ": did you mean on_loss=?"),
        (
            "ShuffledStream",
            "buffer_size",
            ", the name in Hugging Face's shuffle(): write window=",
        ),
        ("DevicePrefetcher", "widened", ": did you mean widen=?"),
    ],
)
def test_a_keyword_that_does_not_exist(call: str, name: str, end: str) -> None:
    function = getattr(dataporter, call)
    dataset = ROWS if call == "UnifiedHFDatasetWrapper" else [1, 2, 3]
    message = message_of(lambda: function(dataset, **{name: 1}))
    assert message == UNEXPECTED.format(call, name, end)


def test_the_function_that_creates_a_loader_says_so_as_well() -> None:
    message = message_of(lambda: create_resumable_dataloader([1, 2, 3], batchsize=1))
    assert message == UNEXPECTED.format(
        "ResumableDataLoader", "batchsize", ": did you mean batch_size=?"
    )


def test_methods_say_so_as_well() -> None:
    loader: Any = ResumableDataLoader([1, 2, 3])
    assert message_of(lambda: loader.seek(steps=1)) == UNEXPECTED.format(
        "ResumableDataLoader.seek", "steps", ": did you mean step=?"
    )
    assert message_of(lambda: loader.load_state_dict({}, strict=False)) == UNEXPECTED.format(
        "ResumableDataLoader.load_state_dict",
        "strict",
        ', the name in torch\'s Module.load_state_dict: write on_mismatch= (on_mismatch="warn")',
    )


def test_a_subclass_that_passes_its_keywords_on() -> None:
    class Mine(ResumableDataLoader[Any]):
        def __init__(self, dataset: Any, mine: int, **others: Any) -> None:
            super().__init__(dataset, **others)
            self.mine = mine

    assert Mine([1, 2], 3, batch_size=2).mine == 3
    assert "did you mean batch_size=?" in message_of(lambda: Mine([1, 2], 3, batchsize=2))


@pytest.mark.parametrize(
    "function",
    [
        ResumableDataLoader,
        ResumableSampler,
        ResumableDistributedSampler,
        UnifiedHFDatasetWrapper,
        KeyBasedDtypeConverter,
        ShuffledStream,
        DevicePrefetcher,
    ],
)
def test_the_signature_is_the_written_one(function: Any) -> None:
    code = inspect.unwrap(function.__init__).__code__
    written = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    shown = inspect.signature(function).parameters.values()
    assert tuple(each.name for each in shown) == written
    assert not {each.kind for each in shown} & {inspect.Parameter.VAR_KEYWORD}


def test_every_foreign_name_that_has_ours_leads_to_one_that_exists() -> None:
    known = {
        name
        for function in (ResumableDataLoader, ResumableDataLoader.load_state_dict, ShuffledStream)
        for name in inspect.signature(function).parameters
    }
    for name, foreign in FOREIGN.items():
        assert name not in known, f"{name} exists: it is not foreign"
        assert set(foreign.ours) <= known, name
        assert foreign.ours or foreign.note, name


def test_positional_arguments_and_pythons_own_errors_stay() -> None:
    @names_keywords
    def add(first: int, second: int = 2) -> int:
        return first + second

    assert (add(1), add(1, 3), add(first=1, second=4)) == (3, 4, 5)
    wrong: Any = add
    with pytest.raises(TypeError, match=re.escape("missing 1 required positional argument")):
        wrong()
    with pytest.raises(TypeError, match="multiple values for argument 'first'"):
        wrong(1, first=1)
    assert torch.utils.data.DataLoader([1]).batch_size == 1  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_type_checker_sees_a_misspelt_keyword(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from dataporter import ResumableDataLoader, ResumableSampler\n"
        "ResumableDataLoader([1], batch_size=2)\n"
        "ResumableDataLoader([1], batchsize=2)\n"
        "ResumableSampler([1], batchsize=2)\n"
        "ResumableDataLoader([1]).seek(steps=2)\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", str(program)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(dataporter.__file__).parents[1])},
        check=False,
    )
    lines = [line for line in checked.stdout.splitlines() if "call-arg" in line]
    assert [line.split(":")[1] for line in lines] == ["3", "4", "5"], checked.stdout
