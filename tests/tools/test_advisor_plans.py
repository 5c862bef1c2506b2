"""Plans of an advisor: printed, as JSON, at the command line; and errors."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_advice import Counting, Watched
from torch.utils.data import DataLoader, IterableDataset
from typer.testing import CliRunner

from dataporter import (
    ConfigurationError,
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    SampleError,
    UnsupportedDatasetError,
    suggest_conversions,
)
from dataporter.seeding.generators import global_state
from dataporter_cli import main

# ---- the printed plan


def test_the_rules_can_be_pasted() -> None:
    data = [{"a.b": 5, "it's": torch.tensor([1 / 3]), "*": 1.5, "[1]": 7}]
    plan = suggest_conversions(data, tolerance=1e-3)
    printed = str(plan)
    pasted = printed[printed.index("KeyBasedDtypeConverter(") :]
    converter = eval(pasted, {"KeyBasedDtypeConverter": KeyBasedDtypeConverter})
    assert converter.rules == plan.as_rules()
    assert converter.conversion.rtol == 1e-3
    rules = pasted[pasted.index("{") : pasted.index("}") + 1]
    assert ast.literal_eval(rules) == plan.as_rules()
    assert "rounded: values change" in printed
    assert "guess: " not in printed, "there is none"


def test_a_table_has_a_width_and_loses_nothing() -> None:
    path = "a" * 150
    plan = suggest_conversions([{path: 199, "[red]b[/red]": 2.5, "ü": 1e-30}])
    lines = [line for line in str(plan).splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 100
    assert "".join(line.split("|")[1].strip() for line in lines).count("a") >= 150
    assert "1.3x" in str(plan)
    assert r"\\[red\\]b\\[/red\\]" in str(plan)


def test_json() -> None:
    plan = suggest_conversions({"x": np.array([0.5, np.inf, np.nan]), "y": np.arange(3)})
    printed = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert printed == plan.to_dict()
    assert printed["rules"] == {"x": "float16", "y": "uint8"}
    assert printed["suggestions"][0]["low"] == printed["suggestions"][0]["high"] == 0.5
    assert printed["suggestions"][0]["notes"] == ["also holds infinity or nan"]
    assert (printed["before"], printed["after"], printed["saved"]) == (16, 3, 1 - 3 / 16)


# ---- errors


class Stopping(Watched):
    def __getitem__(self, index: int) -> int:
        raise StopIteration


class Failing(Watched):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise ZeroDivisionError("three")
        return index


class FailingStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError("three")


DATA = {"x": [1, 2], "y": 0.5, "z": True}


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([1], {"samples": 0}, ConfigurationError, "samples=0"),
    ([1], {"samples": -1}, ConfigurationError, "samples=-1"),
    ([1], {"samples": 1.5}, ConfigurationError, "samples=1.5"),
    ([1], {"seed": -1}, ConfigurationError, "seed=-1"),
    ([1], {"tolerance": -1}, ConfigurationError, "tolerance=-1"),
    ([1], {"tolerance": float("nan")}, ConfigurationError, "tolerance=nan"),
    ([1], {"tolerance": "x"}, ConfigurationError, "tolerance='x'"),
    ([1], {"maximum": [5]}, ConfigurationError, "maximum=[5]"),
    ([1], {"maximum": {"": 1.5}}, ConfigurationError, "got 1.5"),
    ([DATA], {"maximum": {"nix": 5}}, ConfigurationError, "'x[0]', 'x[1]', 'y', 'z'"),
    ([DATA], {"maximum": {"x[": 5}}, ConfigurationError, "cannot be read"),
    ([DATA], {"maximum": {"x[1]": 1}}, ConfigurationError, "1 is less than 2"),
    ([DATA], {"maximum": {"y": 1}}, ConfigurationError, "it holds float64"),
    ([DATA], {"maximum": {"z": 1}}, ConfigurationError, "it holds bool"),
    ([], {}, ConfigurationError, "no samples"),
    (Counting(0), {}, ConfigurationError, "no samples"),
    ({"x": np.ones(3), "y": np.ones(2)}, {}, ConfigurationError, "one length"),
    (5, {}, UnsupportedDatasetError, "int: expected a dataset"),
    (DevicePrefetcher([1], "cpu"), {}, UnsupportedDatasetError, "pass the loader"),
    ({"x": "y"}, {}, UnsupportedDatasetError, "dict"),
    (Stopping(3), {}, SampleError, "index 0"),
]


@pytest.mark.parametrize(("source", "arguments", "kind", "words"), WRONG)
def test_mistakes_are_named(
    source: Any, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as refused:
        suggest_conversions(source, **arguments)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (Failing(10), "the sample with index 3"),
        (DataLoader(Failing(10), 2), "the sample with index 3"),
        (FailingStream(), "after the first 3"),
        (DataLoader(FailingStream(), 2), "after the first 3"),
        (DataLoader(range(9), 4, collate_fn=lambda s: s[0] // 0), "indices [0, 1, 2, 3]"),  # type: ignore[arg-type]
    ],
)
def test_an_error_of_the_dataset_is_raised_with_its_index(source: Any, note: str) -> None:
    before = global_state()
    with pytest.raises(ZeroDivisionError) as failed:
        suggest_conversions(source)
    assert note in "".join(failed.value.__notes__)
    assert global_state() == before


# ---- the command


MODULE = """
import random
import torch
from torch.utils.data import DataLoader
from dataclasses import dataclass

@dataclass
class Holder:
    inner: object

data = {"ids": torch.arange(3000) % 200, "y": torch.full((3000,), 0.3)}
loader = DataLoader(torch.arange(40), 8)
holder = Holder(data)

def make():
    return data

def wants(arguments):
    return data

def breaks():
    raise ZeroDivisionError("by zero\\nand more")

class Broken:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("nothing here")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "own_data.py").write_text(MODULE)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "lacks.py").write_text("import no_such_library")
    return tmp_path


def analyze(*arguments: str) -> str:
    ran = CliRunner().invoke(main, ["analyze", *arguments])
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.parametrize("name", ["data", "make", "holder.inner"])
@pytest.mark.parametrize("where", ["own_data", "own_data.py", "{}/own_data.py", "./own_data.py"])
def test_targets(here: Path, where: str, name: str) -> None:
    output = analyze(f"{where.format(here)}:{name}", "--samples", "50")
    assert "'ids': 'uint8',  # guess" in output
    assert "50 of 3,000 samples" in output


def test_a_file_may_have_the_name_of_a_module(here: Path) -> None:
    (here / "json.py").write_text("data = [5]")
    assert "'': 'uint8'" in analyze("json.py:data")
    assert json.dumps(5) == "5"


def test_the_options_of_the_command(here: Path) -> None:
    options = ["--tolerance", "0.001", "--maximum", "ids=50257", "--widened", "--json"]
    printed = json.loads(analyze("own_data:data", *options))
    assert printed["rules"] == {"ids": "int32", "y": "float16"}
    assert printed["samples"] == 1000
    assert [one["certainty"] for one in printed["suggestions"]] == ["certain", "guess"]
    assert [one["rounded"] for one in printed["suggestions"]] == [False, True]
    assert "'': 'uint8',  # certain" in analyze("own_data:loader")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own_data"], "expected package.module:name"),
        (["own_data:"], "expected package.module:name"),
        (["own_data:nix"], "own_data has no nix; it has"),
        (["own_data.py:holder.nix"], "has no holder.nix"),
        (["nix.py:data"], "there is no file nix.py"),
        (["no_such_module:data"], "No module named 'no_such_module'"),
        (["lacks:data"], "No module named 'no_such_library'"),
        (["leaves.py:data"], "SystemExit: 3"),
        (["own_data:wants"], "a required argument: 'arguments'): add --arg arguments=..."),
        (["own_data:wants", "--arg", "other=1"], "it takes --arg arguments=..."),
        (["own_data:breaks"], "ZeroDivisionError: by zero and more"),
        (["own_data:Broken"], "KeyError: 'nothing here'; dataporter: while reading the sample"),
        (["own_data:data", "--maximum", "ids"], "expected PATH=N"),
        (["own_data:data", "--maximum", "nix=5"], "the paths are 'ids', 'y'"),
        (["own_data:Holder"], "add --arg inner=..."),
    ],
)
def test_the_mistakes_of_the_command_are_one_line(
    here: Path, arguments: list[str], words: str
) -> None:
    ran = CliRunner().invoke(main, ["analyze", *arguments])
    assert ran.exit_code == 2
    assert words in ran.output
    assert ran.output.startswith("dataporter: analyze: ")
    assert len(ran.output.splitlines()) == 1
    assert ran.stdout == ""
