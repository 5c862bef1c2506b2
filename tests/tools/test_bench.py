"""Measuring loaders: times known beforehand are measured, and the advice follows from them."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from typer.testing import CliRunner

from dataporter import ConfigurationError, ResumableDataLoader, UnsupportedDatasetError
from dataporter.convert import KeyBasedDtypeConverter
from dataporter.tools.bench.advice import by_estimate, by_trial
from dataporter.tools.bench.copies import with_workers
from dataporter.tools.bench.measure import measure
from dataporter.tools.bench.passes import run
from dataporter.tools.bench.report import Latency, Trial, duration, rate
from dataporter.tools.bench.stages import measure_stages
from dataporter.tools.target import argument, load_target
from dataporter_cli import main

# A sleep takes as long or longer on a busy machine, never shorter.
READ, COLLATE = 0.002, 0.010


class Slow(Dataset[dict[str, Any]]):
    def __init__(self, length: int = 400) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(READ)
        return {"index": index, "image": np.zeros(8, dtype=np.float32)}


class SlowStream(IterableDataset[int]):
    def __iter__(self) -> Any:
        for index in range(400):
            time.sleep(READ)
            yield index


def slow_collate(samples: list[Any]) -> Any:
    time.sleep(COLLATE)
    return torch.utils.data.default_collate(samples)


@pytest.mark.parametrize("kind", [ResumableDataLoader, DataLoader])
@pytest.mark.parametrize("dataset", [Slow(), SlowStream()])
def test_reading_and_collating_are_measured_separately(kind: Any, dataset: Any) -> None:
    loader = kind(dataset, batch_size=4, collate_fn=slow_collate)
    stages = measure_stages(loader, 0.3)
    # The shortest of each, since a sleep takes longer on a busy machine.
    assert 4 * READ <= min(stages.read) < 4 * READ + COLLATE
    assert COLLATE <= min(stages.collate) < COLLATE + 4 * READ
    assert not stages.together
    assert len(stages.read) == len(stages.collate) >= 2


class Fast(Slow):
    def __getitem__(self, index: int) -> Any:
        return {"image": torch.zeros(2)}


class Drawing(Slow):
    def __getitem__(self, index: int) -> Any:
        random.random()
        return super().__getitem__(index)


def test_seeding_and_converting_are_measured_and_the_loader_does_not_move() -> None:
    converter = KeyBasedDtypeConverter({"image": "float16"})
    loader = ResumableDataLoader(Drawing(), 16, converter=converter, seed=1)
    state, generator = loader.state_dict(), torch.get_rng_state()
    stages = measure_stages(loader, 0.1)
    assert all(seconds > 0 for seconds in (*stages.seed, *stages.convert))
    assert loader.state_dict() == state
    assert torch.equal(torch.get_rng_state(), generator)
    simple = ResumableDataLoader(Drawing(), 16, strategy="simple", seed=1)
    assert measure_stages(simple, 0.1).seed[0] < stages.seed[0]
    undrawn = ResumableDataLoader(Fast(), 16, seed=1)
    assert not any(measure_stages(undrawn, 0.1).seed)


def test_a_gather_is_one_stage() -> None:
    loader = ResumableDataLoader(TensorDataset(torch.rand(100, 3)), 10)
    stages = measure_stages(loader, 0.01)
    assert stages.together
    assert not any(stages.seed)
    assert not any(stages.collate)


def test_a_loop_slower_than_its_loader_does_not_wait() -> None:
    loader = ResumableDataLoader(Slow(), 4, num_workers=2)
    slow = run(loader, 1.0, step=0.05)
    assert slow.stepped >= 0.05 * slow.steady_batches > 0
    fast = run(with_workers(loader, 0), 0.3)
    assert fast.stepped == 0
    assert fast.samples_per_second <= 1 / READ
    assert min(fast.waits) >= 4 * READ > min(slow.waits)


def test_short_epochs_are_repeated_and_their_first_batches_counted_separately() -> None:
    loader = ResumableDataLoader(TensorDataset(torch.rand(30, 3)), 10)
    timings = run(loader, 0.05)
    assert len(timings.firsts) > 1
    assert 2 * len(timings.firsts) - 2 <= len(timings.waits) <= 2 * len(timings.firsts)


class SlowStart(Slow):
    """Its first sample takes long in each process, as after an import."""

    ready = False

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.ready:
            self.ready = True
            time.sleep(0.5)
        return super().__getitem__(index)


@pytest.mark.parametrize("length", [24, 400])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_start_of_workers_is_no_part_of_a_rate(workers: int, length: int) -> None:
    loader = ResumableDataLoader(
        SlowStart(length), 4, num_workers=workers, persistent_workers=workers > 0
    )
    timings = run(loader, 0.3, patience=0.7)
    assert timings.firsts[0] >= 0.5
    assert not timings.counts_start
    assert timings.steady_batches >= 10
    assert 40 < timings.batches_per_second <= 1 / (4 * READ) * max(1, workers) * 1.2


def test_a_slow_loader_is_measured_without_the_start_of_its_workers() -> None:
    loader = ResumableDataLoader(SlowStart(400), 50, num_workers=2)  # 20 batches a second
    timings = run(loader, 0.3)
    assert timings.firsts[0] >= 0.5
    assert 8 < timings.batches_per_second < 28


@pytest.mark.parametrize("kind", [ResumableDataLoader, DataLoader])
def test_what_only_the_start_of_workers_explains_is_noted(kind: Any) -> None:
    loader = kind(SlowStart(24), 4, num_workers=2)
    assert run(loader, 0.1).counts_start
    report = measure(loader, seconds=0.5)
    assert any("include the start of the workers" in note for note in report.notes)


class SlowToDeliver(DataLoader[Any]):
    """Waits in the training process, which is no stage."""

    def __iter__(self) -> Any:
        time.sleep(0.1)
        for batch in super().__iter__():
            time.sleep(0.03)
            yield batch


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [0.0, 0.002])
def test_waiting_that_no_stage_explains_is_noted(workers: int, step: float) -> None:
    report = measure(SlowToDeliver(Slow(), 4, num_workers=workers), seconds=1, step=step)
    (note,) = (note for note in report.notes if "the stages explain" in note)
    waited = re.match(r"the loop waited (\S+) ms", note)
    assert waited is not None
    assert float(waited[1]) >= 30, "longer on a busy machine"
    quick = measure(DataLoader(Slow(), 4), seconds=1, step=step)
    assert not any("the stages explain" in note for note in quick.notes)


def test_a_pass_that_takes_long_to_begin_is_in_the_wait_for_its_first_batch() -> None:
    assert min(run(SlowToDeliver(Slow(8), 4), 0.3).firsts) >= 0.13


def test_a_loader_without_batches_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="gave no batch"):
        run(DataLoader(TensorDataset(torch.rand(3, 1)), 10, drop_last=True), 1)


def test_the_report_holds_what_was_asked_for_within_its_time() -> None:
    loader = ResumableDataLoader(Slow(), 4, num_workers=1, shuffle=True, seed=1)
    before = time.perf_counter()
    report = measure(loader, seconds=2, workers=[0, 1], step=0.001)
    assert time.perf_counter() - before < 60
    assert [trial.workers for trial in report.trials] == [0, 1]
    assert all(len(trial.rates) == 3 for trial in report.trials)
    assert {stage.name for stage in report.stages} >= {"read", "collate", "wait"}
    assert report.batch_samples == pytest.approx(4, rel=0.1)
    assert report.batch_bytes == 4 * (8 + 8 * 4)
    assert loader.position == 0  # copies ran
    json.dumps(report.to_dict())


def test_a_dataset_that_can_only_be_read_in_workers_is_measured_without_stages() -> None:
    loader = DataLoader(Slow(), 4, num_workers=1, collate_fn=in_a_worker)
    report = measure(loader, seconds=0.5)
    assert [stage.name for stage in report.stages] == ["wait"]
    assert any("outside of its workers (RuntimeError: no worker)" in note for note in report.notes)


def in_a_worker(samples: list[Any]) -> Any:
    if torch.utils.data.get_worker_info() is None:
        raise RuntimeError("no worker")
    return torch.utils.data.default_collate(samples)


def test_other_objects_and_other_workers_of_unsharded_streams_are_refused() -> None:
    with pytest.raises(UnsupportedDatasetError, match="list is not a DataLoader"):
        measure([1, 2])
    with pytest.raises(ConfigurationError, match="by itself"):
        measure(ResumableDataLoader(SlowStream(), 4), workers=[0, 2])


# ---- the advice


def test_the_smallest_number_of_workers_close_to_the_best_is_advised() -> None:
    trials = (
        Trial(0, (100.0, 110.0, 105.0)),
        Trial(2, (195.0, 198.0, 190.0)),
        Trial(4, (200.0, 199.0, 201.0)),
    )
    first, *rest = by_trial(trials)
    assert first == "num_workers=2: 195 samples/s, within 5% of the best (200 with 4)"
    assert "overlap with those of 4 workers" in rest[0]
    assert by_trial(trials[:2]) == ["num_workers=2: 195 samples/s, the best of those tried"]


@pytest.mark.parametrize(
    ("work", "handover", "step", "said"),
    [
        (0.001, 0.002, 0.0, "num_workers=0: "),
        (0.100, 0.010, 0.0, "num_workers=8 is the most that can help"),
        (0.030, 0.010, 0.0, "num_workers=3 is the most that can help"),
        (0.100, None, 0.0, "--workers 0,1,8 shows"),
        (0.100, 0.001, 0.050, "num_workers=2: "),
        (0.100, 0.001, 0.200, "num_workers=1: "),
        (0.900, 0.001, 0.100, "num_workers=8, the number of cores: "),
        (0.100, 0.060, 0.050, "no number of workers is enough"),
    ],
)
def test_the_estimate_follows_from_work_hand_over_step_and_cores(
    work: float, handover: float | None, step: float, said: str
) -> None:
    assert said in by_estimate([work] * 20, handover, step, cores=8)[0]


def test_figures_are_shown_with_three_digits_and_a_fitting_unit() -> None:
    assert [duration(value) for value in (2.5, 0.0123456, 0.000012)] == [
        "2.5 s",
        "12.3 ms",
        "12 us",
    ]
    assert [rate(value) for value in (1234567.0, 98.76, 0.5)] == ["1,230,000", "98.8", "0.5"]
    assert Latency.measured([1.0], [1.0, 2.0, 3.0])[1:] == (2.0, 2.8, 2.98, 3.0, 3)


# ---- the command


TRAIN = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from dataporter import ResumableDataLoader

def make_loader(batch_size=10, kind="ours"):
    if kind not in ("ours", "torch"):
        raise ValueError(f"kind={kind}")
    make = ResumableDataLoader if kind == "ours" else DataLoader
    return make(TensorDataset(torch.rand(1000, 3)), batch_size)

loader = make_loader()
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train_bench.py"
    path.write_text(TRAIN)
    return path


def ran(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_tables_without_colour(train: Path) -> None:
    code, shown, errors = ran(f"{train}:make_loader", "--seconds", 0.3, "--arg", "batch_size=20")
    assert (code, errors) == (0, "")
    assert "\x1b" not in shown
    for text in ("samples/s", "p99", "read and collate", "wait", "Advice: ", "█"):
        assert text in shown
    code, shown, _ = ran(f"{train}:loader", "--seconds", 0.3, "--json")
    assert json.loads(shown)["batch_samples"] == 10
    code, shown, _ = ran(f"{train}:make_loader", "--seconds", 0.3, "--json", "--arg", "kind=torch")
    assert json.loads(shown)["loader"] == "DataLoader"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make_loader", "--arg", "kind=other"], "ValueError: kind=other"),
        (["make_loader", "--arg", "size=3"], "takes other arguments than size"),
        (["make_loader", "--arg", "size"], "expected key=value"),
        (["loader", "--arg", "size=3"], "takes no arguments"),
        (["nothing"], "has no nothing"),
        (["TensorDataset", "--arg", "x=1"], "dataporter: bench:"),
        (["loader", "--workers", "1,x"], "expected whole numbers"),
    ],
)
def test_an_error_is_one_line(train: Path, arguments: list[str], said: str) -> None:
    code, _, errors = ran(f"{train}:{arguments[0]}", "--seconds", 0.2, *arguments[1:])
    assert code == 2
    assert errors.count("\n") == 1
    assert said in errors


def test_debug_shows_the_traceback(train: Path) -> None:
    result = CliRunner().invoke(main, ["bench", f"{train}:nothing", "--debug"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert "\ndataporter: bench: " in result.stderr


def test_the_tables_print_in_ascii(train: Path) -> None:
    command = ["bench", f"{train}:loader", "--seconds", "0.3"]
    done = CliRunner(charset="ascii").invoke(main, command)
    assert done.exit_code == 0
    assert b"####" in done.stdout_bytes


def test_arguments_of_the_command_line_are_python_values(train: Path) -> None:
    assert dict(map(argument, ["a=1", "b=[1, 2]", "c=text", "d=x=y", "e="])) == {
        "a": 1,
        "b": [1, 2],
        "c": "text",
        "d": "x=y",
        "e": "",
    }
    assert load_target(f"{train}:make_loader", {"batch_size": 7}).batch_size == 7
