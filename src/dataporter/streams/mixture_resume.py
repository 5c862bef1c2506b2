"""A state of a mixture of streams, loaded by one that has other weights or sources (C6, C14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataporter.errors import StateMismatchError, warn
from dataporter.orders.mixture.change import described
from dataporter.schedule import snapshot
from dataporter.state.resume import OnMismatch
from dataporter.streams.mixture import MixtureStream
from dataporter.streams.mixture_turns import Since, found_in, since
from dataporter.streams.shard import ShardState

__all__ = ["with_present_blend"]


def with_present_blend(
    dataset: Any, shards: Mapping[int, ShardState], on_mismatch: OnMismatch
) -> Mapping[int, ShardState]:
    """The states of shards, of which each is mixed by the present weights from its offset on.

    A line says what has changed. Samples before the offset are reread by the weights with which
    they were delivered.

    Args:
        dataset: the stream; if it is no mixture, the states remain as they are.

    Raises:
        StateMismatchError: a source has kept its name, but not its fingerprint.
    """
    if not isinstance(dataset, MixtureStream):
        return shards
    changed, lines = dict(shards), set[str]()
    for number, state in shards.items():
        states = None if state.snapshot is None else snapshot.decode(state.snapshot)
        if state.ended or (mixed := found_in(states)) is None:
            continue
        assert states is not None
        _check_content(dataset, mixed, on_mismatch)
        line = described(Since.read(mixed["blends"][-1]).blend, dataset.blend)
        if line is None:
            continue
        lines.add(line)
        blends = since(mixed["blends"], dataset.blend, state.offset)
        states["iterator"] = {**mixed, "blends": [each.written() for each in blends]}
        state = state._replace(snapshot=snapshot.encode(states))
        known = {name for each in blends for name in each.blend.names}
        changed[number] = state if known <= dataset.sources.keys() else state.without_digest
    for line in sorted(lines):
        warn(
            f"the mixture has changed since the state was saved: {line}. This holds from the next "
            "sample on; each source continues where it stands",
            UserWarning,
        )
    return changed


def _check_content(dataset: MixtureStream, mixed: Mapping[str, Any], on_mismatch: str) -> None:
    known = dataset.fingerprints()
    for name, (*_, before) in mixed["sources"].items():
        now = known.get(name)
        if None in (before, now) or before == now:
            continue
        message = (
            f"source {name!r} of the mixture had the fingerprint {before} when the state was "
            f"saved, and has {now} now: resume with the data that the state was saved with, or "
            "give the source another name, so that it is a new one"
        )
        if on_mismatch == "error":
            raise StateMismatchError(message)
        warn(message, RuntimeWarning)
