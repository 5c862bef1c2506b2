"""MixtureStream: shares, ends, changes at a resume, workers that die, and what it refuses (C14)."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import slow
from datasets import Dataset as Table
from example_mixtures import Numbered, expected_of, numbered
from example_streams import Generated, Sharded, loader_of, through_a_file
from subjects import digest
from torch.utils.data import DataLoader, IterableDataset
from worlds import outcome, ranks_of

from dataporter import (
    ConfigurationError,
    LinearWeights,
    MixtureStream,
    ResumableDataLoader,
    SampleError,
    ShuffledStream,
    StateMismatchError,
    StreamRepeat,
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
)
from dataporter.orders.mixture.apportion import Apportionment, whole_weights

pytestmark = pytest.mark.filterwarnings("ignore:this pass has no batch")
LENGTHS = (9, 14, 5)


def three(**options: Any) -> MixtureStream:
    sources = {name: numbered(number, LENGTHS, "stateful") for number, name in enumerate("abc")}
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    return MixtureStream(sources, **{"weights": weights, **options})


def sources_of(samples: Any) -> list[int]:
    return [int(sample["id"][0]) for sample in samples]


# ---- what comes


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.25, "c": 0.05}, {"a": 1, "b": 1, "c": 1e-3}])
def test_each_source_has_its_share_within_the_bound_in_every_shard(weights: Any) -> None:
    mixture = three(weights=weights, stopping=6000)
    shares = Apportionment.of(whole_weights(weights.values()))
    for shard in range(3):
        came = np.array(sources_of(mixture.shard(3, shard)))
        assert len(came) == 2000
        for number, weight in enumerate(weights.values()):
            counts = np.cumsum(came == number)
            wanted = np.arange(1, 2001) * weight / sum(weights.values())
            # Where a period ends, and it may end anywhere up to 260 samples on.
            at = slice(259, None, 260) if sum(weights.values()) == 1 else slice(255, None, 256)
            assert np.abs(counts - wanted)[at].max() <= shares.bound


def test_shards_and_epochs_are_interleaved_in_other_orders() -> None:
    mixture, found = three(stopping=300), []
    for epoch in range(2):
        mixture.set_epoch(epoch)
        found += [tuple(sources_of(mixture.shard(3, shard))) for shard in range(3)]
    assert len(set(found)) == 6


@pytest.mark.parametrize("samples", [1, 2, 7, 100])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_number_of_samples_is_divided_over_the_shards_exactly(samples: int, shards: int) -> None:
    loader = loader_of(three(stopping=samples), num_shards=shards)
    assert sum(len(batch["id"]) for batch in loader) == samples == len(three(stopping=samples))


def test_first_exhausted_ends_a_shard_where_a_source_would_begin_again() -> None:
    for shard in range(3):
        came = Counter(sources_of(three().shard(3, shard)))
        assert all(came[number] <= LENGTHS[shard] for number in range(3))
        assert LENGTHS[shard] in came.values()


def test_all_exhausted_reads_each_source_whole_and_repeats_the_others() -> None:
    for shard in range(3):
        came = Counter(sources_of(three(stopping="all_exhausted").shard(3, shard)))
        assert all(came[number] >= LENGTHS[shard] for number in range(3))


def test_max_passes_ends_a_source_and_the_others_take_its_share() -> None:
    mixture = three(stopping=3000, max_passes={"a": 2, "b": 3})
    for shard in range(3):
        came = Counter(sources_of(mixture.shard(3, shard)))
        assert (came[0], came[1]) == (2 * LENGTHS[shard], 3 * LENGTHS[shard])
        assert came.total() == 1000
    only = three(stopping=3000, max_passes=dict.fromkeys("abc", 2))
    assert Counter(sources_of(only)) == dict.fromkeys(range(3), 2 * sum(LENGTHS))


def test_a_schedule_counts_the_samples_of_all_shards() -> None:
    weights = [(0, {"a": 1, "b": 0, "c": 0}), (300, {"a": 0, "b": 1, "c": 0})]
    for shard in range(3):
        came = sources_of(three(weights=weights, stopping=600).shard(3, shard))
        assert came == [0] * 100 + [1] * 100
    start, end = {"a": 1, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1}
    ramp = three(weights=LinearWeights([(0, start), (3000, end)]), stopping=3000)
    came = np.array(sources_of(ramp.shard(3, 1))) == 2
    assert [int(part.sum()) for part in np.split(came, 4)] == pytest.approx(
        [31, 94, 156, 219], abs=3
    )


def test_a_pass_is_the_next_epoch_of_its_source() -> None:
    stream = ShuffledStream(Numbered(0, LENGTHS), window=4)
    mixture = MixtureStream({"only": stream}, {"only": 1}, stopping=300)
    came = [tuple(sample["id"].tolist()) for sample in mixture.shard(3, 1)]
    assert came == expected_of(stream, 3, 1, 8)[:100]
    assert came[:14] != came[14:28]


def test_the_name_of_the_source_is_in_each_sample() -> None:
    for batch in loader_of(three(stopping=60, source_key="source")):
        assert batch["source"] == ["abc"[number] for number in batch["id"][:, 0]]


def test_streams_of_hugging_face_keep_their_states_and_padding() -> None:
    def rows(first: int) -> Any:
        ids = [[number] * (number % 3 + 1) for number in range(first, first + 24)]
        return Table.from_dict({"ids": ids}).to_iterable_dataset(num_shards=4)

    def build() -> ResumableDataLoader[Any]:
        streams = {
            name: UnifiedHFDatasetWrapper(rows(first), pad={"ids": 0})
            for name, first in (("low", 0), ("high", 100))
        }
        weights = {"low": 2, "high": 1}
        return loader_of(MixtureStream(streams, weights, stopping=120, source_key="from"))

    whole = [digest(batch) for batch in build()]
    loader = build()
    assert [digest(batch) for batch in itertools.islice(loader, 17)] == whole[:17]
    resumed = build()
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    assert [digest(batch) for batch in resumed] == whole[17:]


def test_a_stream_that_a_split_would_change_is_mixed_as_a_whole() -> None:
    rows = Table.from_dict({"id": [[0, 0, n] for n in range(30)]}).to_iterable_dataset(3).take(11)
    other = Table.from_dict({"id": [[1, 0, n] for n in range(30)]}).to_iterable_dataset(3)
    mixture = MixtureStream({"a": rows, "b": other}, {"a": 1, "b": 1}, stopping="all_exhausted")
    assert mixture.unsplittable is not None
    came = Counter(b["id"][0][0].item() for b in loader_of(mixture, batch_size=1))
    assert came[1] >= 30
    with pytest.raises(ConfigurationError, match="in source 'a' would give other samples"):
        loader_of(mixture, rank=0, world_size=2)


def test_it_works_in_torchs_loader_and_repeats() -> None:
    came = sum(len(batch["id"]) for batch in DataLoader(three(stopping=100), 8))
    assert came == 100
    loader = loader_of(StreamRepeat(three(stopping=30)), steps_per_epoch=7)
    seen = [digest(batch) for _ in range(3) for batch in loader]
    again = loader_of(StreamRepeat(three(stopping=30)), steps_per_epoch=7)
    found = [digest(batch) for batch in again]
    resumed = loader_of(StreamRepeat(three(stopping=30)), steps_per_epoch=7)
    resumed.load_state_dict(through_a_file(again.state_dict()))
    assert found + [digest(batch) for _ in range(2) for batch in resumed] == seen


# ---- changes at a resume


def test_a_line_says_what_has_changed_and_nothing_without_a_change() -> None:
    loader = loader_of(three(stopping=1000))
    list(itertools.islice(loader, 8))
    state = through_a_file(loader.state_dict())
    weights = {"d": 1, "c": 0.2, "a": 1}
    sources = {name: numbered("abcd".index(name), LENGTHS, "stateful") for name in weights}
    resumed = loader_of(MixtureStream(sources, weights, stopping=1000))
    with pytest.warns(UserWarning, match="the mixture has changed") as caught:
        resumed.load_state_dict(state)
    (line,) = [str(each.message) for each in caught]
    assert (
        "added 'd', left out 'b', weights {a: 0.5, b: 0.3, c: 0.2} → {a: 1, c: 0.2, d: 1}" in line
    )
    list(itertools.islice(resumed, 8))
    again = loader_of(MixtureStream(dict(reversed(sources.items())), weights, stopping=1000))
    again.load_state_dict(through_a_file(resumed.state_dict()))  # any warning would be an error


@pytest.mark.filterwarnings("ignore:the mixture has changed")
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_source_that_was_left_out_comes_back_where_it_stood(batch_size: int) -> None:
    came: dict[tuple[int, int], list[Any]] = defaultdict(list)
    sources = {name: numbered(number, LENGTHS, "shuffled") for number, name in enumerate("ab")}
    state = None
    for names in ("ab", "b", "a", "b", "ab"):
        mixture = MixtureStream({n: sources[n] for n in names}, dict.fromkeys(names, 1))
        mixture.blend = MixtureStream(
            {n: sources[n] for n in names}, dict.fromkeys(names, 1), stopping=9000
        ).blend
        loader = loader_of(mixture, batch_size=batch_size)
        if state is not None:
            loader.load_state_dict(state)
        for batch in itertools.islice(loader, 14):
            for place in map(tuple, batch["id"].tolist()):
                came[place[:2]].append(place)
        state = through_a_file(loader.state_dict())
    for (source, shard), found in came.items():
        passes = 1 + len(found) // LENGTHS[shard]
        assert found == expected_of(sources["ab"[source]], 3, shard, passes)[: len(found)]


@pytest.mark.filterwarnings("ignore:the mixture has changed")
def test_weights_may_change_beside_a_source_without_a_state_but_it_must_not_leave() -> None:
    def build(weights: dict[str, float]) -> ResumableDataLoader[Any]:
        kinds = {"a": "stateful", "b": "stateless", "c": "stateful"}
        sources = {n: numbered("abc".index(n), LENGTHS, kinds[n]) for n in weights}
        return loader_of(MixtureStream(sources, weights, stopping=9000))

    loader = build({"a": 1, "b": 1, "c": 1})
    came = [s for batch in itertools.islice(loader, 20) for s in batch["id"].tolist()]
    state = through_a_file(loader.state_dict())
    resumed = build({"a": 1, "b": 5, "c": 0})
    resumed.load_state_dict(state)
    came += [s for batch in itertools.islice(resumed, 20) for s in batch["id"].tolist()]
    for source, shard in itertools.product(range(3), range(3)):
        found = [s[2] for s in came if s[:2] == [source, shard]]
        assert found == [number % LENGTHS[shard] for number in range(len(found))]
    without = build({"a": 1, "b": 1})
    without.load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"'c' was left out .* weight of 0"):
        list(itertools.islice(without, 3))


def test_a_source_that_has_kept_its_name_but_not_its_data_is_refused() -> None:
    def build(fingerprint: str) -> ResumableDataLoader[Any]:
        mixture = three(stopping=100)
        mixture.sources["b"].fingerprint = fingerprint
        return loader_of(mixture)

    loader = build("yesterday's")
    list(itertools.islice(loader, 4))
    with pytest.raises(StateMismatchError, match="source 'b' of the mixture had the fingerprint"):
        build("today's").load_state_dict(loader.state_dict())


def test_the_number_of_shards_must_stay() -> None:
    loader = loader_of(three(stopping=100))
    list(itertools.islice(loader, 4))
    one = Numbered(3, (20,))
    mixture = three(stopping=100)
    wider = MixtureStream({**mixture.sources, "d": one}, dict.fromkeys("abcd", 1), stopping=100)
    with pytest.raises(StateMismatchError, match="num_shards=3"):
        loader_of(wider).load_state_dict(loader.state_dict())


# ---- processes


class Killing(Numbered):
    """Kills its process once, at a sample."""

    def __init__(self, source: int, lengths: tuple[int, ...], mark: str) -> None:
        super().__init__(source, lengths)
        self.mark = mark

    def shard(self, num_shards: int, index: int) -> Any:
        return _Killing(super().shard(num_shards, index), self.mark)


class _Killing:
    def __init__(self, shard: Any, mark: str) -> None:
        self.shard, self.mark = shard, mark

    def __iter__(self) -> Iterator[Any]:
        for number, sample in enumerate(self.shard):
            if number == 3 and not os.path.exists(self.mark):
                open(self.mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample


@pytest.mark.filterwarnings("ignore:.*worker")
@pytest.mark.parametrize("workers", [1, *slow(2)])
def test_a_worker_that_is_killed_changes_no_batch(workers: int, tmp_path: Any) -> None:
    def build(workers: int, mark: str) -> ResumableDataLoader[Any]:
        a, b = Killing(0, LENGTHS, mark), numbered(1, LENGTHS, "shuffled")
        return loader_of(MixtureStream({"a": a, "b": b}, {"a": 1, "b": 2}, stopping=90), workers)

    (tmp_path / "never").touch()
    expected = [digest(batch) for batch in build(0, str(tmp_path / "never"))]
    assert [digest(batch) for batch in build(workers, str(tmp_path / "once"))] == expected
    assert (tmp_path / "once").exists()


def rank_of_two(state: Any, names: str, steps: int) -> tuple[list[Any], Any]:
    sources = {name: numbered("abc".index(name), LENGTHS, "stateful") for name in names}
    mixture = MixtureStream(sources, dict.fromkeys(names, 1), stopping=9000)
    loader = ResumableDataLoader(mixture, 3, seed=3, num_workers=len(names) - 2)
    if state is not None:
        loader.load_state_dict(state)
    came = [place for batch in itertools.islice(loader, steps) for place in batch["id"].tolist()]
    return came, loader.state_dict(gather=True)


@pytest.mark.slow
def test_ranks_resume_with_another_source_and_other_workers() -> None:
    (first, state), (second, same) = ranks_of(2, rank_of_two, None, "ab", 7)
    assert state == same
    later = ranks_of(2, rank_of_two, through_a_file(state), "abc", 9)
    came = [*first, *second, *itertools.chain.from_iterable(places for places, _ in later)]
    for source, shard in itertools.product(range(3), range(3)):
        found = [place[2] for place in came if place[:2] == [source, shard]]
        assert found == [number % LENGTHS[shard] for number in range(len(found))]
        assert found


def train_until_killed(folder: str, names: str, workers: int, steps: int) -> None:
    """Saves what came and the state after each batch, and kills itself in the middle of a pass."""
    sources = {name: numbered("abc".index(name), LENGTHS, "shuffled") for name in names}
    mixture = MixtureStream(sources, dict.fromkeys(names, 1), stopping=9000)
    loader = ResumableDataLoader(mixture, 3, seed=3, num_workers=workers)
    file = Path(folder) / "checkpoint.json"
    saved = json.loads(file.read_text()) if file.exists() else {"came": [], "state": None}
    if saved["state"] is not None:
        loader.load_state_dict(saved["state"])
    for batch in itertools.islice(loader, steps):
        came = saved["came"] = [*saved["came"], *batch["id"].tolist()]
        file.with_suffix(".new").write_text(
            json.dumps({"came": came, "state": loader.state_dict()})
        )
        file.with_suffix(".new").replace(file)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_training_that_is_killed_resumes_with_other_sources_and_workers(tmp_path: Path) -> None:
    for names, workers, steps in (("ab", 2, 9), ("abc", 0, 8), ("bc", 1, 9), ("abc", 2, 20)):
        process = multiprocessing.get_context("forkserver").Process(
            target=train_until_killed, args=(str(tmp_path), names, workers, steps)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    came = [
        tuple(place) for place in json.loads((tmp_path / "checkpoint.json").read_text())["came"]
    ]
    assert len(came) == 3 * (9 + 8 + 9 + 20)
    for source, shard in itertools.product(range(3), range(3)):
        found = [place for place in came if place[:2] == (source, shard)]
        stream = numbered(source, LENGTHS, "shuffled")
        assert found == expected_of(stream, 3, shard, 10)[: len(found)]


def rank_with_other_weights() -> Any:
    rank = int(os.environ["RANK"])
    return outcome(lambda: next(iter(loader_of(three(weights={"a": 1, "b": rank + 1, "c": 1})))))


@pytest.mark.slow
def test_ranks_that_mix_by_other_weights_are_refused() -> None:
    for found in ranks_of(2, rank_with_other_weights):
        assert "RankMismatchError" in str(found)


# ---- failures and refusals


class Failing(Numbered):
    def shard(self, num_shards: int, index: int) -> Any:
        return self._samples(super().shard(num_shards, index))

    @staticmethod
    def _samples(shard: Any) -> Iterator[Any]:
        for number, sample in enumerate(shard):
            if number == 2:
                raise ValueError("broken")
            yield sample


def test_a_generator_that_fails_ends_the_pass_and_is_not_begun_again() -> None:
    streams = {"a": Failing(0, LENGTHS), "b": Numbered(1, LENGTHS)}
    loader = loader_of(MixtureStream(streams, {"a": 1, "b": 1}, stopping=60), on_error="skip")
    with pytest.raises(SampleError, match="a generator cannot continue"):
        list(loader)


def test_a_source_without_samples_in_a_shard_is_an_error() -> None:
    streams = {"a": Numbered(0, (5, 5)), "b": Numbered(1, (5, 0))}
    mixture = MixtureStream(streams, {"a": 1, "b": 1}, stopping=20)
    with pytest.raises(ConfigurationError, match="'b' of the mixture has a weight, but no samples"):
        list(loader_of(mixture))
    assert len(list(MixtureStream(streams, {"a": 1, "b": 0}, stopping=20))) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 1, "b": 1}}, "no weight for 'c'"),
        ({"weights": {"a": 1, "b": 1, "c": 1, "d": 1}}, "names 'd'"),
        ({"weights": {"a": 1, "b": -1, "c": 1}}, "'b' has the weight -1"),
        ({"weights": dict.fromkeys("abc", 0)}, "all 0"),
        ({"weights": None}, "weights=None"),
        ({"weights": [(5, dict.fromkeys("abc", 1))]}, "begins at position 5"),
        ({"stopping": "never"}, "stopping='never'"),
        ({"max_passes": {"d": 1}}, "max_passes names 'd'"),
        ({"max_passes": {"a": 0}}, "max_passes"),
        ({"source_key": 3}, "source_key=3"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        three(**options)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(UnsupportedDatasetError, match="source 'b' of MixtureStream is a Generated"):
        MixtureStream({"a": Sharded(9), "b": Generated(9)}, {"a": 1, "b": 1})  # type: ignore[dict-item]
    with pytest.raises(UnsupportedDatasetError, match=r"there is dataporter\.Mixture"):
        MixtureStream({"a": range(5)}, {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="expected a dict of streams by name"):
        MixtureStream({}, {})
    with pytest.raises(TypeError, match="at its end only"):
        len(three())


def test_samples_that_cannot_hold_the_name_of_their_source_are_refused() -> None:
    class Words(IterableDataset[str]):
        num_shards = 1

        def shard(self, num_shards: int, index: int) -> list[str]:
            return ["one", "two"]

        def __iter__(self) -> Iterator[str]:
            return iter(self.shard(1, 0))

    with pytest.raises(ConfigurationError, match="a sample of source 'a' is a str"):
        list(MixtureStream({"a": Words()}, {"a": 1}, source_key="source"))
    with pytest.raises(ConfigurationError, match="already have this key"):
        list(MixtureStream({"a": Numbered(0, (3,))}, {"a": 1}, source_key="id"))
    assert torch.is_tensor(next(iter(three()))["id"])
