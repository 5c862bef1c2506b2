"""The Transformers Trainer: a resume is exact and immediate, also after changes of arguments."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from benchmarks.frameworks.cases import TRAINER, Case, torchrun, verdict
from benchmarks.frameworks.journal import read_journals
from benchmarks.frameworks.subject import EPOCHS, LENGTH
from benchmarks.frameworks.trial import attempt, samples_of_epochs
from killed_example import uninterrupted_and_resumed
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainingArguments, trainer
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import get_last_checkpoint

from dataporter import (
    ConfigurationError,
    InvalidStateError,
    ResumableDataLoader,
    StateMismatchError,
)
from dataporter.integrations.transformers import ResumableTrainer

SAMPLES = 45


@pytest.mark.parametrize("case", TRAINER, ids=lambda case: case.what)
def test_a_killed_training_resumes_exactly(case: Case, tmp_path: Path) -> None:
    assert verdict(case, "dataporter", tmp_path) is None


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    launchers = {1: (), 2: torchrun(2)}
    attempt("trainer", tmp_path, 0, "--every", "4", kill_at=7, launcher=launchers[before])
    resumed = attempt("trainer", tmp_path, 1, "--every", "100", launcher=launchers[after])
    saved = [entry for entry in read_journals(tmp_path, 0) if entry.step < 4]
    counted = samples_of_epochs([*saved, *resumed])
    assert len(counted) == EPOCHS
    for samples in counted.values():
        assert samples == dict.fromkeys(range(LENGTH), 1)
    state = json.loads((tmp_path / "checkpoints" / "trainer_state.json").read_text())
    in_first = math.ceil((LENGTH - 4 * 8 * before) / (8 * after))
    steps = 4 + in_first + (EPOCHS - 1) * math.ceil(LENGTH / (8 * after))
    assert state["global_step"] == state["max_steps"] == steps
    assert state["epoch"] == EPOCHS


class Numbers(Dataset[Any]):
    """Records which samples were read."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)  # the Trainer's samplers iterate over it
        self.read.append(index)
        return {"input_ids": torch.full((1 + index % 5,), index), "labels": torch.tensor(index)}


def first_tokens(samples: list[Any]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.stack([sample["input_ids"][:1] for sample in samples]),
        "labels": torch.stack([sample["labels"] for sample in samples]),
    }


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = (self.layer(input_ids[:, :1].float()) - labels).square().mean() * 1e-4
        return {"loss": loss}


class StoppedError(Exception):
    pass


class Recording(ResumableTrainer):
    """Records the samples of each update, and may stop as if killed."""

    stop_after: int | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.updates: list[list[int]] = [[]]
        self.epochs: list[float] = []

    def training_step(self, model: Any, inputs: Any, *arguments: Any) -> Any:
        self.updates[-1] += inputs["labels"].tolist()
        loss = super().training_step(model, inputs, *arguments)
        if self.accelerator.sync_gradients:
            self.updates.append([])
        return loss

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        super().log(logs, *arguments)
        if "loss" in logs:
            self.epochs.append(self.state.epoch)
            if self.state.global_step == self.stop_after:
                raise StoppedError


def recording(
    folder: Path, cls: Any = Recording, dataset: Any = None, **arguments: Any
) -> Recording:
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "save_steps": 5,
        "logging_steps": 1,
        "seed": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **arguments,
    }
    args = TrainingArguments(str(folder), **arguments)
    dataset = Numbers() if dataset is None else dataset
    return cls(Model(), args, train_dataset=dataset, data_collator=first_tokens)


def stopped_at(folder: Path, step: int, **arguments: Any) -> Recording:
    training = recording(folder, **arguments)
    training.stop_after = step
    with pytest.raises(StoppedError):
        training.train()
    return training


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({}, {"per_device_train_batch_size": 16}),
        ({}, {"per_device_train_batch_size": 3}),
        ({"gradient_accumulation_steps": 2}, {}),
        ({}, {"gradient_accumulation_steps": 2}),
        ({"gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 3}),
        (
            {"gradient_accumulation_steps": 2},
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
        ),
        ({"max_steps": 15}, {"per_device_train_batch_size": 2}),
        ({"max_steps": 15}, {"per_device_train_batch_size": 16}),
    ],
)
def test_another_batch_size_and_accumulation(
    tmp_path: Path, before: dict[str, int], after: dict[str, int]
) -> None:
    begun = stopped_at(tmp_path, 6, **before)
    after = {**before, **after}
    resumed = recording(tmp_path, **after)
    resumed.train(resume_from_checkpoint=True)
    *updates, last = resumed.updates
    assert last == []  # each batch was part of an update
    assert resumed.state.global_step == 5 + len(updates) == resumed.state.max_steps
    seen = Counter(index for update in begun.updates[:5] + updates for index in update)
    per_update = after.get("per_device_train_batch_size", 4) * after.get(
        "gradient_accumulation_steps", 1
    )
    if "max_steps" in after:
        assert resumed.state.max_steps == 15
        assert max(seen.values()) - min(seen.values()) <= 1
        assert resumed.state.epoch == pytest.approx(sum(seen.values()) / SAMPLES, abs=0.1)
    else:
        assert seen == dict.fromkeys(range(SAMPLES), 2)
        assert resumed.state.epoch == 2
        assert len(updates[-1]) == (SAMPLES % per_update or per_update)
    assert resumed.epochs == sorted(resumed.epochs)
    assert resumed.epochs[0] > begun.epochs[4]
    # The schedule ends where the training does.
    rate = resumed.lr_scheduler.get_last_lr()[0]
    assert rate == pytest.approx(0, abs=1e-12)


def test_a_resume_reads_only_the_rest(tmp_path: Path) -> None:
    stopped_at(tmp_path, 6)
    dataset = Numbers()
    recording(tmp_path, dataset=dataset).train(resume_from_checkpoint=True)
    assert len(dataset.read) == 2 * SAMPLES - 5 * 4


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length", "batch_rebalance"])
def test_the_trainers_other_orders(tmp_path: Path, strategy: str) -> None:
    alone = recording(tmp_path / "alone", train_sampling_strategy=strategy)
    alone.train()
    stopped_at(tmp_path / "stopped", 6, train_sampling_strategy=strategy)
    resumed = recording(tmp_path / "stopped", train_sampling_strategy=strategy)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.updates == alone.updates[5:]
    if strategy == "sequential":
        assert alone.updates[0] == [0, 1, 2, 3]


def test_a_plain_trainer_loads_our_checkpoint_and_its_own_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path / "ours", 6)
    checkpoint = get_last_checkpoint(str(tmp_path / "ours"))
    plain = recording(tmp_path / "ours", Trainer)
    assert plain.train(resume_from_checkpoint=checkpoint).global_step == 24
    plain = recording(tmp_path / "theirs", Trainer, max_steps=5)
    plain.train()
    with pytest.raises(InvalidStateError, match="was not saved by a ResumableTrainer"):
        recording(tmp_path / "theirs").train(resume_from_checkpoint=True)


def test_ignore_data_skip_restarts_the_epoch(tmp_path: Path) -> None:
    begun = stopped_at(tmp_path, 6)
    resumed = recording(tmp_path, ignore_data_skip=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.updates[:5] == begun.updates[:5]


def test_another_seed_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path, 6)
    with pytest.raises(StateMismatchError, match="seed"):
        recording(tmp_path, data_seed=4).train(resume_from_checkpoint=True)


def test_what_is_refused_resumes_anyway_where_the_trainer_says_so(tmp_path: Path) -> None:
    stopped_at(tmp_path, 6)
    refused = recording(tmp_path, data_seed=4)
    with pytest.raises(StateMismatchError) as refusal:
        refused.train(resume_from_checkpoint=True)
    (note,) = refusal.value.__notes__
    assert note == 'dataporter: the loader is the trainer\'s: set trainer.on_mismatch = "warn"'
    resumed = recording(tmp_path, data_seed=4)
    resumed.on_mismatch = "warn"
    with pytest.warns(RuntimeWarning, match="seed: the state has 3, this loader has 4"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 24


class Asked(Recording):
    """Receives a request for a checkpoint, as by SIGTERM, after a number of updates."""

    asked_after: int | None = None
    asked_before_reading = False

    def get_batch_samples(self, *arguments: Any) -> Any:
        if self.asked_before_reading:
            self._ask()
        return super().get_batch_samples(*arguments)

    def training_step(self, *arguments: Any) -> Any:
        self._ask()
        return super().training_step(*arguments)

    def _ask(self) -> None:
        if self.state.global_step == self.asked_after:
            (callback,) = (
                one
                for one in self.callback_handler.callbacks
                if isinstance(one, JITCheckpointCallback)
            )
            assert callback.jit_manager is not None
            callback.jit_manager.is_checkpoint_requested = True
            self.asked_after = None


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("updates", [4, 12])
@pytest.mark.parametrize("before_reading", [True, False])
def test_a_checkpoint_before_an_update_leaves_its_batches_for_the_resume(
    tmp_path: Path, accumulated: int, updates: int, before_reading: bool
) -> None:
    arguments: dict[str, Any] = {
        "enable_jit_checkpoint": True,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": 3,
        "save_strategy": "no",
    }
    alone = recording(tmp_path / "alone", **arguments)
    alone.train()
    asked = recording(tmp_path / "asked", Asked, **arguments)
    asked.asked_after, asked.asked_before_reading = updates, before_reading
    asked.train()
    assert get_last_checkpoint(str(tmp_path / "asked")).endswith(f"checkpoint-{updates}")
    resumed = recording(tmp_path / "asked", **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.updates == alone.updates[updates:]


def test_the_loader_has_the_arguments_of_the_trainers_loader(tmp_path: Path) -> None:
    arguments = {
        "dataloader_in_order": False,
        "dataloader_multiprocessing_context": "spawn",
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 3,
    }
    ours = recording(tmp_path, **arguments).get_train_dataloader()
    theirs = recording(tmp_path, Trainer, **arguments).get_train_dataloader()
    assert type(ours.multiprocessing_context) is type(theirs.multiprocessing_context)
    for name in ("in_order", "num_workers", "persistent_workers", "prefetch_factor"):
        assert getattr(ours, name) == getattr(theirs, name), name


class OwnOrder(Recording):
    def _get_train_sampler(self, train_dataset: Any) -> Any:
        return range(len(train_dataset))[::-1]


def test_a_custom_sampler_receives_the_dataset(tmp_path: Path) -> None:
    training = recording(tmp_path, OwnOrder, max_steps=1)
    training.train()
    assert training.updates[0] == [44, 43, 42, 41]


def lines_of(shards: list[int]) -> Any:
    for shard in shards:
        for number in range(shard * 15, shard * 15 + 15):
            yield {"input_ids": [number], "labels": number, "line": "unused by the model"}


def test_a_hugging_face_stream_that_does_not_know_its_columns(tmp_path: Path) -> None:
    def training(folder: str) -> Recording:
        stream = datasets.IterableDataset.from_generator(
            lines_of, gen_kwargs={"shards": [0, 1, 2]}
        ).with_format("torch")
        assert stream.column_names is None
        return recording(tmp_path / folder, dataset=stream, max_steps=20)

    alone = training("alone")
    alone.train()
    stopped = training("stopped")
    stopped.stop_after = 17
    with pytest.raises(StoppedError):
        stopped.train()
    resumed = training("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.updates == alone.updates[15:]


class Lines(IterableDataset[Any]):
    """A stream with a length, in shards of the given lengths."""

    def __init__(self, *lengths: int) -> None:
        self.lengths, self.num_shards = lengths, len(lengths)

    def __len__(self) -> int:
        return sum(self.lengths)

    def shard(self, num_shards: int, index: int) -> Any:
        assert num_shards == self.num_shards
        start = sum(self.lengths[:index])
        return (Numbers()[number] for number in range(start, start + self.lengths[index]))

    def __iter__(self) -> Any:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


@pytest.mark.filterwarnings("ignore:the stream has no exact state")
@pytest.mark.parametrize(
    ("lengths", "size"), [((45,), 3), ((45,), 8), ((12, 11, 11, 11), 4), ((12, 11, 11, 11), 8)]
)
def test_a_stream_with_a_length_is_read_to_its_end_with_another_batch_size(
    tmp_path: Path, lengths: tuple[int, ...], size: int
) -> None:
    begun = stopped_at(tmp_path, 6, dataset=Lines(*lengths))
    resumed = recording(tmp_path, dataset=Lines(*lengths), per_device_train_batch_size=size)
    resumed.train(resume_from_checkpoint=True)
    seen = Counter(index for update in begun.updates[:5] + resumed.updates for index in update)
    assert all(seen[index] >= 1 for index in range(SAMPLES))
    in_first = Counter(index for update in begun.updates[:5] for index in update)
    for update in resumed.updates:
        in_first.update(update)
        if in_first.total() == SAMPLES:
            break
    assert in_first == dict.fromkeys(range(SAMPLES), 1)


class Longer(Lines):
    """Has more samples than it says."""

    def __len__(self) -> int:
        return super().__len__() - 4


def test_a_stream_with_more_batches_than_its_length_warns(tmp_path: Path) -> None:
    with pytest.warns(
        RuntimeWarning, match="ended epoch 0 after the 11 batches .* the Longer has more"
    ):
        recording(tmp_path, dataset=Longer(13, 13, 13, 6), num_train_epochs=1).train()


class OwnLoader(Recording):
    def get_train_dataloader(self) -> Any:
        own = ResumableDataLoader(
            self.train_dataset, 4, shuffle=True, seed=9, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(own)


class PlainLoader(Recording):
    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(DataLoader(self.train_dataset, 4))


class UnpreparedLoader(Recording):
    def get_train_dataloader(self) -> Any:
        return ResumableDataLoader(self.train_dataset, 4, collate_fn=self.data_collator)


class PlainTrainer(Trainer):
    get_train_dataloader = OwnLoader.get_train_dataloader


def test_a_custom_loader(tmp_path: Path) -> None:
    alone = recording(tmp_path / "alone", OwnLoader)
    alone.train()
    stopped_at(tmp_path / "stopped", 6, cls=OwnLoader)
    resumed = recording(tmp_path / "stopped", OwnLoader)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.updates == alone.updates[5:]
    with pytest.raises(ConfigurationError, match="returned a DataLoader"):
        recording(tmp_path, PlainLoader).train()
    with pytest.raises(
        ConfigurationError, match=r"returned a ResumableDataLoader, .* not prepared"
    ):
        recording(tmp_path, UnpreparedLoader).train()


def test_a_plain_trainer_with_our_loader_is_told_to_use_ours(tmp_path: Path) -> None:
    recording(tmp_path, PlainTrainer, max_steps=5).train()
    with pytest.raises(ConfigurationError, match="ResumableTrainer"):
        recording(tmp_path, PlainTrainer).train(resume_from_checkpoint=True)


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    theirs = trainer.skip_first_batches
    stopped_at(tmp_path, 6)
    assert trainer.skip_first_batches is theirs


def test_the_example_killed_equals_the_example_uninterrupted(tmp_path: Path) -> None:
    def shown(lines: list[str]) -> list[str]:
        return [line for line in lines if line.startswith("{'loss'")]

    alone, resumed = uninterrupted_and_resumed(tmp_path, "trainer_training.py", "'epoch': '1.2'")
    assert len(shown(alone)) == 30
    assert 10 <= len(shown(resumed)) < 29
    assert shown(alone)[-len(shown(resumed)) :] == shown(resumed)
