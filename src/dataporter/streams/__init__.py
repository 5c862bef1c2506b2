"""Streams: datasets that are iterated over, and yet go on from the exact next sample (C10)."""

from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardedStream
from dataporter.streams.sharding import sharding_of
from dataporter.streams.shuffled import ShuffledStream
from dataporter.streams.stream import Stream, warn_of_length

__all__ = [
    "ShardedStream",
    "ShuffledStream",
    "Stream",
    "StreamProgress",
    "sharding_of",
    "warn_of_length",
]
