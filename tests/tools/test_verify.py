"""Verification: sound loaders are exact in every case, and faults are found."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from budgets import slow_except
from example_streams import KINDS
from rich.console import Console
from subjects import Augmented
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    VerificationError,
    VerifyReport,
    verify,
)
from dataporter.tools.verification import session
from dataporter.tools.verification.command import _table, exit_code, show
from dataporter.tools.verification.factory import Setting, factory_of
from dataporter.tools.verification.page import page
from dataporter.tools.verification.report import Case, Measures
from dataporter.tools.verification.throughput import measure_throughput
from dataporter_cli import main

HERE = Path(__file__).resolve()
pytestmark = pytest.mark.usefixtures("shared_hosts")


def sound(strategy: str = "advanced", length: int = 43) -> Any:
    return ResumableDataLoader(Augmented(length), 4, shuffle=True, strategy=strategy, seed=5)


def columns() -> Any:
    rows = {"x": torch.arange(40), "y": torch.arange(80.0).reshape(40, 2)}
    return ResumableDataLoader(rows, 4, shuffle=True)


def stream(kind: str) -> Any:
    return ResumableDataLoader(KINDS[kind](24), 4, seed=2)


def plain() -> Any:
    return DataLoader(Augmented(24), 4, shuffle=True)


def no_loader() -> Any:
    raise OSError("the disk\nis gone")


class Slow(Augmented):
    """Reads slowly."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.02)
        return super().__getitem__(index)


def slow() -> Any:
    return ResumableDataLoader(Slow(40), 4, seed=1)


def hanging() -> Any:
    time.sleep(60)


def with_arguments(num_workers: int = 1, batch_size: int = 4) -> Any:
    return ResumableDataLoader(Augmented(22), batch_size, seed=1, num_workers=num_workers)


class Forgetful:
    """A loader whose state is always the same."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Any:
        for number in range(12):
            yield torch.tensor([number, 10 * number])

    def state_dict(self) -> dict[str, int]:
        return {"batches": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["batches"]


UNSEEDED: dict[str, Callable[[], Any]] = {
    "a stream": lambda: ResumableDataLoader(KINDS["replay"](24), 4),
    "ranks": lambda: ResumableDataLoader(Augmented(25), 4, shuffle=True, strategy="distributed"),
    "a dropped tail": lambda: ResumableDataLoader(
        Augmented(25), 4, shuffle=True, strategy="distributed", drop_last=True
    ),
}


def unseeded(kind: str) -> Any:
    return UNSEEDED[kind]()


class WithManager(Augmented):
    """Starts a manager process beside the workers."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.manager = multiprocessing.Manager()
        self.read = self.manager.dict()

    def __getitem__(self, index: int) -> Any:
        self.read[index] = True
        return super().__getitem__(index)


def with_manager() -> Any:
    return ResumableDataLoader(WithManager(24), 4, shuffle=True, seed=1)


class Drawn:
    """A custom loader: nothing seeds it, and its state is complete."""

    def __init__(self) -> None:
        self.seed, self.epoch, self.position = random.SystemRandom().randrange(1 << 30), 0, 0

    def __iter__(self) -> Any:
        order = random.Random(self.seed + self.epoch).sample(range(8), 8)
        while self.position < 8:
            self.position += 1
            yield torch.tensor(order[self.position - 1])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


class Careful:
    """A custom loader that saves the generator from which it draws."""

    position = 0

    def __iter__(self) -> Any:
        while self.position < 10:
            self.position += 1
            yield torch.tensor(random.randrange(1 << 20))
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "random": list(random.getstate()[1])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        random.setstate((3, tuple(state["random"]), None))


def careful() -> Any:
    random.seed(1)
    return Careful()


def nothing() -> None:
    return None


class WithMemory:
    """A sampler: each pass continues with one generator."""

    def __init__(self) -> None:
        self.generator = random.Random(3)

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Any:
        return iter(self.generator.sample(range(40), 40))


class WithPlace(WithMemory):
    """A sampler that keeps its place on itself, and can say and take it."""

    place = 0

    def __iter__(self) -> Any:
        while self.place < 40:
            self.place += 1
            yield self.place - 1
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class OnePass(WithMemory):
    """A sampler that can be iterated over once."""

    def __init__(self) -> None:
        self.left = iter(range(40))

    def __iter__(self) -> Any:
        return self.left


def sampled(kind: str) -> Any:
    return ResumableDataLoader(torch.arange(40), 4, sampler=globals()[kind]())


def one_batch() -> Any:
    return ResumableDataLoader(range(4), 4, seed=1)


def empty() -> Any:
    return ResumableDataLoader(range(0), 4)


@pytest.mark.parametrize("strategy", ["simple", "advanced", "distributed"])
def test_sound_loaders_are_exact_in_every_case(strategy: str) -> None:
    report = verify(sound, arguments={"strategy": strategy}, workers=[0, 2], measure=False)
    assert report.exact, str(report)
    names = {(case.setting, case.name) for case in report.cases}
    order = ["start", "mid-epoch", "random step", "last step", "end of epoch", "second epoch"]
    whole = ("uninterrupted", "uninterrupted, as no workers")
    for setting, first in zip(("no workers", "2 processes"), whole):
        for name in (first, *order, "SIGKILL"):
            assert (setting, name) in names
    assert ("2 processes", "mid-epoch, from no workers") in names
    assert ("2 processes", "SIGKILL to a worker") in names
    assert any("batch size" in setting for setting, _ in names) == (strategy != "simple")
    assert any("ranks" in setting for setting, _ in names) == (strategy == "distributed")
    assert all(case.comparison is not None and case.comparison.batches for case in report.cases)
    assert (report.not_run, report.diagnoses, report.epoch_batches) == (0, (), 11)


def test_columns_are_exact() -> None:
    assert verify(columns, workers=[0, 1], measure=False).exact


@pytest.mark.parametrize("kind", slow_except(("shards", "dataset state", "replay"), KINDS))
def test_streams_are_exact(kind: str) -> None:
    report = verify(stream, arguments={"kind": kind}, workers=[0, 2], measure=False)
    assert report.exact, str(report)


@pytest.mark.parametrize("kind", UNSEEDED)
def test_a_seed_is_not_needed(kind: str) -> None:
    report = verify(unseeded, arguments={"kind": kind}, workers=[0], measure=False)
    assert report.exact, str(report)


def test_a_process_of_the_dataset_is_not_mistaken_for_a_worker() -> None:
    report = verify(with_manager, workers=[2], measure=False)
    assert report.exact, str(report)
    assert any(case.name == "SIGKILL to a worker" for case in report.cases)


def test_verification_does_not_disturb_a_generator_that_is_saved() -> None:
    assert verify(careful, workers=[0], measure=False, seed=1).exact


def test_a_killed_run_of_an_unseeded_loader_starts_from_the_state_of_another_one() -> None:
    report = verify(Drawn, workers=[0], measure=False)
    assert report.exact, str(report)
    assert {case.name for case in report.cases} >= {"start", "mid-epoch", "SIGKILL"}
    assert not any("uninterrupted" in case.name for case in report.cases)
    assert any("nothing seeds it" in note for note in report.notes)


def test_ranks_of_a_process_group_are_exact() -> None:
    report = verify(
        sound,
        arguments={"strategy": "distributed"},
        workers=[0],
        worlds=[2, 1],
        spawn=True,
        measure=False,
    )
    assert report.exact, str(report)
    assert {"1 rank", "2 ranks"} < {case.setting for case in report.cases}


@pytest.mark.parametrize("spawn", [False, True])
@pytest.mark.parametrize("make", [sound, columns])  # one names its strategy, one does not
def test_a_state_of_advanced_is_resumed_by_other_numbers_of_ranks(make: Any, spawn: bool) -> None:
    report = verify(make, workers=[0], worlds=[1, 2], spawn=spawn, measure=False)
    assert report.facts["strategy"] == "advanced"
    assert report.exact, str(report)
    by_rank = {case.setting: case for case in report.cases if "rank" in case.setting}
    assert set(by_rank) == {"1 rank, distributed", "2 ranks, distributed"}
    resumed = by_rank["2 ranks, distributed"]
    assert resumed.name == "mid-epoch, from 1 rank"
    assert resumed.comparison is not None
    assert resumed.comparison.batches > 10  # samples


def test_a_state_without_a_position_is_found() -> None:
    report = verify(Forgetful, measure=False, diagnose=False, workers=[0])
    assert not report.exact
    found = {case.name: case for case in report.cases}
    assert found["uninterrupted"].verdict == found["start"].verdict == "exact"
    comparison = found["mid-epoch"].comparison
    assert comparison is not None
    assert comparison.first is not None
    assert (comparison.first.row, comparison.first.kind) == (0, "values")
    assert (comparison.first.expected, comparison.first.found) == ("6", "0")
    assert comparison.differing == comparison.batches


def test_a_plain_loader_without_a_state_is_reread() -> None:
    report = verify(plain, workers=[0], measure=False, diagnose=False)
    assert not report.exact  # its augmentation draws from generators that are not saved
    assert any("has no state" in note for note in report.notes)


def test_a_local_function_is_forked_and_the_report_says_so() -> None:
    def make_loader() -> Any:
        return sound()

    report = verify(make_loader, workers=[0], measure=False)
    assert report.exact
    assert any("hash randomisation" in note for note in report.notes)


def test_a_verification_that_cannot_be_carried_out_is_an_error() -> None:
    with pytest.raises(VerificationError, match="the disk is gone"):
        verify(no_loader)
    with pytest.raises(VerificationError, match="nothing returned a NoneType"):
        verify(nothing)
    with pytest.raises(VerificationError, match="gave no batch"):
        verify(empty)
    with pytest.raises(ConfigurationError, match="a function that returns a fresh loader"):
        verify(sound())
    with pytest.raises(ConfigurationError, match="workers"):
        verify(sound, workers=[-1])


def test_the_end_of_a_long_epoch_is_run_after_a_jump() -> None:
    report = verify(sound, workers=[0, 1], steps=5, measure=False)
    assert report.exact, str(report)
    assert (report.events, report.epoch_batches) == (5, None)
    assert any("runs that jump to step 8 (seek) cover it" in note for note in report.notes)
    at_end = [case for case in report.cases if case.begun_at]
    assert {case.begun_at for case in at_end} == {8}
    names = ("uninterrupted, at the end", "last step", "end of epoch")
    for setting, first in (("no workers", names[0]), ("1 process", f"{names[0]}, as no workers")):
        found = {case.name for case in at_end if case.setting == setting}
        assert found == {first, *names[1:]}
    assert "end of epoch" not in {case.name for case in report.cases if not case.begun_at}


def test_a_sampler_with_a_state_of_its_own_is_exact() -> None:
    report = verify(sampled, arguments={"kind": "WithPlace"}, workers=[0, 1], measure=False)
    assert report.exact, str(report)


@pytest.mark.parametrize("kind", ["WithMemory", "OnePass"])
def test_a_refused_resume_is_neither_a_crash_nor_exact(kind: str) -> None:
    report = verify(sampled, arguments={"kind": kind}, workers=[0, 1], measure=False)
    assert (report.verdict, report.faults) == ("not proven", ()), str(report)
    assert report.summary().startswith("Not proven: the loader refuses to resume in ")
    names = {case.name for case in report.refused}
    assert names == {"end of epoch", "second epoch"}
    assert f"over a {kind}" in str(report)
    shown = Console(record=True, width=2000, file=io.StringIO())
    show(report, shown)
    text = shown.export_text()
    assert "Refused: no workers, end of epoch: the state belongs to another loader" in text
    assert "the state belongs to another loader" in page(report)


class AtTheEnd(Augmented):
    """Differs only where the second epoch begins in a process that has not read the first."""

    read = 0

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return index if self.read < 8 else -index


def differs_late() -> Any:
    return ResumableDataLoader(AtTheEnd(400), 4, seed=1)


def test_a_fault_at_the_end_of_a_long_epoch_is_found() -> None:
    report = verify(differs_late, workers=[0], steps=1, measure=False, diagnose=False)
    assert report.verdict == "not exact"
    assert {case.name for case in report.faults if case.begun_at} >= {"last step", "end of epoch"}


@pytest.mark.parametrize(
    ("make", "steps", "lacks", "says"),
    [
        (Drawn, 5, "an interruption at the end of the epoch", "raise --steps"),
        (Drawn, 8, "an interruption at the end of the epoch", "raise --steps"),
        (one_batch, None, "an interruption in mid-epoch", "the epoch is too short"),
    ],
)
def test_without_an_interruption_of_each_kind_nothing_is_proven(
    make: Any, steps: int | None, lacks: str, says: str
) -> None:
    report = verify(make, workers=[0], steps=steps, measure=False)
    assert (report.verdict, report.exact, report.faults) == ("not proven", False, ())
    assert lacks in report.missing
    assert report.summary().startswith("Not proven: ")
    assert lacks in report.summary()
    assert says in report.summary().lower()


def test_the_command_has_its_exit_codes() -> None:
    runner = CliRunner()
    asked = ["verify", f"{HERE}:sound", "--workers=0", "--steps=6"]
    exact = runner.invoke(main, asked)
    assert exact.exit_code == 0, exact.output
    assert "Exact: all" in exact.output
    other = runner.invoke(main, ["verify", f"{HERE}:Forgetful", "--workers=0", "--no-diagnose"])
    assert other.exit_code == 1
    assert "NOT exact" in other.output
    assert "expected 6, found 0" in other.output
    failed = runner.invoke(main, ["verify", f"{HERE}:no_loader"])
    assert failed.exit_code == 2
    assert "OSError: the disk is gone" in failed.output
    assert failed.output.count("\n") == 1
    full = runner.invoke(main, [*asked, "--html=/dev/full"])
    assert full.exit_code == 2
    assert "Exact: all" in full.stdout
    assert "No space left" in full.stderr
    for wrong in (
        *("--workers=many", "--engine=steam", "--arg=nothing"),
        *("--html=/nowhere/at/all", "--html=/"),
    ):
        refused = runner.invoke(main, ["verify", f"{HERE}:sound", wrong])
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1), refused.output


def test_a_report_is_one_self_contained_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    asked = ["verify", f"{HERE}:Forgetful", "--workers=0", f"--html={page}", "--no-diagnose"]
    assert CliRunner().invoke(main, asked).exit_code == 1
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.links == []
    for expected in ("mid-epoch", "expected 6, found 0", "second epoch", "✗", "✓", "NOT exact"):
        assert expected in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)


class Checker(HTMLParser):
    """Collects open tags, and links to other files."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [(name, value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_names_from_a_dataset_are_not_markup() -> None:
    case = Case("no workers", "mid-epoch", "failed", 3, error="<script>alert(1)</script> [bold]")
    facts = {"loader": "<b>", "dataset": "[red]", "stream": False}
    report = VerifyReport("<i>", facts, (case,), 3, 5, Measures(None, None, None))
    assert "<script>" not in page(report)
    assert "<i>" not in page(report)
    console = Console(record=True, width=200, file=io.StringIO())
    show(report, console)
    assert "<script>alert(1)</script> [bold]" in console.export_text()


def test_state_times_and_rates_are_measured() -> None:
    report = verify(sound, workers=[0, 2], steps=6)
    measures = report.measures
    assert measures.state_bytes is not None
    assert measures.state_bytes < 3000
    assert measures.state_seconds is not None
    assert measures.resume_seconds is not None
    assert [rate.setting for rate in measures.throughput] == ["no workers", "2 processes"]
    assert all(rate.loader > 0 and rate.plain for rate in measures.throughput)
    assert verify(plain, workers=[0], steps=4, diagnose=False).measures.state_bytes is None


def without_time_after(
    monkeypatch: pytest.MonkeyPatch, after: tuple[str, int, int], workers: Sequence[int] = (0,)
) -> VerifyReport:
    """The report of a verification whose time is over when so many processes have ended."""
    clock, seen = time.monotonic, []

    def on_progress(*stage: Any) -> None:
        seen.append(stage)
        if stage == after:
            monkeypatch.setattr(time, "monotonic", lambda: clock() + 61)

    with monkeypatch.context() as monkeypatch:
        report = verify(
            sound, workers=workers, max_seconds=60, measure=False, on_progress=on_progress
        )
    assert after in seen
    return report


class SlowStart(Slow):
    """Its first sample takes long in each process, as after an import."""

    ready = False

    def __getitem__(self, index: int) -> Any:
        if not self.ready:
            self.ready = True
            time.sleep(2.0)
        return super().__getitem__(index)


def slow_start(kind: str, length: int = 24) -> Any:
    return {"ours": ResumableDataLoader, "torch": DataLoader}[kind](SlowStart(length), 4)


class SlowFirst(Augmented):
    """Its first sample takes long in each process."""

    ready = False

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.0 if self.ready else 1.0)
        self.ready = True
        return super().__getitem__(index)


def slow_first() -> Any:
    return ResumableDataLoader(SlowFirst(24), 4, seed=1)


def slow_to_make() -> Any:
    time.sleep(1)
    return sound()


def test_a_slow_first_sample_does_not_shorten_the_runs() -> None:
    report = verify(slow_first, workers=[0], max_seconds=18, measure=False)  # 0.9 s for the first
    assert (report.epoch_batches, report.events) == (6, 9)
    assert "end of epoch" in {case.name for case in report.cases}


def test_a_loader_that_is_slow_to_make_is_not_exact_for_lack_of_time() -> None:
    asked = ["verify", f"{HERE}:slow_to_make", "--workers=0", "--max-seconds=1"]
    ran = CliRunner().invoke(main, asked)
    assert ran.exit_code == 2, ran.output
    assert "Exact" not in ran.output
    last = " ".join(ran.output.split())
    assert "Not proven: an interruption in mid-epoch, an interruption at the end of" in last
    assert "Give it more time: --max-seconds 60" in last


def test_the_start_of_workers_is_no_part_of_the_rate() -> None:
    # A batch takes 80 ms, half as long with two workers; with the start, 2 or 3 batches a second.
    rate = measure_throughput(factory_of(partial(slow_start, "ours"), {}), Setting(num_workers=2))
    assert rate.loader is not None
    assert rate.plain is not None
    assert 5 < rate.loader < 30
    assert 5 < rate.plain < 30


@pytest.mark.slow
def test_a_rate_that_counts_the_start_of_workers_is_not_given() -> None:
    # All 4 batches of a pass are prefetched while the workers start, however busy the machine is.
    build = partial(slow_start, "torch", 16)
    rate = measure_throughput(factory_of(build, {}), Setting(num_workers=2))
    assert rate.loader is None
    assert "not known" in Measures(None, None, None, (rate,)).sentences()[0]


def test_what_matters_most_is_run_first(monkeypatch: pytest.MonkeyPatch) -> None:
    report = without_time_after(monkeypatch, ("resuming", 3, 3))
    assert report.exact, str(report)
    assert report.not_run > 0
    assert "for lack of time" in report.summary()
    run = {case.name for case in report.cases if case.verdict == "exact"}
    assert run == {"uninterrupted", "mid-epoch", "end of epoch", "SIGKILL"}


@pytest.mark.parametrize(
    ("after", "workers", "lacking"),
    [
        (("running in each setting", 1, 1), (0,), ["mid-epoch", "end of the epoch", "SIGKILL"]),
        (("killing", 1, 1), (0,), ["mid-epoch", "end of the epoch", "SIGKILL"]),
        (("resuming", 3, 3), (0, 1), ["any interruption with 1 process"]),
    ],
)
def test_what_had_no_time_is_named_and_nothing_is_proven(
    monkeypatch: pytest.MonkeyPatch,
    after: tuple[str, int, int],
    workers: Sequence[int],
    lacking: list[str],
) -> None:
    report = without_time_after(monkeypatch, after, workers)
    assert (report.verdict, report.to_dict()["verdict"]) == ("not proven", "not proven")
    assert len(report.missing) == len(lacking)
    assert all(one in text for one, text in zip(lacking, report.missing))
    assert re.search(r"--max-seconds \d{3} ", report.summary())
    shown = Console(record=True, width=400, file=io.StringIO(), force_terminal=True)
    show(report, shown)
    last = shown.export_text(styles=True).splitlines()[-1]
    assert last.startswith("\x1b[33mNot proven: ")  # yellow
    assert 'class="verdict left"' in page(report)


def test_the_headline_has_the_colour_of_the_verdict() -> None:
    kinds = ("mid-epoch", "end of epoch", "SIGKILL")
    exact = [Case("no workers", name, "exact") for name in kinds]
    for cases, colour, code in (
        (exact, 32, 0),
        (exact[1:], 33, 2),
        ([*exact, Case("no workers", "start", "refused", error="it says why")], 33, 2),
        ([*exact[1:], Case("no workers", "start", "failed", error="it raised")], 31, 1),
    ):
        facts = {"loader": "L", "dataset": "D", "stream": False}
        report = VerifyReport("make", facts, tuple(cases), 3, 5, Measures(None, None, None))
        console = Console(record=True, width=400, file=io.StringIO(), force_terminal=True)
        show(report, console)
        assert console.export_text(styles=True).splitlines()[-1].startswith(f"\x1b[{colour}m")
        assert exit_code(report) == code


def test_a_loader_that_hangs_is_killed() -> None:
    limit = session._SECONDS_OVER
    session._SECONDS_OVER = 1.0
    try:
        with pytest.raises(VerificationError, match="did not end within 2 seconds"):
            verify(hanging, workers=[0], max_seconds=1)
    finally:
        session._SECONDS_OVER = limit


def test_a_function_receives_the_arguments_that_it_takes() -> None:
    report = verify(with_arguments, workers=[0, 2], measure=False)
    assert report.exact, str(report)
    assert {case.setting for case in report.cases} >= {"no workers", "2 processes"}


@pytest.mark.slow
def test_the_fixture_fails_with_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from dataporter import ResumableDataLoader\n"
        "from torch.utils.data import DataLoader\n"
        "import random\n"
        "class Rows:\n"
        "    def __len__(self):\n        return 12\n"
        "    def __getitem__(self, index):\n        return index + RNG.random()\n"
        "RNG = random.Random()\n"
        "def sound():\n    return ResumableDataLoader(range(12), 2, shuffle=True)\n"
        "def faulty():\n    return ResumableDataLoader(Rows(), 2, shuffle=True)\n"
        # No new interpreter can find a lambda, so none is started.
        "def test_sound(assert_exact_resume):\n"
        "    assert_exact_resume(lambda: sound(), workers=[0])\n"
        "def test_faulty(assert_exact_resume):\n"
        "    assert_exact_resume(lambda: faulty(), workers=[0])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if "dataporter" not in {point.name for point in entry_points(group="pytest11")}:
        command += ["-p", "pytest_dataporter"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "a generator in the dataset" in ran.stdout
    assert "test_mine.RNG" in ran.stdout


def test_the_plugin_does_not_import_torch() -> None:
    code = "import sys, pytest_dataporter; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert ran.stdout.strip() == "False", ran.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["verify"]])
def test_help_and_usage_errors_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys, dataporter_cli\n"
        "try: dataporter_cli.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ran.stdout.splitlines()[-1] == "False", ran.stderr
    assert "Usage: " in ran.stdout + ran.stderr


@pytest.mark.slow
def test_the_code_in_the_guide_runs() -> None:
    document = (HERE.parents[2] / "docs" / "verify.md").read_text()
    block, fixture = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    exec(block, {})
    assert "assert_exact_resume" in fixture


def of_length(length: int) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(range(length), 2)


def test_a_required_argument_of_the_function_is_named() -> None:
    lacks = CliRunner().invoke(main, ["verify", f"{HERE}:of_length"])
    assert lacks.exit_code == 2
    assert "of_length needs length: pass --arg length=..." in lacks.output


def test_a_title_is_no_markup() -> None:
    shown = Console(width=200, file=io.StringIO())
    report = verify(partial(of_length, 12), workers=[0], steps=4, measure=False)
    shown.print(_table(replace(report, subject="[bold]make[/]")))
    assert "[bold]make[/]: " in shown.file.getvalue()  # type: ignore[attr-defined]  # StringIO


def test_the_command_gives_json() -> None:
    given = CliRunner().invoke(
        main,
        ["verify", f"{HERE}:sound", "--arg=length=30", "--workers=0", "--steps=6", "--json"],
    )
    found = json.loads(given.stdout)
    assert found["exact"] is True
    assert {case["verdict"] for case in found["cases"]} == {"exact"}


@pytest.mark.slow
def test_a_script_that_verifies_its_own_loader_needs_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from dataporter import ResumableDataLoader, verify\n"
        "def make_loader():\n    return ResumableDataLoader(range(12), 2)\n"
        "print(verify(make_loader, workers=[0], steps=4, measure=False).exact)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=110)
    assert ran.returncode != 0
    assert '__name__ == "__main__"' in ran.stderr
    guarded = script.read_text().replace("print(", 'if __name__ == "__main__":\n    print(')
    package = tmp_path / "package"
    package.mkdir()
    (package / "rows.py").write_text("ROWS = range(12)\n")
    (package / "train.py").write_text(
        "from .rows import ROWS\n" + guarded.replace("range(12)", "ROWS")
    )
    command = [sys.executable, "-m", "package.train"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert (ran.stdout.strip(), ran.returncode) == ("True", 0), ran.stderr
