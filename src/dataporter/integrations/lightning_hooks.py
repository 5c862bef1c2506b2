"""Lightning's hooks: they keep the loaders' places in the trainer's own checkpoints."""

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
# Older ones resume otherwise: 2.4 repeats batches, and 2.5.2 does with loaders without a length.
_OLDEST = "2.5.3"


class LoaderHooks:
    """What a callback does; of no class of Lightning's, which comes as two packages.

    Makes ``fit(ckpt_path=...)`` go on exactly, wherever in the training the checkpoint is from.

    Lightning saves and loads a loader's state by itself, but for a few places: with
    ``estimated_stepping_batches`` it does not load it, a loader without a length it reads one batch
    ahead, of several ranks it keeps the first one's state, and of several loaders it forgets which
    have ended. These hooks save the states of all :class:`~dataporter.ResumableDataLoader` in
    ``train_dataloader``, as far as the training has used them, and load them right before the
    first batch.

    Validation loaders are put to an epoch that follows from the steps that were trained, so that
    they too give the same after a resume, shuffled or augmented at random as they may be.
    """

    def __init__(self) -> None:
        # The trainer's epoch that the loaders' last pass belongs to.
        self._epoch = 0
        # Batches that the fetcher held when the training ended, which takes it down.
        self._held = 0
        # Optimizer steps that were made before the present batch.
        self._stepped = 0
        self._loaded: dict[str, Any] | None = None
        # Whether a checkpoint was loaded that says nothing of loaders.
        self._says_nothing = False
        # The loaders that have a loaded place and no batch since; with the epoch they were in, and
        # the one after the pass that they were in, if they were.
        self._resumed: list[tuple[ResumableDataLoader[Any], int, int]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        fit = trainer.fit_loop
        if self._loaded is not None:
            # The loaders are not at their places yet.
            checkpoint[_KEY] = self._loaded
        elif _ours(fit):
            epoch, ahead, ends = self._epoch, self._held, False
            if self._is_in_batch(trainer):
                # Its step is made again. Without a length, the fetcher has asked for another since.
                ahead = 1 + (fit._data_fetcher.length is None)
                ends = ahead == 2 and fit._data_fetcher.done  # a prefetcher has not asked again
                epoch = fit.epoch_progress.current.processed
                _take_batch_back(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])
            elif fit._data_fetcher is not None:
                ahead = _held_by(fit)
            if fit.epoch_progress.current.processed > epoch and _is_cut_short(fit):
                _take_epoch_up_again(checkpoint["loops"]["fit_loop"]["epoch_progress"])
            ended = getattr(fit._combined_loader._iterator, "_consumed", ())
            checkpoint[_KEY] = {
                "epoch": epoch,
                "loaders": [
                    loader.state_dict(
                        gather=True, at=loader.mark(read_ahead=ahead + (more and not ends))
                    )
                    for loader, more in _ours_and_ahead(fit)
                ],
                "ended": list(ended),
            }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit" or "loops" not in checkpoint:
            return
        loop = checkpoint["loops"]["fit_loop"]["state_dict"]
        self._says_nothing = not (_KEY in checkpoint or loop.get("combined_loader"))
        if _KEY not in checkpoint:
            return
        self._loaded = checkpoint[_KEY]
        if len(loop.get("combined_loader", ())) == len(self._loaded["loaders"]):
            # All of them are ours. One rank's state would be refused on another.
            del loop["combined_loader"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit, saved, self._loaded = trainer.fit_loop, self._loaded, None
        if _ours(fit):
            _check_version(fit)
        self._warn_if_begun_anew(fit)
        if saved is None:
            return
        if fit._should_reload_train_dl:
            fit.setup_data()  # which Lightning does next, and these are the ones to be placed
        if fit.restarted_on_epoch_end:
            # With max_steps, Lightning takes an epoch that was over up again, for one batch.
            fit.epoch_progress.increment_completed()
            fit._restarting = fit.epoch_loop.restarting = False
            fit.reset_restart_stage()
        loaders, states, ended = _ours(fit), saved["loaders"], saved["ended"]
        if len(loaders) != len(states):
            raise StateMismatchError(
                f"the checkpoint has the states of {len(states)} ResumableDataLoaders, and this "
                f"training has {len(loaders)}: train with the same loaders, in the same places of "
                "train_dataloader"
            )
        begun, self._epoch = saved["epoch"], fit.epoch_progress.current.processed
        if fit.restarted_on_epoch_start or self._epoch > begun:
            _begin_epoch(fit.epoch_loop)
        for loader, state in zip(loaders, states):
            # Its place stays, whatever epoch the trainer sets before the first batch: a sampler of
            # the user's own asks for no epoch that it was told before.
            _tell_epoch(loader, self._epoch)
            loader.load_state_dict(state)
            self._resumed.append((loader, loader.epoch, loader.epoch + (loader.step > 0)))
            if isinstance(loader.sampler, OrderSampler):
                loader.sampler.set_epoch = _stay  # type: ignore[method-assign]
        if self._epoch > begun:
            self._leave_pass()
        if fit._data_fetcher.length is None:
            iter(fit._data_fetcher)  # it holds a batch of before
        if self._epoch == begun:
            if ended:
                fit._combined_loader._iterator._consumed = list(ended)
            _recount(trainer, loaders, ended or [False] * len(loaders))

    def _warn_if_begun_anew(self, fit: Any) -> None:
        says_nothing, self._says_nothing = self._says_nothing, False
        if not (says_nothing and _ours(fit) and fit.restarted_mid_epoch):
            return
        if not fit.epoch_loop.batch_progress.is_last_batch:
            warn(
                "the checkpoint is from the middle of an epoch and has no state of any loader, for "
                "torch's have none: the rest of the epoch begins with its first batches again",
                RuntimeWarning,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit = trainer.fit_loop
        epoch = fit.epoch_progress.current.processed
        if self._resumed:
            if epoch > self._epoch:
                # Lightning had nothing left to do in the epoch that the state is of.
                self._epoch = epoch
                self._leave_pass()
        elif epoch > 0 and fit._last_train_dl_reload_epoch == trainer.current_epoch:
            # A loader that was made anew for this epoch is told of it by its sampler, if at all;
            # and to see whether it is empty, Lightning has begun a pass, and begins another next.
            begun = fit._data_fetcher.length is None
            for loader in _ours(fit):
                if begun or loader.epoch < epoch:
                    loader.seek(epoch=max(epoch, loader.epoch))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._loaded = None  # what a learning rate finder has put back in mid-training
        self._epoch = trainer.fit_loop.epoch_progress.current.processed
        self._stepped = trainer.global_step
        self._let_go()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _ours(trainer.fit_loop):
            self._held = _held_by(trainer.fit_loop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go()

    def _is_in_batch(self, trainer: Trainer) -> bool:
        """Whether a batch was read and its step is not made: in ``training_step``, say."""
        fit = trainer.fit_loop
        counts = fit.epoch_loop.batch_progress.current
        return (
            hasattr(fit._data_fetcher, "batches")  # else training_step reads as many as it likes
            and counts.processed < counts.ready
            and (counts.started < counts.ready or trainer.global_step == self._stepped)
        )

    def _leave_pass(self) -> None:
        """Go where the loaders would have gone when the trainer began its present epoch."""
        for loader, epoch, following in self._resumed:
            if isinstance(loader.sampler, OrderSampler):
                loader.seek(epoch=max(following, self._epoch))
            else:
                # A pass tells its sampler the epoch that it is of.
                _tell_epoch(loader, epoch)
                loader.seek(epoch=following)
                _tell_epoch(loader, self._epoch)

    def _let_go(self) -> None:
        for loader, _, _ in self._resumed:
            vars(loader.sampler).pop("set_epoch", None)
        self._resumed.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        if loaders := _ours(loop):
            for loader in loaders:
                loader.seek(epoch=trainer.fit_loop.total_batch_idx + 1)
            if loop._data_fetcher.length is None:
                iter(loop._data_fetcher)


def _stay(epoch: int) -> None:
    """In place of a sampler's ``set_epoch``."""


def _check_version(fit: Any) -> None:
    from packaging.version import Version  # Lightning needs it as well

    # Of the loop's own class, or of the one that a user's is derived from.
    packages = [one.__module__.partition(".")[0] for one in type(fit).__mro__]
    package = next(one for one in packages if one in ("lightning", "pytorch_lightning"))
    version = sys.modules[package].__version__
    if Version(version) < Version(_OLDEST):
        name = package.replace("_", "-")
        raise MissingLibraryError(
            f"a training with a ResumableDataLoader would not go on exactly in {name} {version}: "
            f"it needs {_OLDEST} or newer: pip install -U '{name}>={_OLDEST}'"
        )


def _tell_epoch(loader: ResumableDataLoader[Any], epoch: int) -> None:
    """What Lightning does when an epoch begins."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)


def _ours(loop: Any) -> list[ResumableDataLoader[Any]]:
    return [loader for loader, _ in _ours_and_ahead(loop)]


def _ours_and_ahead(loop: Any) -> list[tuple[ResumableDataLoader[Any], bool]]:
    """Our loaders; and whether each is read a batch ahead on its way to the device."""
    combined, found = getattr(loop, "_combined_loader", None), []
    for loader in [] if combined is None else combined.flattened:
        ahead = isinstance(loader, DevicePrefetcher) and loader.reads_ahead
        inner = loader.loader if isinstance(loader, DevicePrefetcher) else loader
        if isinstance(inner, ResumableDataLoader):
            found.append((inner, ahead))
    return found


def _held_by(fit: Any) -> int:
    """How many batches were read, to see whether more comes, and have not been used."""
    fetcher = fit._data_fetcher
    # Not by what it holds, which is nothing where reading one more has failed.
    return int(hasattr(fetcher, "batches") and fetcher.length is None and not fetcher.done)


def _is_cut_short(fit: Any) -> bool:
    """Whether Lightning has ended an epoch before its last batch: ``max_steps``, or a stop."""
    loop = fit.epoch_loop
    return not (loop.batch_progress.is_last_batch or loop._num_ready_batches_reached())


def _take_epoch_up_again(progress: dict[str, dict[str, int]]) -> None:
    """Let who resumes be in mid-epoch: Lightning has counted the epoch as done."""
    for counts in progress.values():
        counts["processed"] = counts["completed"] = counts["started"] - 1


def _take_batch_back(progress: dict[str, Any]) -> None:
    """Let who resumes be right before a batch that Lightning has counted as read."""
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
    progress["is_last_batch"] = False


def _recount(
    trainer: Trainer, loaders: Sequence[ResumableDataLoader[Any]], ended: Sequence[bool]
) -> None:
    """Let Lightning expect as many batches as the epoch still has.

    It expects as many as an epoch of the present world and batch size has, but for those that it
    has counted, which were larger or smaller if the world or batch size was another one.
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

    Lightning counts on, of an epoch without a length, or of one that had less batches.
    """
    if loop.restarted_on_train_batch_end:
        loop.batch_progress.increment_completed()
        loop._batches_that_stepped += not loop._should_accumulate()
    loop.restarting = False
    loop.reset_restart_stage()
