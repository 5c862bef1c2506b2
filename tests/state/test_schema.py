"""The state on disk: the keys of schema 3, in their order, and the types of their values (C5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dataporter import Failure, InvalidStateError
from dataporter.schedule.progress import Delivered, Progress
from dataporter.state import schema
from dataporter.state.ledger import Ledger
from dataporter.state.schema import DAMAGED, Identity, State
from dataporter.streams import state as stream_schema
from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardState
from dataporter.streams.state import StreamIdentity, StreamState

INDEX = State(
    Identity("simple", "torch", 3, 100, "fp", 4, 2, "pad"),
    seed=7,
    progress=Progress(1, 2, 8, (Delivered(12, 16, 5), Delivered(20, 24, 6)), 9),
    ledger=Ledger(
        (
            Failure(5, "a.png", 0, 1, 4, "OSError", "truncated", 2),
            Failure((1, 7), None, 1, 0, 2, "ValueError", ""),
        ),
        total=9,
        epoch=1,
        in_epoch=3,
    ),
)
INDEX_ON_DISK = (
    '{"dataporter": 3, "strategy": "simple", "seed": 7, "epoch": 1, "step": 2, "position": 8, '
    '"early": [[12, 16, 5], [20, 24, 6]], "order": "torch", "order_version": 3, '
    '"order_digest": 9, "dataset_length": 100, "dataset_fingerprint": "fp", "batch_size": 4, '
    '"world_size": 2, "tail": "pad", '
    '"failures": [9, 3, [[5, "a.png", 0, 1, 4, "OSError", "truncated", 2], '
    '[[1, 7], null, 1, 0, 2, "ValueError", "", 1]]], '
    '"rank": null, "sampler": null, "ranks": null, "mixture": null}'
)
SHARDS = StreamState(
    StreamIdentity("distributed", "shards", 8, None, None, None, 2, "drop"),
    seed=7,
    rank=1,
    progress=StreamProgress(
        1,
        5,
        {
            3: ShardState(3, 2, 8, True, 6, '{"dataset":1}'),
            1: ShardState(1, 3, 12, digest=5, digest_offset=12),
        },
        1,
        9,
    ),
)
SHARDS_ON_DISK = (
    '{"dataporter": 3, "stream": "shards", "strategy": "distributed", "seed": 7, "epoch": 1, '
    '"step": 5, "continued": 1, "earlier": 9, "rank": 1, '
    '"shards": [[1, 3, 12, false, 0, null, 5, 12, null], '
    '[3, 2, 8, true, 6, "{\\"dataset\\":1}", 0, 0, null]], "num_shards": 8, "num_workers": null, '
    '"dataset_fingerprint": null, "batch_size": null, "world_size": 2, "tail": "drop", '
    '"failures": [0, 0, []]}'
)
WORKERS = StreamState(
    StreamIdentity("advanced", "workers", None, 2, "fp", 4, 1, "uneven"),
    seed=0,
    rank=None,
    progress=StreamProgress(0, 1, {0: ShardState(0, 1, 4, False, 4, "{}")}),
)
WORKERS_ON_DISK = (
    '{"dataporter": 3, "stream": "snapshots", "strategy": "advanced", "seed": 0, "epoch": 0, '
    '"step": 1, "continued": 0, "earlier": 0, "rank": null, '
    '"shards": [[0, 1, 4, false, 4, "{}", 0, 0, null]], '
    '"num_shards": null, "num_workers": 2, "dataset_fingerprint": "fp", "batch_size": 4, '
    '"world_size": 1, "tail": "uneven", "failures": [0, 0, []]}'
)
ON_DISK = pytest.mark.parametrize(
    ("room", "state", "text"),
    [
        (schema, INDEX, INDEX_ON_DISK),
        (stream_schema, SHARDS, SHARDS_ON_DISK),
        (stream_schema, WORKERS, WORKERS_ON_DISK),
    ],
    ids=["index", "shards", "workers"],
)


@ON_DISK
def test_the_state_on_disk_is_that_of_schema_3(room: Any, state: Any, text: str) -> None:
    assert json.dumps(room.build(state)) == text
    assert room.parse(json.loads(text)) == state


@ON_DISK
def test_a_field_of_another_type_is_named_with_the_types_it_may_have(
    room: Any, state: Any, text: str
) -> None:
    expected = {
        "dataporter": "int",
        "stream": "str",
        "strategy": "str",
        "seed": "int",
        "epoch": "int",
        "step": "int",
        "continued": "int",
        "earlier": "int",
        "position": "int",
        "early": "list or tuple",
        "order": "str",
        "order_version": "int",
        "order_digest": "int",
        "rank": "int or null",
        "sampler": "str or null",
        "ranks": "list or tuple or null",
        "mixture": "list or tuple or null",
        "shards": "list or tuple",
        "num_shards": "int or null",
        "num_workers": "int or null",
        "dataset_length": "int or null",
        "dataset_fingerprint": "str or null",
        "batch_size": "int or null",
        "world_size": "int",
        "tail": "str",
        "failures": "list or tuple",
    }
    found = json.loads(text)
    for field in found:
        for wrong in (True, 1.5, {}):
            with pytest.raises(InvalidStateError) as caught:
                room.parse({**found, field: wrong})
            shown = f"{type(wrong).__name__} {wrong!r}"
            assert str(caught.value) == (
                f"the state's field {field!r} is {shown}, expected {expected[field]}: {DAMAGED}"
            )


@ON_DISK
def test_a_missing_field_is_named(room: Any, state: Any, text: str) -> None:
    found = json.loads(text)
    for field in found:
        with pytest.raises(InvalidStateError, match=rf"{field!r}|is of a") as caught:
            room.parse({name: found[name] for name in found if name != field})
        assert ("is of a" in str(caught.value)) == (field == "stream")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "is -1, expected 0 to 9223372036854775807"),
        ("epoch", -1, "is -1, expected 0 to"),
        ("step", 1 << 63, "expected 0 to"),
        ("position", -1, "is -1, expected 0 to"),
        ("order_digest", -1, "is -1, expected 0 to"),
        ("dataset_length", -1, "is -1, expected 0 to"),
        ("batch_size", 0, "is 0, expected 1 or more"),
        ("world_size", 0, "is 0, expected 1 or more"),
    ],
)
def test_a_number_outside_its_range_is_named(field: str, value: int, message: str) -> None:
    with pytest.raises(InvalidStateError, match=rf"the state's field '{field}' .*{message}"):
        schema.parse({**json.loads(INDEX_ON_DISK), field: value})


@pytest.mark.parametrize(
    "entry",
    [
        [0, 1, 4],
        [0, 1, 4, 0, 4, "{}"],
        [0, True, 4, False, 4, "{}"],
        [0, 1, 4, False, 4, 5],
        [2, 1, 4, False, 4, "{}"],
        [0, -1, 4, False, 4, "{}"],
        [0, 1, 4, False, 5, "{}"],
        [0, 1, 4, False, 4, "{}", 0, 5],
        [0, 1, 4, False, 4, "{}", 0, None],
        "0",
    ],
    ids=str,
)
def test_a_damaged_shard_is_shown_beside_what_was_expected(entry: object) -> None:
    with pytest.raises(InvalidStateError) as caught:
        stream_schema.parse({**json.loads(WORKERS_ON_DISK), "shards": [entry]})
    assert str(caught.value) == (
        f"the state's field 'shards' holds {type(entry).__name__} {entry!r}, expected [shard, "
        "batches, offset, ended, snapshot_offset, snapshot, digest, digest_offset, "
        "beginning] with 0 <= shard < 2 and 0 <= snapshot_offset, digest_offset <= offset: "
        f"{DAMAGED}"
    )


@pytest.mark.parametrize(
    "failures",
    [
        [],
        [1, 0],
        [-1, 0, []],
        [True, 0, []],
        [1, 2, []],
        [1, 0, {}],
        [9, 0, ["5"]],
        [9, 0, [[5, None, 0, 1, 4, "OSError", ""]]],
        [9, 0, [[5.0, None, 0, 1, 4, "OSError", "", 1]]],
        [9, 0, [[[True, 1], None, 0, 1, 4, "OSError", "", 1]]],
        [9, 0, [[5, 1, 0, 1, 4, "OSError", "", 1]]],
        [9, 0, [[5, None, 0, -1, 4, "OSError", "", 1]]],
        [9, 0, [[5, None, 0, 1, 4, "OSError", "", 0]]],
        [9, 0, [[5, None, 0, 1, 4, "OSError", "", 10]]],
        [9, 0, [[5, None, 0, 1, 4, None, "", 1]]],
        [9, 0, 2 * [[5, None, 0, 1, 4, "OSError", "", 1]]],
    ],
    ids=str,
)
def test_failures_that_cannot_be_are_an_error(failures: list[Any]) -> None:
    with pytest.raises(InvalidStateError, match=r"field 'failures' holds list .*expected"):
        schema.parse({**json.loads(INDEX_ON_DISK), "failures": failures})
