"""The progress bar of a replay, during which the training loop waits (C10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from dataporter.errors import warn
from dataporter.streams.shard import ShardState

__all__ = ["ReplayBar"]

_SHOWS_AFTER = 1.0  # s


class ReplayBar:
    """Shows how many samples of a replay are reread; nothing if there are none.

    Args:
        to_replay: the states whose samples are reread, from the snapshot up to the offset.
        warns: warn of what is reread from its first sample on. Not where an epoch continues the one
            before, whose open shards are often reused.
    """

    def __init__(self, to_replay: Sequence[ShardState], *, warns: bool) -> None:
        self._replayed = {state.shard: state.snapshot_offset for state in to_replay}
        if warns:
            _warn_of_start(to_replay)
        total = sum(state.offset - state.snapshot_offset for state in to_replay)
        self._bar: tqdm[Any] | None = None
        if total:
            self._bar = tqdm(
                total=total,
                desc="replaying the stream",
                unit="sample",
                unit_scale=True,
                leave=False,
                delay=_SHOWS_AFTER,
            )

    def show(self, state: ShardState) -> None:
        """Show the state that a replay has reached."""
        before = self._replayed.get(state.shard, state.offset)
        if self._bar is not None and state.offset > before:
            self._replayed[state.shard] = state.offset
            self._bar.update(state.offset - before)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _warn_of_start(to_replay: Sequence[ShardState]) -> None:
    # No snapshot is taken of the first batch of a shard, so that a resume compares it.
    from_start = sum(
        state.offset for state in to_replay if state.snapshot is None and state.batches > 1
    )
    if from_start:
        warn(
            "the stream has no exact state to resume from, so the workers reread and discard "
            f"{from_start:,} delivered samples first; state_dict and load_state_dict on what is "
            "iterated over (the dataset, or each shard), or on its iterator, avoid this",
            RuntimeWarning,
        )
