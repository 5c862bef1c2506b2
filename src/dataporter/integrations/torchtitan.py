"""`EndlessLoader`: epoch after epoch through one iterator, for trainings that only count steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch.utils.data import IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader

__all__ = ["EndlessLoader"]

Batch = TypeVar("Batch", covariant=True)


class EndlessLoader(Generic[Batch]):
    """For torchtitan's ``build_dataloader_fn`` to return: torchtitan calls ``iter()`` once.

    Its checkpointer finds the loader's state through ``state_dict`` and ``load_state_dict``. The
    state of a stream is gathered from all ranks, so that any number of ranks can resume.

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
        apart = loader.tail == "uneven" and not loader.setup.arguments.stop_together
        if apart and loader.world_size > 1 and not is_stream:
            raise ConfigurationError(
                "tail='uneven' gives some ranks a step less in each epoch, so that in time they "
                "would be in other epochs than the rest, for which there is no common state: give "
                "the loader tail='pad' or tail='drop'"
            )
        while True:
            first_step, is_empty = loader.step, True
            for batch in loader:
                is_empty = False
                yield batch
            # After a resume at an epoch's end, a pass is rightly empty.
            if is_empty and first_step == 0:
                raise ConfigurationError(
                    f"rank {loader.rank} of {loader.world_size} has no batch in an epoch of its "
                    "loader, so that an endless loader would wait forever: give it more samples, "
                    "smaller batches or fewer ranks"
                )

    def state_dict(self) -> dict[str, Any]:
        """The position of the training; all ranks call this together, as checkpointers do."""
        return self.loader.state_dict(gather=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state at the next ``iter()``; all ranks call this together."""
        self.loader.load_state_dict(state)
