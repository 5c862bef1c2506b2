"""Diagnosis: each planted fault is found and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import faulty
import numpy as np
import pytest
import torch
from budgets import slow_except
from example_streams import KINDS
from faulty import FAULTS, loader
from subjects import Augmented, Batched, Indices
from torch.utils.data import RandomSampler

from dataporter import ResumableDataLoader, verify
from dataporter.tools.verification.diagnosis import diagnose
from dataporter.tools.verification.factory import factory_of
from dataporter.tools.verification.processes import Processes
from dataporter.tools.verification.report import Case

pytestmark = pytest.mark.usefixtures("shared_hosts")

# The others show without workers as well, which takes less time.
SEEN_WITH_WORKERS = (
    faulty.worker_in_a_sample,
    faulty.worker_init_fn_with_the_clock,
    faulty.global_generators_in_threads,
    faulty.threads_that_share_a_buffer,
    faulty.batches_out_of_order,
    faulty.file_that_workers_share,
)
# The others show within an epoch.
SEEN_IN_THE_SECOND_EPOCH = (
    *SEEN_WITH_WORKERS,
    faulty.stream_that_counts,
    faulty.rows_changed_in_place,
)


@pytest.mark.parametrize(
    "make_loader",
    slow_except((faulty.list_shuffled_by_python, faulty.transform_that_counts), FAULTS),
    ids=lambda fault: fault.__name__,
)
def test_each_fault_has_its_diagnosis(make_loader: Callable[[], Any]) -> None:
    cause, named = FAULTS[make_loader]
    workers = [0, 2] if make_loader in SEEN_WITH_WORKERS else [0]
    steps = None if make_loader in SEEN_IN_THE_SECOND_EPOCH else 6
    report = verify(make_loader, workers=workers, steps=steps, measure=False, seed=1)
    assert not report.exact
    assert [diagnosis.cause for diagnosis in report.diagnoses] == [cause], str(report)
    (diagnosis,) = report.diagnoses
    assert named in diagnosis.because
    assert diagnosis.remedy


@pytest.mark.slow
def test_a_number_of_workers_that_cannot_change_is_named() -> None:
    make_loader = faulty.plain_loader_that_depends_on_its_workers
    report = verify(make_loader, workers=[0, 1], steps=6, measure=False)
    causes = {diagnosis.cause for diagnosis in report.diagnoses}
    assert causes == {
        "the number of workers cannot change",
        "a worker's death ends the training",
    }, str(report)


SOUND: dict[str, Callable[[], Any]] = {
    "augmented": lambda: loader(Augmented(24)),
    "augmented, simple": lambda: loader(Augmented(24), strategy="simple"),
    "augmented, distributed": lambda: loader(Augmented(24), strategy="distributed"),
    "columns": lambda: loader({"x": torch.arange(24), "y": np.arange(24.0)}),
    "batched": lambda: loader(Batched(24)),
    "a sampler": lambda: ResumableDataLoader(
        Indices(24), 4, sampler=RandomSampler(range(24)), seed=3
    ),
    **{kind: partial(lambda made: loader(made(24)), made) for kind, made in KINDS.items()},
}


def sound(name: str) -> Any:
    return SOUND[name]()


@pytest.mark.parametrize("name", slow_except(("augmented", "columns", "dataset state"), SOUND))
def test_nothing_is_found_in_a_sound_loader(name: str, hosts: Processes) -> None:
    """The diagnosis runs as if a case had differed."""
    stream = name in KINDS
    facts = {
        "stream": stream,
        "ours": True,
        "samples": None if stream else 24,
        "keeps_state": False,
    }

    def run(what: str, tasks: Any) -> Any:
        return hosts.run(tasks, 2)

    case = Case("2 processes", "mid-epoch", "not exact")
    found, notes = diagnose(factory_of(sound, {"name": name}), facts, [case], run)
    assert found == []
    assert notes == ["no experiment has shown why it differs"]
