"""MixtureStream: each source is consumed in its own order, whatever changes at a resume (C14)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from budgets import cases
from example_mixtures import expected_of, numbered
from example_streams import loader_of, through_a_file
from hypothesis import event, given, settings
from hypothesis import strategies as st
from subjects import digest

from dataporter import LinearWeights, MixtureStream

pytestmark = [
    pytest.mark.filterwarnings("ignore:the mixture has changed"),
    pytest.mark.filterwarnings("ignore:this pass has no batch"),
    pytest.mark.filterwarnings("ignore:.*state_dict.. is this rank's part"),
]
NAMES = "abcd"
SHARDS = 3
KINDS = ("stateful", "shuffled", "stateless")
lengths = st.tuples(*[st.integers(1, 14)] * SHARDS)
weight = st.sampled_from([0.05, 0.3, 1, 2, 5])


@st.composite
def weights_of(draw: Any, names: Sequence[str]) -> Any:
    """Constant weights, steps or a ramp."""

    def one() -> dict[str, float]:
        return {name: draw(weight) for name in names}

    kind = draw(st.sampled_from(["constant", "steps", "linear"]))
    if kind == "constant":
        return one()
    ends = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=2)))
    knots = [(0, one()), *((end, one()) for end in ends)]
    return LinearWeights(knots) if kind == "linear" else knots


@st.composite
def mixtures(draw: Any) -> dict[str, Any]:
    names = NAMES[: draw(st.integers(1, 3))]
    return {
        "sources": {name: (draw(st.sampled_from(KINDS)), draw(lengths)) for name in names},
        "weights": draw(weights_of(names)),
        "stopping": draw(st.sampled_from(["first_exhausted", "all_exhausted", 7, 60])),
        "max_passes": draw(st.dictionaries(st.sampled_from(names), st.integers(1, 3))),
    }


def built(sources: Any, **options: Any) -> MixtureStream:
    streams = {
        name: numbered(number, parts, kind)
        for number, (name, (kind, parts)) in enumerate(sources.items())
    }
    return MixtureStream(streams, source_key="source", **options)


@settings(max_examples=cases(100))
@given(
    mixture=mixtures(),
    stops=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    batch_size=st.integers(1, 5),
    snapshot_every=st.integers(1, 3),
    strategy=st.sampled_from(["advanced", "simple"]),
)
def test_a_mixture_that_does_not_change_resumes_bit_for_bit(
    mixture: Any, stops: list[int], batch_size: int, snapshot_every: int, strategy: str
) -> None:
    def loader() -> Any:
        options = {"snapshot_every": snapshot_every, "strategy": strategy}
        return loader_of(built(**mixture), batch_size=batch_size, **options)

    whole = [digest(batch) for batch in itertools.islice(loader(), 60)]
    found: list[str] = []
    state = None
    for stop in stops:
        run = loader()
        if state is not None:
            run.load_state_dict(state)
        left = min(stop, len(whole) - len(found))
        found += [digest(batch) for batch in itertools.islice(run, left)]
        state = through_a_file(run.state_dict())
    last = loader()
    last.load_state_dict(state)
    found += [digest(batch) for batch in itertools.islice(last, 60 - len(found))]
    assert found == whole


stages = st.lists(
    st.tuples(
        st.sets(st.sampled_from(NAMES), min_size=1)
        .map(sorted)
        .flatmap(lambda names: st.tuples(st.just(names), weights_of(names))),
        st.integers(1, 5),  # batch size
        st.integers(1, SHARDS),  # ranks
        st.integers(0, 6),  # steps
        st.integers(1, 3),  # snapshot_every
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=cases(150))
@given(
    parts=st.tuples(*[lengths] * len(NAMES)),
    kinds=st.tuples(*[st.sampled_from(KINDS[:2])] * len(NAMES)),
    stages=stages,
)
def test_every_source_is_consumed_as_a_prefix_whatever_changes(
    parts: Any, kinds: Any, stages: Any
) -> None:
    sources = {
        name: numbered(number, parts[number], kinds[number]) for number, name in enumerate(NAMES)
    }
    came: dict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
    state = None
    for (names, weights), batch_size, ranks, steps, snapshot_every in stages:
        mixture = MixtureStream({n: sources[n] for n in names}, weights, stopping=10_000)
        loaders = [
            loader_of(
                mixture,
                batch_size=batch_size,
                rank=rank,
                world_size=ranks,
                snapshot_every=snapshot_every,
                strategy="distributed",
            )
            for rank in range(ranks)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            for batch in itertools.islice(loader, steps):
                for place in map(tuple, batch["id"].tolist()):
                    came[place[0], place[1]].append(place)
        states = [loader.state_dict() for loader in loaders]
        state = through_a_file(states[0] if ranks == 1 else loaders[0].setup.format.join(states))
    event(f"{len(stages)} stages")
    for (source, shard), found in came.items():
        passes = 1 + len(found) // parts[source][shard]
        stream = sources[NAMES[source]]
        assert found == expected_of(stream, SHARDS, shard, passes)[: len(found)]
