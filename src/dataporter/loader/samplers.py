"""Samplers: the one that a loader shows, and those for who keeps a plain `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import DistributedSampler, Sampler

from dataporter.errors import ConfigurationError
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

    A sampler alone cannot know where the training stands: the loader that draws from it is ahead,
    by ``num_workers * prefetch_factor`` batches, and nothing tells a sampler which of them have
    come out. So ``state_dict`` is told: how many batches the present ``for`` loop has got. What was
    fetched ahead does not count then, and comes again after a resume.

    The state is that of a ``ResumableDataLoader`` with ``strategy="advanced"`` and the same
    arguments; each loads the other's. Only the order is resumed: the random generators of workers
    are the plain loader's business, so random augmentation is not exact. A ``ResumableDataLoader``
    needs no counting, and resumes augmentation as well.

    Passes are consecutive epochs; ``set_epoch`` on another epoch goes to the start of that one.
    Where a framework shares the batches of this sampler out to several processes (Accelerate), pass
    the number of batches that all of them have got together.

    Args:
        dataset: the dataset, or its length.
        batch_size: that of the ``DataLoader``, which must be the same.
        shuffle, order, seed, drop_last, tail: as in ``ResumableDataLoader``. The sampler leaves the
            tail out by itself.

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
    ) -> None:
        self._position = SamplerPosition.of(
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
        )

    def __iter__(self) -> Iterator[int]:
        return self._position.indices()

    def __len__(self) -> int:
        """Samples of a whole epoch, wherever in it the sampler stands."""
        return self._position.length

    @property
    def epoch(self) -> int:
        """The current epoch: that of the pass that began last, or of the one that is set to."""
        return self._position.progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass; the current epoch stays as it is."""
        self._position.set_epoch(epoch)

    def state_dict(self, *, delivered: int) -> dict[str, Any]:
        """The place after ``delivered`` batches of the pass that began last.

        Args:
            delivered: how many batches the present loop has got: what
                ``enumerate(loader, start=1)`` counts, also in a pass that a resume began in the
                middle of an epoch. 0 before the first.

        Raises:
            ConfigurationError: the pass has not so many batches.
        """
        return self._position.state(delivered)

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Go on from a state at the next pass; as that of ``ResumableDataLoader``."""
        self._position.load(state, on_mismatch)


class ResumableDistributedSampler(DistributedSampler[Any]):
    """A :class:`ResumableSampler` that gives one rank's share, and may resume in another world.

    Its state is that of a ``ResumableDataLoader`` with ``strategy="distributed"``: the same on
    every rank where all pass the same ``delivered``, and good for any number of ranks. It is a
    ``torch.utils.data.DistributedSampler``, which frameworks leave in place (Lightning), except
    those that share every sampler out once more (Accelerate: give it a ``ResumableSampler``).

    Args:
        dataset, batch_size, shuffle, order, seed, drop_last, tail: as in :class:`ResumableSampler`;
            ``batch_size`` is that of one rank.
        rank, world_size, process_group: as in ``ResumableDataLoader``, and as there, the ranks of a
            process group build the sampler and load its state together. Without any of them, and
            without a default group, torchrun's environment says.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        RankMismatchError: (a ``ValueError``) the group's ranks were given different arguments, or
            datasets of another length.

    Example:
        >>> ranks = [
        ...     ResumableDistributedSampler(10, batch_size=2, rank=rank, world_size=2, seed=1)
        ...     for rank in range(2)
        ... ]
        >>> [list(sampler) for sampler in ranks]
        [[0, 1, 4, 5, 8], [2, 3, 6, 7, 9]]
    """

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
    ) -> None:
        world = find_world(rank, world_size, process_group, launched=True)
        self._position = position = SamplerPosition.of(
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
        )
        super().__init__(
            range(dataset) if isinstance(dataset, int) else dataset,  # type: ignore[arg-type]  # needs a length alone
            num_replicas=world.size,
            rank=world.rank,
            shuffle=position.identity.order != "sequential",
            seed=position.cursor.settled_seed(),
            drop_last=position.identity.tail == "drop",
        )
        # torch counts them in another way: sample by sample, and not by whole global batches.
        plan = position.requests.plan
        self.num_samples = position.length
        self.total_size = sum(map(plan.rank_length, range(world.size)))

    def __iter__(self) -> Iterator[int]:
        return self._position.indices()

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank, wherever in it the sampler stands."""
        return self._position.length

    @property
    def epoch(self) -> int:
        """The current epoch: that of the pass that began last, or of the one that is set to."""
        return self._position.progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        # torch's class sets it when it is built.
        self._position.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass; the current epoch stays as it is."""
        self._position.set_epoch(epoch)

    def state_dict(self, *, delivered: int) -> dict[str, Any]:
        """The place after so many batches of the pass; see :meth:`ResumableSampler.state_dict`.

        Args:
            delivered: how many batches the present loop has got on each rank.

        Raises:
            ConfigurationError: the pass has not so many batches.
        """
        return self._position.state(delivered)

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Go on from a state at the next pass; as that of ``ResumableDataLoader``."""
        self._position.load(state, on_mismatch)
        self.seed = self._position.cursor.settled_seed()


def refuse_resumable(sampler: Any) -> None:
    """Refuse a sampler that keeps its own place, for a loader that keeps the place itself."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        if isinstance(part, ResumableSampler | ResumableDistributedSampler):
            raise ConfigurationError(
                f"a {type(part).__name__} keeps a place of its own, for a plain DataLoader; a "
                "ResumableDataLoader has its order and state already: pass shuffle= or order=, "
                "and seed=, in place of the sampler"
            )
