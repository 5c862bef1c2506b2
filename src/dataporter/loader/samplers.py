"""Samplers that give a plain `DataLoader` the order and the state of a resumable one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import DistributedSampler, Sampler

from dataporter.errors import ConfigurationError
from dataporter.keywords import names_keywords
from dataporter.loader.sampler_position import SamplerPosition
from dataporter.orders import Order
from dataporter.ranks.world import World, find_world
from dataporter.schedule.plan import Tail
from dataporter.state.resume import OnMismatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ResumableDistributedSampler", "ResumableSampler", "refuse_resumable"]


class ResumableSampler(Sampler[int]):
    """The order and the state of a :class:`~dataporter.ResumableDataLoader`, for a plain one.

    A sampler cannot know where the training stands: the loader that draws from it prefetches
    ``num_workers * prefetch_factor`` batches, and a sampler does not see which of them the loop
    has received. So ``state_dict`` takes the number of batches that the present ``for`` loop has
    received. Prefetched batches do not count, and are fetched again after a resume.

    The state is that of a ``ResumableDataLoader`` with ``strategy="advanced"`` and the same
    arguments; each loads the other's. Only the order is resumed: a plain loader's workers seed
    their generators themselves, so random augmentation is not exact. A ``ResumableDataLoader``
    needs no counting, and resumes augmentation as well.

    Passes are consecutive epochs; ``set_epoch`` to another epoch starts that epoch. Where a
    framework shards the batches of this sampler to several processes (Accelerate), pass the number
    of batches that all of them have received together.

    Args:
        dataset: the dataset, or its length.
        batch_size: must equal the ``DataLoader``'s.
        shuffle, order, seed, drop_last, tail, fingerprint: as in ``ResumableDataLoader``. The
            sampler itself leaves out the tail. By default the seed is the next value of torch's
            default generator, which a sampler never moves.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = ResumableSampler(10, batch_size=3, shuffle=True, seed=7)
        >>> batches = iter(DataLoader(range(10), batch_size=3, sampler=sampler))
        >>> for delivered, batch in enumerate(batches, start=1):
        ...     if delivered == 2:
        ...         state = sampler.state_dict(delivered=delivered)
        ...         break
        >>> resumed = ResumableSampler(10, batch_size=3, shuffle=True)
        >>> resumed.load_state_dict(state)
        >>> rest = DataLoader(range(10), batch_size=3, sampler=resumed)
        >>> [batch.tolist() for batch in rest] == [batch.tolist() for batch in batches]
        True
    """

    @names_keywords
    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool | None = None,
        order: str | Order | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        tail: Tail | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._position = SamplerPosition.from_arguments(
            "ResumableSampler()",
            dataset,
            batch_size,
            strategy="advanced",
            world=World(0, 1),
            shuffle=shuffle,
            order=order,
            seed=seed,
            drop_last=drop_last,
            tail=tail,
            fingerprint=fingerprint,
        )

    def __iter__(self) -> Iterator[int]:
        return self._position.indices()

    def __len__(self) -> int:
        """Samples of a whole epoch, wherever in it the sampler stands."""
        return self._position.length

    @property
    def epoch(self) -> int:
        """The current epoch: of the last pass that began, or the one that was set since."""
        return self._position.progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass; the current epoch stays as it is."""
        self._position.set_epoch(epoch)

    def state_dict(self, *, delivered: int) -> dict[str, Any]:
        """The state after ``delivered`` batches of the last pass that began.

        Args:
            delivered: number of batches that the present loop has received, as
                ``enumerate(loader, start=1)`` counts them, also in a pass that resumed in the
                middle of an epoch. 0 before the first.

        Raises:
            ConfigurationError: the pass has fewer batches.
        """
        return self._position.state(delivered)

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Resume from a state at the next pass; as ``ResumableDataLoader.load_state_dict``."""
        self._position.load(state, on_mismatch)


class ResumableDistributedSampler(DistributedSampler[Any]):
    """A :class:`ResumableSampler` that gives one rank's share, and can resume in another world.

    Its state is that of a ``ResumableDataLoader`` with ``strategy="distributed"``: the same on
    every rank if all pass the same ``delivered``, and valid for any number of ranks. It is a
    ``torch.utils.data.DistributedSampler``, which frameworks leave unchanged (Lightning), except
    those that shard every sampler once more (Accelerate: give it a ``ResumableSampler``).

    Args:
        dataset, batch_size, shuffle, order, seed, drop_last, tail, fingerprint: as in
            :class:`ResumableSampler`; ``batch_size`` is one rank's.
        rank, world_size, process_group: as in ``ResumableDataLoader``, and as there, the ranks of a
            process group build the sampler and load its state together. Without any of them, and
            without a default group, torchrun's environment counts.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        RankMismatchError: (a ``ValueError``) the ranks of the group have different arguments, or
            datasets of different lengths.

    Example:
        >>> ranks = [
        ...     ResumableDistributedSampler(10, batch_size=2, rank=rank, world_size=2, seed=1)
        ...     for rank in range(2)
        ... ]
        >>> [list(sampler) for sampler in ranks]
        [[0, 1, 4, 5, 8], [2, 3, 6, 7, 9]]
    """

    @names_keywords
    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: ProcessGroup | DeviceMesh | None = None,
        shuffle: bool | None = None,
        order: str | Order | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        tail: Tail | None = None,
        fingerprint: str | None = None,
    ) -> None:
        world = find_world(rank, world_size, process_group, launched=True)
        self._position = position = SamplerPosition.from_arguments(
            "ResumableDistributedSampler()",
            dataset,
            batch_size,
            strategy="distributed",
            world=world,
            shuffle=shuffle,
            order=order,
            seed=seed,
            drop_last=drop_last,
            tail=tail,
            fingerprint=fingerprint,
        )
        super().__init__(
            range(dataset) if isinstance(dataset, int) else dataset,  # type: ignore[arg-type]  # needs a length alone
            num_replicas=world.size,
            rank=world.rank,
            shuffle=position.identified.fields.order != "sequential",
            seed=position.cursor.settled_seed(),
            drop_last=position.identified.fields.tail == "drop",
        )
        # torch counts sample by sample, and not by whole global batches.
        plan = position.requests.plan
        self.num_samples = position.length
        self.total_size = plan.total_length

    def __iter__(self) -> Iterator[int]:
        return self._position.indices()

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank, wherever in it the sampler stands."""
        return self._position.length

    @property
    def epoch(self) -> int:
        """The current epoch: of the last pass that began, or the one that was set since."""
        return self._position.progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        # torch's class sets it at construction.
        self._position.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass; the current epoch stays as it is."""
        self._position.set_epoch(epoch)

    def state_dict(self, *, delivered: int) -> dict[str, Any]:
        """The state after ``delivered`` batches; see :meth:`ResumableSampler.state_dict`.

        Args:
            delivered: number of batches that the present loop has received on each rank.

        Raises:
            ConfigurationError: the pass has fewer batches.
        """
        return self._position.state(delivered)

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Resume from a state at the next pass; as ``ResumableDataLoader.load_state_dict``."""
        self._position.load(state, on_mismatch)
        self.seed = self._position.cursor.settled_seed()


def refuse_resumable(sampler: Any) -> None:
    """Refuse a sampler that keeps a position, for a loader that keeps the position itself."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        if isinstance(part, ResumableSampler | ResumableDistributedSampler):
            raise ConfigurationError(
                f"a {type(part).__name__} keeps a position for a plain DataLoader, and a "
                "ResumableDataLoader keeps one itself: pass shuffle= or order=, and seed=, in "
                "place of the sampler"
            )
