"""Fabric: a state in `fabric.save` is exact, back and forth, and on other numbers of devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.frameworks.cases import FABRIC, Case, torchrun, verdict
from benchmarks.frameworks.subject import EPOCHS, LENGTH, build_loader, build_model
from benchmarks.frameworks.trial import attempt, samples_of_epochs
from lightning.fabric import Fabric
from torch import nn


@pytest.mark.parametrize("case", FABRIC, ids=lambda case: case.what)
def test_a_killed_training_resumes_exactly(case: Case, tmp_path: Path) -> None:
    assert verdict(case, "dataporter", tmp_path) is None


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_devices_reads_the_rest_once(
    tmp_path: Path, before: int, after: int
) -> None:
    launchers: dict[int, Any] = {1: (), 2: torchrun(2)}
    begun = attempt("fabric", tmp_path, 0, "--every", "3", kill_at=4, launcher=launchers[before])
    seen = samples_of_epochs(entry for entry in begun if entry.step < 3)[0]
    counted = samples_of_epochs(attempt("fabric", tmp_path, 1, launcher=launchers[after]))
    assert len(counted) == EPOCHS
    assert seen.total() == 3 * 8 * before
    for whole in (seen + counted[0], counted[1], counted[2]):
        assert whole == dict.fromkeys(range(LENGTH), 1)


def test_fabric_saves_and_loads_the_loader_it_has_wrapped(tmp_path: Path) -> None:
    def train(
        save_at: int | None = None, path: Path | None = None, *, goes_back: bool = False
    ) -> list[Any]:
        torch.manual_seed(1 if path is None else 2)
        fabric = Fabric(accelerator="cpu", devices=1)
        model = build_model()
        model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters()))
        loader = build_loader("dataporter")
        wrapped = fabric.setup_dataloaders(loader)
        state = {"model": model, "optimizer": optimizer, "loader": wrapped}
        if path is not None:
            fabric.load(path, state)
        steps: list[Any] = []

        def remaining_steps() -> Iterator[Any]:
            for _ in range(loader.epoch, 3):
                for batch in wrapped:
                    loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
                    optimizer.zero_grad()
                    fabric.backward(loss)
                    optimizer.step()
                    yield batch["id"].tolist(), loss.item()

        for step in remaining_steps():
            steps.append(step)
            if len(steps) == save_at:
                fabric.save(tmp_path / "fabric.ckpt", state)
        if goes_back:
            fabric.load(tmp_path / "fabric.ckpt", state)
            return list(remaining_steps())
        return steps

    alone = train()
    assert len(alone) == 36
    for save_at in (5, 12, 29):
        assert train(save_at, goes_back=True) == alone[save_at:], save_at
        assert train(path=tmp_path / "fabric.ckpt") == alone[save_at:], save_at
