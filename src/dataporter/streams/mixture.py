"""`MixtureStream`: several streams as one, whose samples come by weight (C10, C14)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any

from torch.utils.data import IterableDataset

from dataporter.checks import given
from dataporter.datasets.fingerprint import explicit_fingerprint
from dataporter.datasets.mixture import GivenWeights
from dataporter.datasets.mixture_arguments import (
    limits_checked,
    names_checked,
    stopping_checked,
    weights_checked,
)
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.orders.mixture.phase import Blend, Stopping
from dataporter.seeding.hashing import STREAM_MIXTURE, fold
from dataporter.seeding.samples import current_key
from dataporter.streams.mixed import Mixed
from dataporter.streams.mixture_part import Part
from dataporter.streams.mixture_turns import Share, blend_of
from dataporter.streams.shard import (
    ShardedStream,
    always_draws,
    draws_in_threads,
    is_sharded,
    node_of,
    reads_ahead,
    unsplittable,
    whole,
    without_node,
)

__all__ = ["MixtureStream"]


class MixtureStream(IterableDataset[Any]):
    """Several streams as one, whose samples come by weight, in shards that each mix all of them.

    Shard i of n mixes shard i of n of every source: in a period of a few hundred samples each
    source has its share, in an order drawn from (seed, epoch, shard). Each source is read as if it
    were alone. So weights may change and sources may join or be left out when a run resumes, at any
    sample: build the mixture as it shall be from then on, and load the state as always. A source is
    known by its name; the state of one that is left out is kept until it comes back.

    Args:
        sources: streams that can be split into shards (:class:`ShardedStream`), by name. The
            mixture has as many shards as the source with the fewest.
        weights: each source's proportion of the samples, as for :class:`~dataporter.Mixture`: a
            dict, steps, or :class:`~dataporter.LinearWeights`. Positions of a schedule count the
            samples of an epoch over all shards, which are assumed to advance together.
        stopping: how long an epoch is. ``"first_exhausted"``: each shard ends where its part of a
            source would begin again. ``"all_exhausted"``: each shard ends once its parts of all
            sources were read; shorter ones repeat. A number: so many samples over all shards;
            sources repeat.
        max_passes: by source, the number of passes in an epoch after which it ends. The others
            take its share.
        source_key: the key under which each sample, a dict, has the name of its source.

    Raises:
        ConfigurationError: (a ``ValueError``) weights are negative, all 0, name no source or leave
            one out; a schedule goes backwards; and the like. While it is read: a shard has no
            samples of a source that has a weight.
        UnsupportedDatasetError: (a ``TypeError``) a source cannot be split into shards.

    Example:
        >>> from dataporter import MixtureStream, ResumableDataLoader
        >>> from datasets import Dataset
        >>> low, high = (Dataset.from_dict({"n": list(range(s, s + 8))}) for s in (0, 100))
        >>> sources = {"low": low.to_iterable_dataset(2), "high": high.to_iterable_dataset(2)}
        >>> data = MixtureStream(sources, {"low": 2, "high": 1}, stopping=12)
        >>> loader = ResumableDataLoader(data, batch_size=6, seed=1)
        >>> sorted(n for batch in loader for n in batch["n"].tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 104, 105]
    """

    # Its states are those of the sources whose states are exact.
    snapshots_are_exact = True

    def __init__(
        self,
        sources: Mapping[str, ShardedStream],
        weights: GivenWeights,
        *,
        stopping: Stopping = "first_exhausted",
        max_passes: Mapping[str, int] | None = None,
        source_key: str | None = None,
    ) -> None:
        self.sources: dict[str, Any] = names_checked(sources, "streams")
        for name, stream in self.sources.items():
            if not is_sharded(stream):
                raise UnsupportedDatasetError(
                    f"source {name!r} of MixtureStream is a {type(stream).__name__}, which has no "
                    "num_shards and shard(num_shards, index), see dataporter.ShardedStream; for "
                    "map-style datasets there is dataporter.Mixture"
                )
        names = tuple(self.sources)
        if weights is None:
            raise ConfigurationError(
                "weights=None: the lengths of streams are unknown, so give each source a weight"
            )
        if source_key is not None and not isinstance(source_key, str):
            raise ConfigurationError(f"{given('source_key', source_key)}: expected a text or None")
        nodes = {node for stream in self.sources.values() if (node := node_of(stream)) is not None}
        if len(nodes) > 1:
            raise ConfigurationError(
                f"the sources were split by split_dataset_by_node as {sorted(nodes)}: leave it "
                "out, since the loader shares the mixture among its ranks"
            )
        self.blend = blend_of(
            Blend(
                names,
                (0,) * len(names),
                weights_checked(weights, dict.fromkeys(names, 1)),
                limits_checked(max_passes, names),
                stopping_checked(stopping),
            )
        )
        self.source_key = source_key
        self.epoch = 0

    @property
    def fingerprint(self) -> str:
        """The same for all mixtures of streams, since their sources and weights may change."""
        return "mixture of streams, version 1"

    def fingerprints(self) -> dict[str, str]:
        """By name, the fingerprints of those sources that have one."""
        found = {name: explicit_fingerprint(stream) for name, stream in self.sources.items()}
        return {name: _short(text) for name, text in found.items() if text is not None}

    @property
    def num_shards(self) -> int:
        """The number of shards of the source that has the fewest."""
        return min(int(stream.num_shards) for stream in self.sources.values())

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """A shard of the mixture: the same shard of each source, mixed."""
        return self._mixed(
            {
                name: partial(stream.shard, num_shards=num_shards, index=index)
                for name, stream in self.sources.items()
            },
            Share(index, num_shards),
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which the sources' epochs count on, one for each pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        if self.unsplittable is not None:
            return iter(self.__whole__())
        shards = self.num_shards
        return chain.from_iterable(self.shard(shards, index) for index in range(shards))

    def __len__(self) -> int:
        if not isinstance(self.blend.stopping, int) or any(self.blend.limits):
            raise TypeError("how many samples a mixture of streams has is known at its end only")
        return self.blend.stopping

    def __getattr__(self, name: str) -> Any:
        if name == "__collate__" and "sources" in self.__dict__:  # of wrappers, which pad
            collates = [getattr(stream, name) for stream in self.sources.values()]
            return collates[0]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def reads_ahead(self) -> bool:
        """Whether a source computes samples ahead of the requested one."""
        return any(map(reads_ahead, self.sources.values()))

    @property
    def draws(self) -> bool:
        """Whether all generators are seeded before each sample, whatever a source draws from."""
        return any(map(always_draws, self.sources.values()))

    @property
    def draws_in_threads(self) -> bool:
        """Whether a source draws random numbers in its own threads."""
        return any(map(draws_in_threads, self.sources.values()))

    @property
    def unsplittable(self) -> str | None:
        """What in the sources a split into shards would change; None if nothing."""
        reasons = {name: unsplittable(stream) for name, stream in self.sources.items()}
        named = [f"{reason} in source {name!r}" for name, reason in reasons.items() if reason]
        return " and ".join(named) or None

    def __whole__(self) -> Iterable[Any]:
        parts = {name: partial(whole, stream) for name, stream in self.sources.items()}
        return self._mixed(parts, Share(0, 1))

    def __node__(self) -> Any:
        nodes = map(node_of, self.sources.values())
        return next((node for node in nodes if node is not None), None)

    def __without_node__(self) -> MixtureStream:
        rejoined = copy(self)
        rejoined.sources = {name: without_node(stream) for name, stream in self.sources.items()}
        return rejoined

    def _mixed(self, parts: Mapping[str, Callable[[], Any]], share: Share) -> _Shard:
        return _Shard(self, parts, share, self.epoch)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard of a mixture.

    Attributes:
        mixture: its sources are told the number of each pass.
        parts: by name, what opens a source's shard.
        share: which shard it is.
        epoch: of the mixture.
    """

    mixture: MixtureStream
    parts: Mapping[str, Callable[[], Any]]
    share: Share
    epoch: int

    def __iter__(self) -> Mixed:
        key, blend = current_key(), self.mixture.blend
        fingerprints = self.mixture.fingerprints()
        parts = {}
        for name, limit in zip(blend.names, blend.limits):
            first = self.epoch * (limit or 1)
            stream = self.mixture.sources[name]
            parts[name] = Part(name, stream, self.parts[name], first, key, fingerprints.get(name))
        word = fold(self.epoch, self.share.index) if key is None else key
        # A number that JSON holds as it is.
        drawn = fold(word, STREAM_MIXTURE) >> 12
        return Mixed(parts, blend, self.share, drawn, self.mixture.source_key)


def _short(fingerprint: str) -> str:
    return blake2b(fingerprint.encode(), digest_size=4).hexdigest()
