"""Lightning: every checkpoint of a training resumes exactly, whichever hook has taken it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.frameworks.lightning import DigitStream
from benchmarks.frameworks.subject import LENGTH, SEED, Digits, build_model
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.trainer.connectors import callback_connector
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset

from dataporter import (
    DevicePrefetcher,
    MissingLibraryError,
    ResumableDataLoader,
    StateMismatchError,
)
from dataporter.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the callbacks that a test names."""
    monkeypatch.setattr(
        callback_connector, "_load_external_callbacks", lambda group: [], raising=True
    )


class Learner(LightningModule):
    """Records its batches."""

    def __init__(self, *, estimates: bool = False) -> None:
        super().__init__()
        self.model, self.estimates = build_model(), estimates
        self.steps: list[Any] = []
        self.validations: list[Any] = []

    def training_step(self, batch: Any, batch_index: int) -> Any:
        parts = batch if isinstance(batch, list) else [batch]
        given = [part if part is None else part["id"].tolist() for part in parts]
        part = next(part for part in parts if part is not None)
        loss = nn.functional.cross_entropy(self.model(part["pixels"]), part["label"])
        self.steps.append((self.trainer.current_epoch, batch_index, given, loss.item()))
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        if not self.trainer.sanity_checking:
            self.validations.append((batch["id"].tolist(), batch["pixels"].sum().item()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        if not self.estimates:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SaveAlways(Callback):
    """Saves a checkpoint in each of the hooks in which users do."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.saved: list[tuple[Path, int, int]] = []

    def save(self, trainer: Trainer, hook: str) -> None:
        if not trainer.sanity_checking:
            learner = trainer.lightning_module
            path = self.home / f"{len(self.saved):02d}-{hook}.ckpt"
            self.saved.append((path, len(learner.steps), len(learner.validations)))
            trainer.save_checkpoint(path)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        validates = trainer.val_check_batch is not None and trainer.enable_validation
        batches = trainer.fit_loop.epoch_loop.batch_idx + 1
        # After a resume from right before a validation, Lightning skips that validation.
        if not (validates and batches % trainer.val_check_batch == 0):
            self.save(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_train_epoch_end")


def fit(
    loader: Any,
    *callbacks: Callback,
    validation: Any = None,
    checkpoint: Path | None = None,
    estimates: bool = False,
    **options: Any,
) -> Learner:
    torch.manual_seed(1 if checkpoint is None else 2)
    learner = Learner(estimates=estimates)
    trainer = Trainer(
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, loader, validation, ckpt_path=checkpoint)
    return learner


def long() -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Digits(), 16, shuffle=True, seed=SEED)  # 6 batches


def custom_sampler() -> ResumableDataLoader[Any]:
    digits = Digits()
    sampler = DistributedSampler(digits, num_replicas=1, rank=0, seed=SEED)
    return ResumableDataLoader(digits, 16, sampler=sampler, seed=SEED)


def short(samples: int) -> ResumableDataLoader[Any]:
    digits = Subset(Digits(), range(samples))
    return ResumableDataLoader(digits, 16, shuffle=True, seed=SEED + 1)


def stream() -> ResumableDataLoader[Any]:
    return ResumableDataLoader(DigitStream(), 16, seed=SEED)


def hugging_face() -> ResumableDataLoader[Any]:
    datasets = pytest.importorskip("datasets")
    digits = Digits()
    columns = {"pixels": digits.pixels.tolist(), "label": digits.labels.tolist()}
    rows = datasets.Dataset.from_dict({"id": list(range(LENGTH)), **columns})
    return ResumableDataLoader(
        rows.with_format("torch").to_iterable_dataset(num_shards=5), 16, seed=SEED
    )


class Ahead(DevicePrefetcher[Any]):
    """Reads ahead as on an accelerator."""

    reads_ahead = True


def together(
    mode: str, *loaders: Callable[[], ResumableDataLoader[Any]]
) -> Callable[[], CombinedLoader]:
    return lambda: CombinedLoader([loader() for loader in loaders], mode)


TRAININGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "one loader": (long, {}),
    "a whole schedule": (long, {"estimates": True}),
    "max_steps": (long, {"max_epochs": None, "max_steps": 16}),
    "limit_train_batches": (long, {"limit_train_batches": 4}),
    "reloaded each epoch": (long, {"reload_dataloaders_every_n_epochs": 1}),
    "validation": (long, {"validation": long, "val_check_interval": 3}),
    "min_size": (together("min_size", long, lambda: short(40)), {}),
    "max_size": (together("max_size", long, lambda: short(40)), {}),
    "cycle": (together("max_size_cycle", long, lambda: short(40)), {"max_epochs": 4}),
    "prefetcher": (lambda: Ahead(long(), "cpu"), {"limit_train_batches": 4}),
    "prefetcher, stream": (lambda: Ahead(stream(), "cpu"), {}),
    "stream, reloaded": (stream, {"reload_dataloaders_every_n_epochs": 2, "max_epochs": 4}),
    "custom sampler": (custom_sampler, {}),
    "custom sampler, cycle": (together("max_size_cycle", custom_sampler, lambda: short(40)), {}),
    "cycle, ends together": (together("max_size_cycle", lambda: short(32), long), {}),
    "stream": (stream, {}),
    "stream, max_steps": (stream, {"max_epochs": None, "max_steps": 16}),
    "streams, validation": (stream, {"validation": stream, "val_check_interval": 3}),
    "stream, cycle": (together("max_size_cycle", stream, lambda: short(40)), {}),
    "stream, max_size": (together("max_size", lambda: short(40), stream), {}),
    "Hugging Face's stream": (hugging_face, {"max_epochs": 2}),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_checkpoint_of_a_training_resumes_exactly(name: str, tmp_path: Path) -> None:
    build, options = TRAININGS[name]
    options = dict(options)
    validation = options.pop("validation", None)

    def run(*callbacks: Callback, checkpoint: Path | None = None) -> Learner:
        data = {"validation": validation and validation(), "checkpoint": checkpoint}
        return fit(build(), *callbacks, **data, **options)

    alone = run(always := SaveAlways(tmp_path))
    assert len(always.saved) > 8
    for path, steps, validations in always.saved:
        resumed = run(checkpoint=path)
        assert resumed.steps == alone.steps[steps:], path.name
        assert resumed.validations == alone.validations[validations:], path.name


class SaveInStep(SaveAlways):
    """Saves where an epoch begins, and where a batch was read and its step is not done."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_train_batch_start")

    def on_after_backward(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_after_backward")
        path, steps, validations = self.saved.pop()
        self.saved.append((path, steps - 1, validations))

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_train_epoch_start")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The base class saves here; this one does not."""

    on_validation_end = on_train_epoch_end = on_train_batch_end


@pytest.mark.parametrize(
    "name", ["validation", "max_size", "stream", "custom sampler", "prefetcher, stream"]
)
def test_a_checkpoint_inside_a_step_repeats_the_step(name: str, tmp_path: Path) -> None:
    build, options = TRAININGS[name]
    data, options = options.get("validation"), {**options, "max_epochs": 2, "validation": None}

    def run(*callbacks: Callback, checkpoint: Path | None = None) -> Learner:
        return fit(
            build(), *callbacks, **{**options, "validation": data and data()}, checkpoint=checkpoint
        )

    alone = run(always := SaveInStep(tmp_path))
    assert len(always.saved) == 26
    for path, steps, validations in always.saved:
        resumed = run(checkpoint=path)
        assert resumed.steps == alone.steps[steps:], path.name
        assert resumed.validations == alone.validations[validations:], path.name


@pytest.mark.parametrize("build", [long, stream])
def test_a_step_that_failed_is_repeated(build: Callable[[], Any], tmp_path: Path) -> None:
    class Fails(Callback):
        def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 8:
                raise KeyError

    alone = fit(build())
    saves = OnExceptionCheckpoint(tmp_path, "failed")
    with pytest.raises(KeyError):
        fit(build(), Fails(), saves, enable_checkpointing=True)
    assert fit(build(), checkpoint=tmp_path / "failed.ckpt").steps == alone.steps[8:]


def test_a_checkpoint_before_the_first_step_of_a_resume_has_its_position(
    tmp_path: Path,
) -> None:
    class SaveAtStart(SaveAlways):
        def on_train_start(self, trainer: Trainer, *_: Any) -> None:
            self.save(trainer, "on_train_start")

    (tmp_path / "first").mkdir()
    alone = fit(long(), always := SaveAlways(tmp_path / "first"))
    path, steps, _ = always.saved[8]
    fit(long(), again := SaveAtStart(tmp_path), checkpoint=path)
    assert fit(long(), checkpoint=again.saved[0][0]).steps == alone.steps[steps:]


def test_the_generator_inside_a_sampler_that_lightning_shards_is_resumed() -> None:
    def build() -> ResumableDataLoader[Any]:
        random = RandomSampler(range(40), generator=torch.Generator().manual_seed(SEED))
        sampler = DistributedSamplerWrapper(random, num_replicas=2, rank=1)
        return ResumableDataLoader(range(40), 4, sampler=sampler, seed=SEED)

    loader = build()
    epochs = [[batch.tolist() for batch in loader] for _ in loader.epochs(3)]
    assert epochs[1] != epochs[2]
    loader.seek(epoch=2, step=2)
    resumed = build()
    resumed.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in resumed] == epochs[2][2:]


@pytest.mark.parametrize(
    ("build", "hook"),
    [
        (long, "on_train_epoch_start"),
        (stream, "on_train_epoch_end"),
    ],
)
def test_an_epoch_that_a_callback_sets_is_followed(build: Callable[[], Any], hook: str) -> None:
    again = Callback()
    setattr(again, hook, lambda *_: loader.seek(epoch=0))
    loader = build()
    ids = [ids for _, _, ids, _ in fit(loader, again).steps]
    assert ids == 3 * ids[:6]


def test_an_epoch_that_a_callback_sets_too_late_is_an_error() -> None:
    """Lightning has read a batch of a stream ahead when an epoch starts."""
    again = Callback()
    again.on_train_epoch_start = lambda *_: loader.seek(epoch=0)  # type: ignore[method-assign]
    loader = stream()
    with pytest.raises(ConfigurationError, match="this iterator began before that"):
        fit(loader, again)


@pytest.mark.parametrize("build", [long, stream])
def test_a_training_that_stopped_in_mid_epoch_can_be_extended(
    build: Callable[[], Any], tmp_path: Path
) -> None:
    alone = fit(build(), max_epochs=None, max_steps=9)
    fit(build(), always := SaveAlways(tmp_path), max_epochs=None, max_steps=4)
    assert [path.stem for path, _, _ in always.saved][-1] == "04-on_train_epoch_end"
    for path, steps, _ in always.saved:
        resumed = fit(build(), checkpoint=path, max_epochs=None, max_steps=9)
        assert resumed.steps == alone.steps[steps:], path.name


def test_another_batch_size_reads_the_rest_once(tmp_path: Path) -> None:
    fit(long(), always := SaveAlways(tmp_path), max_epochs=2)
    for path, steps, _ in always.saved:
        halved = ResumableDataLoader(Digits(), 8, shuffle=True, seed=SEED)
        resumed = fit(halved, checkpoint=path, max_epochs=2)
        seen = [index for _, _, (ids,), _ in resumed.steps for index in ids]
        assert len(seen) == 2 * LENGTH - (steps // 6 * LENGTH + steps % 6 * 16), path.name
        assert set(seen[-LENGTH:]) == set(range(LENGTH)) or steps > 6, path.name


@pytest.mark.usefixtures("by_hand")
def test_one_loader_of_known_length_needs_no_callback(tmp_path: Path) -> None:
    alone = fit(long(), always := SaveAlways(tmp_path))
    for path, steps, _ in always.saved:
        assert fit(long(), checkpoint=path).steps == alone.steps[steps:], path.name


@pytest.mark.usefixtures("by_hand")
def test_a_stream_without_the_callback_loses_a_batch(tmp_path: Path) -> None:
    alone = fit(stream(), always := SaveAlways(tmp_path))
    path, steps, _ = always.saved[1]
    assert fit(stream(), checkpoint=path).steps[0][2] == alone.steps[steps + 1][2]


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_every_trainer_has_the_callback_already(package: str, tmp_path: Path) -> None:
    library = importlib.import_module(package)
    factory = importlib.import_module(f"dataporter.integrations.{package}")

    class Training(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen = build_model(), []

        def training_step(self, batch: Any, batch_index: int) -> Any:
            self.seen.append(batch["id"].tolist())
            return nn.functional.cross_entropy(self.model(batch["pixels"]), batch["label"])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    def train(steps: int, checkpoint: Path | None = None, named: tuple[Any, ...] = ()) -> Any:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = library.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=list(named),
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            **quiet,
        )
        held = [one for one in trainer.callbacks if isinstance(one, factory.ResumableCallback)]
        assert len(held) == 1 + len(named)
        trainer.fit(training := Training(), stream(), ckpt_path=checkpoint)
        if checkpoint is None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")
        return training.seen

    alone, _ = train(9), train(4)
    assert train(9, tmp_path / "last.ckpt") == alone[4:]
    named = (factory.ResumableCallback(),)
    assert train(9, tmp_path / "last.ckpt", named) == alone[4:], "a second one changes nothing"


def test_other_loaders_than_the_saved_ones_are_an_error(tmp_path: Path) -> None:
    fit(long(), always := SaveAlways(tmp_path), max_epochs=1)
    both = together("min_size", long, stream)()
    with pytest.raises(StateMismatchError, match=r"states of 1 .* this training has 2"):
        fit(both, checkpoint=always.saved[0][0])


def test_a_checkpoint_without_the_callback_and_other_loaders_work(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback_connector, "_load_external_callbacks", lambda group: [])
        alone = fit(long(), always := SaveAlways(tmp_path))
    path, steps, _ = always.saved[2]
    assert fit(long(), checkpoint=path).steps == alone.steps[steps:]
    plain = DataLoader(Digits(), 16)
    learner = fit(plain, SaveAlways(tmp_path), max_epochs=1)
    assert len(learner.steps) == 6
    assert "dataporter" not in torch.load(tmp_path / "00-on_train_batch_end.ckpt")


@pytest.mark.parametrize(("version", "refused"), [("2.5.2", True), ("2.5.3", False)])
def test_a_lightning_that_is_too_old_is_refused_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    monkeypatch.setattr("lightning.__version__", version)
    fit(DataLoader(Digits(), 16), max_epochs=1)
    if refused:
        with pytest.raises(MissingLibraryError, match=r"pip install -U 'lightning>=2.5.3'"):
            fit(long(), max_epochs=1)
    else:
        fit(long(), max_epochs=1)


def test_a_custom_fit_loop_has_the_version_of_its_base_class() -> None:
    class OwnLoop(_FitLoop):
        """Belongs to this module, which has no version."""

    class Loops(Callback):
        def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            trainer.fit_loop.__class__ = OwnLoop

    assert len(fit(long(), Loops(), max_epochs=1).steps) == 6


def test_a_checkpoint_of_torchs_loader_restarts_its_epoch_with_a_warning(tmp_path: Path) -> None:
    fit(DataLoader(Digits(), 16), always := SaveAlways(tmp_path), max_epochs=2)
    middle, ended = always.saved[2][0], always.saved[5][0]
    with pytest.warns(RuntimeWarning, match="begins with its first batches again"):
        assert len(fit(long(), checkpoint=middle, max_epochs=2).steps) == 9
    with warnings.catch_warnings(record=True) as warned:
        assert len(fit(long(), checkpoint=ended, max_epochs=2).steps) == 6
    assert not any("first batches again" in str(warning.message) for warning in warned)


def test_another_seed_is_refused_unless_the_loader_says_otherwise(tmp_path: Path) -> None:
    fit(long(), always := SaveAlways(tmp_path), max_epochs=1)
    middle = always.saved[2][0]

    def other(**arguments: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(Digits(), 16, shuffle=True, seed=SEED + 1, **arguments)

    advice = r'if a framework calls it, build the loader with on_mismatch="warn"'
    with pytest.raises(StateMismatchError, match=advice):
        fit(other(), checkpoint=middle, max_epochs=1)
    with pytest.warns(RuntimeWarning, match="seed: the state has"):
        resumed = fit(other(on_mismatch="warn"), checkpoint=middle, max_epochs=1)
    assert len(resumed.steps) == 3


def test_a_loader_that_lightning_rebuilds_reads_what_torchs_would() -> None:
    ours = fit(long(), overfit_batches=2, max_epochs=2).steps
    torchs = fit(DataLoader(Digits(), 16, shuffle=True), overfit_batches=2, max_epochs=2).steps
    assert [step[:3] for step in ours] == [step[:3] for step in torchs]


def test_an_order_that_lightning_would_replace_by_a_sampler_is_refused() -> None:
    class InAHook(Learner):
        def train_dataloader(self) -> Any:
            return ResumableDataLoader(Digits(), 16, order="blocks", seed=SEED)

    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, overfit_batches=2
    )
    with pytest.raises(ConfigurationError) as refused:
        trainer.fit(InAHook())
    assert str(refused.value) == (
        "order='blocks': Lightning has rebuilt the loader around its own sampler, as it does for "
        "predict() and overfit_batches: give it torch's DataLoader there; and on several devices, "
        "for a sampler that is no DistributedSampler: pass one, build the loader in "
        "train_dataloader(), or set use_distributed_sampler=False; leave it out"
    )
