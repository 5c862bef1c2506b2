"""The integrations' docstrings run, and the guide names each integration."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import TrainingArguments

from dataporter import ResumableDataLoader, integrations
from dataporter.integrations.transformers import ResumableTrainer

MODULES = [module.name for module in pkgutil.iter_modules(integrations.__path__)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "frameworks.md"


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    found = importlib.import_module(f"dataporter.integrations.{module}")
    assert doctest.testmod(found).failed == 0


def test_the_document_names_every_integration() -> None:
    named = set(re.findall(r"dataporter\.integrations\.(\w+)", DOCUMENT.read_text()))
    assert named == set(MODULES) - {"callers", "lightning_hooks"}


def blocks_on_waiting() -> list[str]:
    """The plain loop, the line for Lightning, and the class for the Trainer."""
    section = DOCUMENT.read_text().split("## How long the training waits for data")[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_a_plain_loop_prints_its_wait(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks_on_waiting()[0], {})
    lines = capsys.readouterr().out.splitlines()
    shown = r"step (\d+): [\d.]+ batches/s, data-bound: (\d+)%"
    found = [match for line in lines if (match := re.fullmatch(shown, line))]
    assert [int(match[1]) for match in found] == list(range(1, 11))
    assert all(0 < int(match[2]) <= 100 for match in found)


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_the_wait(tmp_path: Path) -> None:
    line = compile(blocks_on_waiting()[1], "frameworks.md", "exec")

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            exec(line, {"self": self})
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer: Any = Trainer(
        default_root_dir=tmp_path,
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), ResumableDataLoader(torch.arange(12.0), 2, seed=1))
    assert 0 < trainer.logged_metrics["data_bound"] <= 1


class Squares(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).square().mean()}


def test_the_trainer_logs_the_wait(tmp_path: Path) -> None:
    exec(blocks_on_waiting()[2], names := {"ResumableTrainer": ResumableTrainer})
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    samples = [{"x": torch.ones(1)} for _ in range(12)]
    trainer: Any = names["LoggingTrainer"](Squares(), arguments, train_dataset=samples)
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(0 < entry["data_bound"] <= 1 for entry in losses)
