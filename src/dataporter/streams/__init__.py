"""Streams: datasets that are iterated over, and yet go on from the exact next sample (C10)."""

from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardedStream
from dataporter.streams.sharding import cut_of
from dataporter.streams.shuffled import ShuffledStream
from dataporter.streams.stream import Stream, warn_of_length

__all__ = [
    "ShardedStream",
    "ShuffledStream",
    "Stream",
    "StreamProgress",
    "cut_of",
    "warn_of_length",
]
