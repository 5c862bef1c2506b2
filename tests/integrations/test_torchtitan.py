"""torchtitan's `CheckpointManager` with our loader: resumed after a kill, also in another world."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.frameworks.cases import TORCHTITAN, Case, torchrun, verdict
from benchmarks.frameworks.subject import LENGTH
from benchmarks.frameworks.trial import attempt, samples_of_epochs

from dataporter import ConfigurationError, ResumableDataLoader
from dataporter.integrations.torchtitan import EndlessLoader

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("case", TORCHTITAN, ids=lambda case: case.what)
def test_a_killed_training_resumes_exactly(case: Case, homes: Path) -> None:
    assert verdict(case, "dataporter", homes) is None


def test_another_number_of_ranks_reads_the_rest_once(tmp_path: Path) -> None:
    """A checkpoint of 2 ranks, 3 steps into the second epoch: 48 of its 90 samples are done."""
    options = ("--every", "3")
    killed = attempt("titan", tmp_path, 0, *options, kill_at=10, launcher=torchrun(2))
    done = samples_of_epochs(entry for entry in killed if entry.step < 9)[1]
    assert done.total() == 48
    # By the number of ranks: steps in the rest of the second epoch and in a whole third one; and
    # the number of samples that appear twice in each, as padding.
    for number, (ranks, steps, repeats) in enumerate([(1, 6 + 12, 0), (4, 2 + 3, 2)], start=1):
        resumed = attempt(
            *("titan", tmp_path, number, *options),
            *("--load-step", "9", "--steps", str(9 + steps)),
            launcher=torchrun(ranks),
        )
        assert min(entry.step for entry in resumed) == 9
        counted = samples_of_epochs(resumed)
        assert counted.keys() == {1, 2}
        for whole in (done + counted[1], counted[2]):
            assert set(whole) == set(range(LENGTH))
            assert whole.total() == LENGTH + repeats


def test_ranks_that_would_be_in_different_epochs_are_refused() -> None:
    for world_size, batches in ((1, 6), (2, 0)):
        loader = ResumableDataLoader(range(5), tail="uneven", rank=0, world_size=world_size, seed=1)
        endless = iter(EndlessLoader(loader))
        for _ in range(batches):
            next(endless)
    with pytest.raises(ConfigurationError, match="give the loader tail='pad'"):
        next(endless)
