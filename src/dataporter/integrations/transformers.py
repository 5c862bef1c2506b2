"""Transformers: `ResumableTrainer`, a Trainer that resumes at the exact next sample, at once."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import transformers
from accelerate import skip_first_batches as skip_in_others
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler
from transformers import Trainer, TrainerState, trainer, trainer_pt_utils
from transformers.trainer_utils import get_last_checkpoint

from dataporter.errors import (
    ConfigurationError,
    InvalidStateError,
    MissingLibraryError,
    StateMismatchError,
    add_note,
    warn,
)
from dataporter.loader.loader import ResumableDataLoader
from dataporter.state.resume import OnMismatch
from dataporter.streams.state import parse

__all__ = ["ResumableTrainer"]

if not hasattr(Trainer, "_init_training_state"):
    raise MissingLibraryError(
        f"ResumableTrainer does not work with transformers {transformers.__version__}, whose "
        "Trainer has no _init_training_state(): expected 5.3 or newer: "
        "pip install -U 'transformers>=5.3'"
    )

# The key of the loader's state in trainer_state.json, beside the step of the checkpoint.
_KEY = "ResumableDataLoader"


class ResumableTrainer(Trainer):  # type: ignore[misc]  # transformers is Any to mypy
    """A ``transformers.Trainer`` whose ``train(resume_from_checkpoint=True)`` resumes exactly.

    Its training loader is a :class:`~dataporter.ResumableDataLoader` with the same arguments. The
    loader's state is in the checkpoint's ``trainer_state.json``, so that a resume skips nothing.
    Per-device batch size, number of processes and number of workers may change: each sample of the
    epoch still appears exactly once, and ``max_steps`` and the number of epochs follow from the
    rest of the epoch. Evaluation is the Trainer's.

    The order is shuffled by ``data_seed``, or else by ``seed``; or it is that of
    ``train_sampling_strategy`` or of a custom ``_get_train_sampler``, for which batch size and
    number of processes may not change. ``ignore_data_skip=True`` restarts the epoch, as in the
    Trainer.

    To resume from a state of other data or another order anyway, set ``trainer.on_mismatch =
    "warn"`` before ``train``.

    For another Trainer: ``class MyTrainer(ResumableTrainer, SFTTrainer)``. For a custom loader:
    return a ``ResumableDataLoader`` through ``self.accelerator.prepare()`` from
    ``get_train_dataloader``.
    """

    # The loader's, see ResumableDataLoader.
    on_mismatch: OnMismatch = "error"

    def get_train_dataloader(self) -> Any:
        """The training loader that the Trainer would build, made resumable."""
        dataset, args = self.train_dataset, self.args
        if dataset is None:
            return super().get_train_dataloader()  # raises
        # A stream may not know its columns, so the collator removes them.
        if trainer.is_datasets_available() and isinstance(dataset, trainer.datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
            collate = self.data_collator
        else:
            collate = self._get_collator_with_removed_columns(
                self.data_collator, description="training"
            )
        arguments: dict[str, Any] = {
            "collate_fn": collate,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            # Arguments of newer versions only.
            "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
            "in_order": getattr(args, "dataloader_in_order", True),
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "on_mismatch": self.on_mismatch,
        }
        if not isinstance(dataset, IterableDataset):
            arguments |= self._order(dataset)
        if "batch_sampler" not in arguments:
            arguments |= {
                "batch_size": self._train_batch_size,
                "drop_last": args.dataloader_drop_last,
            }
        return self.accelerator.prepare(ResumableDataLoader(dataset, **arguments))

    def _order(self, dataset: Any) -> dict[str, Any]:
        sampler = self._get_train_sampler(dataset)
        if type(sampler) is RandomSampler and not sampler.replacement:
            return {"shuffle": True}
        if sampler is None or type(sampler) is SequentialSampler:
            return {}
        if isinstance(sampler, getattr(trainer_pt_utils, "BatchRebalanceSampler", ())):
            # Yields whole batches, and only this rank's part of each.
            world = {"rank": self.args.process_index, "world_size": self.args.world_size}
            return {"batch_sampler": sampler, **world}
        return {"sampler": sampler}

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """The Trainer's ``train``.

        Raises:
            InvalidStateError: (a ``ValueError``) the checkpoint has no state of a loader.
            StateMismatchError: (a ``ValueError``) its state is of other data or another order.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        self._checkpoint = resume_from_checkpoint or None
        # In the resumed epoch the loop passes its loader to this function unconditionally, though
        # the loader's state has set its position already.
        theirs, trainer.skip_first_batches = trainer.skip_first_batches, _skip_unless_resumable
        try:
            return super().train(resume_from_checkpoint, *arguments, **named)
        finally:
            trainer.skip_first_batches = theirs

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Epochs and steps, with the true number of steps in the rest of the resumed epoch."""
        (epochs, updates, examples, samples, total_batch_size, steps_in_epoch, max_steps) = (
            super().set_initial_training_values(args, dataloader)
        )
        if not isinstance(dataloader, ResumableDataLoader) or dataloader.adapter is None:
            raise ConfigurationError(
                f"get_train_dataloader() returned a {type(dataloader).__name__}, which is not "
                "prepared or not resumable: return "
                "self.accelerator.prepare(ResumableDataLoader(...))"
            )
        self._train_loader = dataloader
        self._resumed_at: tuple[int, int] | None = None
        self._missing_in_group = 0
        self._before_update: tuple[int, Any] | None = None
        if self._checkpoint is not None and not args.ignore_data_skip:
            global_step, state = self._load_state(dataloader, self._checkpoint)
            epoch, step = self._resumed_at = _epoch_and_step(dataloader, state, steps_in_epoch)
            done, self._missing_in_group = divmod(step, args.gradient_accumulation_steps)
            # In updates of the present size; the same as the global step while no size changes.
            done += epoch * updates
            if args.max_steps <= 0:
                max_steps += global_step - done
            elif trainer.has_length(dataloader):
                epochs = math.ceil((max_steps - global_step + done) / updates)
        return epochs, updates, examples, samples, total_batch_size, steps_in_epoch, max_steps

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of the next update; the first update after a resume may have fewer.

        With another batch size, the rest of an epoch need not be a multiple of
        ``gradient_accumulation_steps``, and the loop counts from the epoch's end.
        """
        self._before_update = self.state.global_step, self._train_loader.mark()
        num_batches -= self._missing_in_group
        self._missing_in_group = 0
        found: tuple[list[Any], Any] = super().get_batch_samples(
            epoch_iterator, num_batches, device
        )
        return found

    def _run_epoch(self, *arguments: Any, epoch: int, **named: Any) -> None:
        super()._run_epoch(*arguments, epoch=epoch, **named)
        loader: Any = self._train_loader
        is_over = trainer.has_length(loader) and round(self.state.epoch or 0, 6) >= epoch + 1
        if is_over and not loader.end_of_dataloader:
            warn(
                f"the Trainer has ended epoch {epoch} after the {len(loader)} batches of len(), "
                f"and the {type(loader.dataset).__name__} has more, which are not read: a stream "
                "ends in an incomplete batch for each shard or worker; to read all of it, give it "
                "no __len__, and the Trainer max_steps=",
                RuntimeWarning,
            )

    def _load_state(
        self, loader: ResumableDataLoader[Any], checkpoint: Any
    ) -> tuple[int, dict[str, Any]]:
        saved = TrainerState.load_from_json(os.path.join(checkpoint, trainer.TRAINER_STATE_NAME))
        state = saved.stateful_callbacks.get(_KEY)
        if state is None:
            raise InvalidStateError(
                f"{checkpoint} was not saved by a ResumableTrainer, so the order of its epoch is "
                "unknown: resume with the Trainer that saved it, or pass ignore_data_skip=True to "
                "restart its epoch"
            )
        try:
            loader.load_state_dict(state)
        except StateMismatchError as error:
            add_note(error, 'the loader is the trainer\'s: set trainer.on_mismatch = "warn"')
            raise
        return saved.global_step, state

    def _init_training_state(self, *arguments: Any, **named: Any) -> tuple[int, int]:
        counted: tuple[int, int] = super()._init_training_state(*arguments, **named)
        return counted if self._resumed_at is None else self._resumed_at

    def _state_of_updates(self) -> dict[str, Any]:
        """The loader's state after the batches of the completed updates.

        The Trainer reads the batches of an update before it. A checkpoint that is taken meanwhile,
        as by the Trainer's callback for SIGTERM, has the weights and the step from before.
        """
        loader = self._train_loader
        if self._before_update is not None:
            step, mark = self._before_update
            if self.state.global_step == step:
                return loader.state_dict(at=mark)
        return loader.state_dict()

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        self.state.stateful_callbacks[_KEY] = self._state_of_updates()
        super()._save_checkpoint(*arguments, **named)


def _epoch_and_step(
    loader: ResumableDataLoader[Any], state: dict[str, Any], steps_in_epoch: int
) -> tuple[int, int]:
    """The epoch that a loader resumes in, and the step, counted back from the epoch's last."""
    if not trainer.has_length(loader):
        return loader.epoch, loader.step
    if steps_in_epoch != len(loader):
        raise ConfigurationError(
            f"an epoch of {len(loader)} batches is {steps_in_epoch} steps for the Trainer, which "
            "splits them up (sequence parallelism), and ResumableTrainer cannot resume there: "
            "train without it, or with transformers.Trainer"
        )
    left = _left(loader, state) if isinstance(loader.dataset, IterableDataset) else loader.remaining
    return (loader.epoch, steps_in_epoch - left) if left else (loader.epoch + 1, 0)


def _left(loader: Any, state: dict[str, Any]) -> int:
    """Number of steps in the rest of a stream's epoch, by its length and all ranks' samples.

    The steps so far may have had another size.
    """
    left = max(0, len(loader.dataset) - parse(state).progress.delivered)
    size: int = loader.total_batch_size
    return left // size if loader.drop_last else -(-left // size)


def _skip_unless_resumable(dataloader: Any, num_batches: int = 0) -> Any:
    if isinstance(dataloader, ResumableDataLoader):
        return dataloader
    return skip_in_others(dataloader, num_batches)
