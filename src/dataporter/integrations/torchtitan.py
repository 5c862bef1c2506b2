"""`EndlessLoader`: epoch after epoch through one iterator, for trainings that count steps alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch.utils.data import IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader

__all__ = ["EndlessLoader"]

Batch = TypeVar("Batch", covariant=True)


class EndlessLoader(Generic[Batch]):
    """What torchtitan's ``build_dataloader_fn`` returns: it asks for ``iter()`` once a training.

    Its checkpointer finds the loader's state through ``state_dict`` and ``load_state_dict``. A
    stream's is brought together from all ranks, so that any number of them can go on.

    Args:
        loader: the loader whose epochs follow each other. Under tensor, pipeline or context
            parallelism build it with torchtitan's ``rank=dp_rank, world_size=dp_world_size``.

    Raises:
        ConfigurationError: (a ``ValueError``) while iterating: an epoch has no batch, or the ranks
            have different numbers of them.

    Example:
        >>> from itertools import islice
        >>> endless = EndlessLoader(ResumableDataLoader(range(3), batch_size=2))
        >>> [batch.tolist() for batch in islice(endless, 5)]
        [[0, 1], [2], [0, 1], [2], [0, 1]]
        >>> endless.loader.epoch
        2
    """

    def __init__(self, loader: ResumableDataLoader[Batch]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        loader = self.loader
        is_stream = isinstance(loader.dataset, IterableDataset)
        if loader.tail == "uneven" and loader.world_size > 1 and not is_stream:
            raise ConfigurationError(
                "tail='uneven' gives some ranks a step less, so that they would be epochs ahead of "
                "the others in time, and no one state could tell where all of them are: give the "
                "loader tail='pad' or tail='drop'"
            )
        while True:
            begins, came = self.loader.step, False
            for batch in self.loader:
                came = True
                yield batch
            # A pass that a state began at an epoch's end has none to give.
            if not came and begins == 0:
                raise ConfigurationError(
                    f"rank {self.loader.rank} of {self.loader.world_size} has no batch in an epoch "
                    "of its loader, so that there is nothing to go on with for ever: give it more "
                    "samples, smaller batches or fewer ranks"
                )

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands; all ranks call it together, as checkpointers do."""
        return self.loader.state_dict(gather=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state at the next ``iter()``; all ranks call it together."""
        self.loader.load_state_dict(state)
