"""Lightning's hooks: they save the loaders' positions in the trainer's own checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataporter.errors import MissingLibraryError, StateMismatchError, warn
from dataporter.loader.device import DevicePrefetcher
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.order_sampler import OrderSampler

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["LoaderHooks"]

_KEY = "dataporter"
# Older versions repeat batches at a resume: 2.4 always, 2.5.2 with loaders without a length.
_OLDEST = "2.5.3"


class LoaderHooks:
    """The hooks of a callback, apart from Lightning's class, which comes in two packages.

    Makes ``fit(ckpt_path=...)`` resume exactly, whenever the checkpoint was taken.

    Lightning saves and loads a loader's state by itself, with four gaps: it does not load the state
    if ``estimated_stepping_batches`` was read; it reads a loader without a length one batch ahead;
    it keeps only the first rank's state; and it forgets which of several loaders have ended. These
    hooks save the state of each :class:`~dataporter.ResumableDataLoader` in ``train_dataloader``,
    as far as the training has used its batches, and load it right before the first batch.

    They set validation loaders to an epoch that follows from the number of trained steps, so that a
    shuffled or randomly augmented validation is the same after a resume.
    """

    def __init__(self) -> None:
        # The trainer's epoch of the loaders' last pass.
        self._epoch = 0
        # Batches in the fetcher when the training ended, which removes the fetcher.
        self._unused = 0
        # Optimizer steps that were made before the present batch.
        self._stepped = 0
        self._loaded: dict[str, Any] | None = None
        # Whether the loaded checkpoint has no state of any loader.
        self._has_no_states = False
        # The loaders that have loaded a position and delivered no batch since; each with its epoch,
        # and with the epoch after the pass that it was in, if it was in one.
        self._resumed: list[tuple[ResumableDataLoader[Any], int, int]] = []
        # Whether the training is in the epoch of the loaded checkpoint.
        self._stays = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        fit = trainer.fit_loop
        if self._loaded is not None:
            # The loaders have not loaded their positions yet.
            checkpoint[_KEY] = self._loaded
        elif _resumable(fit):
            epoch, ahead, ends = self._epoch, self._unused, False
            if self._is_in_batch(trainer):
                # Its step is repeated. Without a length, the fetcher has asked for another since.
                ahead = 1 + (fit._data_fetcher.length is None)
                ends = ahead == 2 and fit._data_fetcher.done  # a prefetcher has not asked again
                epoch = fit.epoch_progress.current.processed
                _uncount_batch(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])
            elif fit._data_fetcher is not None:
                ahead = _unused(fit)
            if fit.epoch_progress.current.processed > epoch and _ended_early(fit):
                _reopen_epoch(checkpoint["loops"]["fit_loop"]["epoch_progress"])
            ended = getattr(fit._combined_loader._iterator, "_consumed", ())
            checkpoint[_KEY] = {
                "epoch": epoch,
                "loaders": [
                    loader.state_dict(
                        gather=True, at=loader.mark(read_ahead=ahead + (more and not ends))
                    )
                    for loader, more in _resumable_and_ahead(fit)
                ],
                "ended": list(ended),
            }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit" or "loops" not in checkpoint:
            return
        loop = checkpoint["loops"]["fit_loop"]["state_dict"]
        self._has_no_states = not (_KEY in checkpoint or loop.get("combined_loader"))
        if _KEY not in checkpoint:
            return
        self._loaded = checkpoint[_KEY]
        if len(loop.get("combined_loader", ())) == len(self._loaded["loaders"]):
            # All loaders are resumable. Lightning would load one rank's state on the others, which
            # refuse it.
            del loop["combined_loader"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit, saved, self._loaded = trainer.fit_loop, self._loaded, None
        if _resumable(fit):
            _check_version(fit)
        self._warn_of_repeats(fit)
        if saved is None:
            return
        if fit._should_reload_train_dl:
            fit.setup_data()  # which Lightning would do next, with new loaders
        if fit.restarted_on_epoch_end:
            # With max_steps, Lightning would run one more batch of an epoch that is over.
            fit.epoch_progress.increment_completed()
            fit._restarting = fit.epoch_loop.restarting = False
            fit.reset_restart_stage()
        loaders, states, ended = _resumable(fit), saved["loaders"], saved["ended"]
        if len(loaders) != len(states):
            raise StateMismatchError(
                f"the checkpoint has the states of {len(states)} ResumableDataLoaders, and this "
                f"training has {len(loaders)}: train with the same loaders, in the same sequence "
                "in train_dataloader"
            )
        begun, self._epoch = saved["epoch"], fit.epoch_progress.current.processed
        if fit.restarted_on_epoch_start or self._epoch > begun:
            _begin_epoch(fit.epoch_loop)
        for loader, state in zip(loaders, states):
            _set_epoch(loader, self._epoch)
            loader.load_state_dict(state)
            self._resumed.append((loader, loader.epoch, loader.epoch + (loader.step > 0)))
            # The position stays, whatever epoch the trainer sets before the first batch.
            if isinstance(loader.sampler, OrderSampler):
                loader.sampler.set_epoch = _ignore  # type: ignore[method-assign]
        self._stays = self._epoch == begun
        if not self._stays:
            self._skip_pass()
        if fit._data_fetcher.length is None:
            iter(fit._data_fetcher)  # discards the batch that it has fetched
        if self._epoch == begun:
            if ended:
                fit._combined_loader._iterator._consumed = list(ended)
            _recount(trainer, loaders, ended or [False] * len(loaders))

    def _warn_of_repeats(self, fit: Any) -> None:
        has_no_states, self._has_no_states = self._has_no_states, False
        if not (has_no_states and _resumable(fit) and fit.restarted_mid_epoch):
            return
        if not fit.epoch_loop.batch_progress.is_last_batch:
            warn(
                "the checkpoint is from the middle of an epoch and has no state of any loader, "
                "since torch's loaders have none: the rest of the epoch begins with its first "
                "batches again; save checkpoints with a ResumableDataLoader to resume exactly",
                RuntimeWarning,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit = trainer.fit_loop
        epoch = fit.epoch_progress.current.processed
        if self._resumed:
            if epoch > self._epoch:
                # Lightning had nothing left to do in the state's epoch.
                self._epoch = epoch
                self._skip_pass()
            elif self._stays:
                for loader, _, _ in self._resumed:
                    # The trainer has set its own epoch on the sampler, as at the start of the pass
                    # that the state is of.
                    loader.setup.epochs.overlook()
        elif epoch > 0 and fit._last_train_dl_reload_epoch == trainer.current_epoch:
            # Lightning sets the epoch of a reloaded loader on its sampler, if it has one; and has
            # begun a pass to see whether the loader is empty, and begins another next.
            begun = fit._data_fetcher.length is None
            for loader in _resumable(fit):
                if begun or loader.epoch < epoch:
                    loader.seek(epoch=max(epoch, loader.epoch))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._loaded = None  # a learning rate finder loads its checkpoint in mid-training
        self._epoch = trainer.fit_loop.epoch_progress.current.processed
        self._stepped = trainer.global_step
        self._release_samplers()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _resumable(trainer.fit_loop):
            self._unused = _unused(trainer.fit_loop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release_samplers()

    def _is_in_batch(self, trainer: Trainer) -> bool:
        """Whether a batch was read and its step is not done, as in ``training_step``."""
        fit = trainer.fit_loop
        counts = fit.epoch_loop.batch_progress.current
        return (
            hasattr(fit._data_fetcher, "batches")  # else training_step reads any number of batches
            and counts.processed < counts.ready
            and (counts.started < counts.ready or trainer.global_step == self._stepped)
        )

    def _skip_pass(self) -> None:
        """Move the loaders to the epoch that follows theirs in an uninterrupted training."""
        for loader, epoch, following in self._resumed:
            if isinstance(loader.sampler, OrderSampler):
                # Where the trainer's set_epoch leads, which never goes back.
                loader.seek(epoch=self._epoch if epoch <= self._epoch else following)
            else:
                # A pass sets its sampler's epoch.
                _set_epoch(loader, epoch)
                loader.seek(epoch=following)
                _set_epoch(loader, self._epoch)

    def _release_samplers(self) -> None:
        for loader, _, _ in self._resumed:
            if isinstance(loader.sampler, OrderSampler):
                vars(loader.sampler).pop("set_epoch", None)
        self._resumed.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        if loaders := _resumable(loop):
            for loader in loaders:
                loader.seek(epoch=trainer.fit_loop.total_batch_idx + 1)
            if loop._data_fetcher.length is None:
                iter(loop._data_fetcher)


def _ignore(epoch: int) -> None:
    """Replaces a sampler's ``set_epoch``."""


def _check_version(fit: Any) -> None:
    from packaging.version import Version  # Lightning needs it as well

    # The package of the loop's class, or of the class that a custom loop is derived from.
    packages = [one.__module__.partition(".")[0] for one in type(fit).__mro__]
    package = next(one for one in packages if one in ("lightning", "pytorch_lightning"))
    version = sys.modules[package].__version__
    if Version(version) < Version(_OLDEST):
        name = package.replace("_", "-")
        raise MissingLibraryError(
            f"a training with a ResumableDataLoader would not resume exactly in {name} {version}: "
            f"expected {_OLDEST} or newer: pip install -U '{name}>={_OLDEST}'"
        )


def _set_epoch(loader: ResumableDataLoader[Any], epoch: int) -> None:
    """Set the samplers' epoch, as Lightning does when an epoch begins."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)


def _resumable(loop: Any) -> list[ResumableDataLoader[Any]]:
    return [loader for loader, _ in _resumable_and_ahead(loop)]


def _resumable_and_ahead(loop: Any) -> list[tuple[ResumableDataLoader[Any], bool]]:
    """The resumable loaders; and whether a prefetcher reads each one batch ahead."""
    combined, found = getattr(loop, "_combined_loader", None), []
    for loader in [] if combined is None else combined.flattened:
        ahead = isinstance(loader, DevicePrefetcher) and loader.reads_ahead
        inner = loader.loader if isinstance(loader, DevicePrefetcher) else loader
        if isinstance(inner, ResumableDataLoader):
            found.append((inner, ahead))
    return found


def _unused(fit: Any) -> int:
    """Number of batches that the fetcher has read to see whether there are more."""
    fetcher = fit._data_fetcher
    # Not the number in its list, which is empty if reading one more has failed.
    return int(hasattr(fetcher, "batches") and fetcher.length is None and not fetcher.done)


def _ended_early(fit: Any) -> bool:
    """Whether Lightning has ended an epoch before its last batch: ``max_steps``, or a stop."""
    loop = fit.epoch_loop
    return not (loop.batch_progress.is_last_batch or loop._num_ready_batches_reached())


def _reopen_epoch(progress: dict[str, dict[str, int]]) -> None:
    """Let a resume be in mid-epoch, though Lightning has counted the epoch as done."""
    for counts in progress.values():
        counts["processed"] = counts["completed"] = counts["started"] - 1


def _uncount_batch(progress: dict[str, Any]) -> None:
    """Let a resume be right before a batch that Lightning has counted as read."""
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
    progress["is_last_batch"] = False


def _recount(
    trainer: Trainer, loaders: Sequence[ResumableDataLoader[Any]], ended: Sequence[bool]
) -> None:
    """Let Lightning expect as many batches as the epoch still has.

    It expects those of an epoch with the present world and batch size, less those that it has
    counted, which differ in size if the world or batch size has changed.
    """
    combined, batches = trainer.fit_loop._combined_loader, trainer.num_training_batches
    whole = trainer.limit_train_batches == 1.0 and batches != float("inf")
    if whole and len(combined.flattened) == len(loaders):
        shortest = combined._mode == "min_size"
        left = [loader.remaining for loader, over in zip(loaders, ended) if not over]
        loop = trainer.fit_loop.epoch_loop
        counts = loop.batch_progress.current
        counted = counts.completed + loop.restarted_on_train_batch_end
        missed = batches - (min if shortest else max)(left, default=0) - counted
        for name in ("ready", "started", "processed", "completed"):
            setattr(counts, name, getattr(counts, name) + missed)


def _begin_epoch(loop: Any) -> None:
    """Let the next batch be an epoch's first.

    Otherwise Lightning would add to its count, if the epoch had no length or fewer batches.
    """
    if loop.restarted_on_train_batch_end:
        loop.batch_progress.increment_completed()
        loop._batches_that_stepped += not loop._should_accumulate()
    loop.restarting = False
    loop.reset_restart_stage()
