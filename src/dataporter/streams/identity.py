"""The identity of a stream's data: the same on all ranks that share the stream (C7, C12)."""

from __future__ import annotations

from typing import Any

from dataporter.datasets.fingerprint import explicit_fingerprint, fingerprint_of
from dataporter.streams.mixture import MixtureStream
from dataporter.streams.repeat import StreamRepeat
from dataporter.streams.shard import contents_of
from dataporter.streams.shuffled import ShuffledStream
from dataporter.streams.stream import Stream

__all__ = ["fingerprint_between_ranks"]


def fingerprint_between_ranks(stream: Stream) -> str | None:
    """What the ranks that divide a stream's shards compare; None where nothing is known.

    It is the stream's fingerprint and, unless the user gave that to the loader, the files that the
    stream lists, or what else is known of its data sources. These are not in the state, since the
    next run may add some; but ranks that list different ones at the same time read different
    streams.
    """
    dataset = stream.sharding.dataset
    was_given = stream.fingerprint != explicit_fingerprint(dataset)
    return stream.fingerprint if was_given else _known_of(dataset)


def _known_of(dataset: Any) -> str | None:
    if isinstance(dataset, ShuffledStream | StreamRepeat):
        return f"{dataset.fingerprint} of {_known_of(dataset.stream)}"
    if isinstance(dataset, MixtureStream):
        sources = {name: _known_of(stream) for name, stream in sorted(dataset.sources.items())}
        return f"{dataset.fingerprint}: {dataset.blend} of {sources}"
    return fingerprint_of(contents_of(dataset) or dataset)
