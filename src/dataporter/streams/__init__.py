"""Streams: iterable datasets, resumed at the exact next sample (C10)."""

from dataporter.streams.mixture import MixtureStream
from dataporter.streams.repeat import StreamRepeat
from dataporter.streams.shard import ShardedStream
from dataporter.streams.shuffled import ShuffledStream

__all__ = ["MixtureStream", "ShardedStream", "ShuffledStream", "StreamRepeat"]
