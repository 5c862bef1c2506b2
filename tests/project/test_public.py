"""What the package shows: documented names, light imports, and a README that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import pytest
import torch
from PIL import Image
from subjects import ids
from torch.utils.data import TensorDataset

import dataporter

ROOT = Path(__file__).parents[2]
OPTIONAL = [
    "sklearn",
    "matplotlib",
    "datasets",
    "pyarrow",
    "PIL",
    "lightning",
    "accelerate",
    "transformers",
    "ray",
]


@pytest.mark.parametrize("name", dataporter.__all__)
def test_every_public_name_and_its_public_methods_have_docstrings(name: str) -> None:
    thing = getattr(dataporter, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{attribute}"


# The frameworks' modules need the frameworks: see tests/integrations.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(dataporter.__path__, "dataporter.")
    if not module.name.startswith(("dataporter.tools.demo", "dataporter.integrations."))
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_importing_the_package_imports_no_optional_library() -> None:
    code = f"import sys, dataporter; print([m for m in {OPTIONAL} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=True
    )
    assert ran.stdout.strip() == "[]"


def blocks_of(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readmes_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick start with a dataset and a model of the reader's own, then each block by itself."""
    monkeypatch.chdir(tmp_path)
    start, resume, *others = blocks_of("README.md")
    model = torch.nn.Linear(2, 1)
    dataset = TensorDataset(torch.arange(100))
    reader: dict[str, Any] = {"dataset": dataset, "model": model, "num_epochs": 2}
    exec(start, reader)
    assert reader["dataloader"].epoch == 2

    # Interrupted after the second batch of the first epoch, and started again.
    reader["num_epochs"] = 1
    interrupted = start.replace("        ...\n", "        seen.append(batch)\n")
    interrupted = f"{interrupted.rstrip()}\n        if len(seen) == 2: break\n"
    seen: list[Any] = []
    torch.manual_seed(1)
    exec(interrupted, {**reader, "seen": seen})
    fresh = dataporter.create_resumable_dataloader(dataset, batch_size=32, shuffle=True)
    rest: list[Any] = []
    exec(
        resume.replace("        ...\n", "        rest.append(batch)\n"),
        {"torch": torch, "dataloader": fresh, "rest": rest, "num_epochs": 1},
    )
    assert (len(seen), len(rest)) == (2, 2)
    joined = [index for batch in [*seen, *rest] for index in ids(batch[0])]
    torch.manual_seed(1)
    whole = dataporter.create_resumable_dataloader(dataset, batch_size=32, shuffle=True)
    assert joined == [index for batch in whole for index in ids(batch[0])]
    digits = hf_datasets.Dataset.from_dict(
        {"image": [Image.new("L", (28, 28), 17 * label) for label in range(10)], "label": range(10)}
    )
    monkeypatch.setattr(hf_datasets, "load_dataset", lambda name, split: digits)
    for block in others:
        exec(block, names := {})
        if "hf_dataset" in names:
            batch = next(iter(names["dataloader"]))
            assert batch["image"].dtype is torch.float16
            assert batch["image"].shape == (10, 1, 28, 28)
            assert batch["image"].amax((1, 2, 3)).tolist() == pytest.approx(
                [17 * label / 255 for label in range(10)], abs=1e-3
            )


@pytest.mark.filterwarnings("ignore:the stream has no exact state")
@pytest.mark.filterwarnings("ignore:.*failed .on_error=")
@pytest.mark.filterwarnings("ignore:the mixture has changed")
@pytest.mark.parametrize(
    "document", ["streams", "huggingface", "bad-samples", "mixtures", "sampling"]
)
def test_a_document_s_code_runs_as_printed(document: str) -> None:
    names: dict[str, Any] = {}
    for block in blocks_of(f"docs/{document}.md"):
        exec(block, names)


def test_the_picture_of_a_mixture_is_what_its_program_draws() -> None:
    program = ROOT / "docs" / "pictures" / "mixture_shares.py"
    names = runpy.run_path(str(program))
    assert names["picture"]() == program.with_suffix(".svg").read_text()


def test_the_remainder_in_the_documentation_is_exact() -> None:
    (block,) = [block for block in blocks_of("docs/exactness.md") if "remainder(" in block]
    exec(block, names := {})
    assert names["loader"].epoch == 1
    assert len(names["loader"]) == 15


def test_the_version_has_a_place_in_the_changelog_and_the_citation_names_the_author() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert "Tan" in citation
    assert "2024" in citation
