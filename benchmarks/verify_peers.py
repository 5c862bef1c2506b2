"""What holds after an interruption, of DataPorter, torch's DataLoader and torchdata's?

Each is verified by `dataporter verify` on handwritten digits, once as they are and once with random
augmentation, and seeded as its documentation says: all global generators and the loader's own. With
augmentation the other two appear a second time, as a careful user would use them: the states of the
global generators are saved with the loader's, and restored when it resumes.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from benchmarks.command import parser_of
from benchmarks.machine import describe
from benchmarks.tables import Table, markdown, show
from dataporter import ResumableDataLoader, VerifyReport, verify

RESULTS = Path(__file__).parent / "verify_peers.md"
BATCH_SIZE = 64
# With every loader, torchdata 0.11 calls a function that torch 2.13 has deprecated.
warnings.filterwarnings("ignore", message="'set_vital' is deprecated")


class Digits(Dataset[Any]):
    """8 x 8 digits; augmentation shifts, scales and adds noise, from the global generators."""

    def __init__(self, data: str, augmented: bool) -> None:
        with np.load(data) as digits:
            self.images = torch.from_numpy(digits["images"])
            self.labels = digits["labels"]
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        if self.augmented:
            image = image.roll(random.randint(-1, 1), dims=-1) * np.random.uniform(0.9, 1.1)
            image = image + 0.1 * torch.randn(8, 8)
        return {"image": image, "label": int(self.labels[index])}


def _seeded() -> torch.Generator:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return torch.Generator().manual_seed(1)


def dataporter(data: str, augmented: bool) -> Any:
    _seeded()
    return ResumableDataLoader(Digits(data, augmented), BATCH_SIZE, shuffle=True, seed=1)


def plain(data: str, augmented: bool) -> Any:
    generator = _seeded()
    return DataLoader(Digits(data, augmented), BATCH_SIZE, shuffle=True, generator=generator)


def stateful(data: str, augmented: bool) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    generator = _seeded()
    return StatefulDataLoader(
        Digits(data, augmented), BATCH_SIZE, shuffle=True, generator=generator
    )


class SavingGenerators:
    """A loader whose state also holds those of the training process's global generators.

    For a loader without a state it holds the number of batches, which are read again.
    """

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset, self.num_workers = loader, loader.dataset, loader.num_workers
        self.has_state = hasattr(loader, "state_dict")
        self.passes = self.batches = 0
        self.loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        skipped = self.batches if self.loaded is not None and not self.has_state else 0
        if self.loaded is not None and not self.has_state:
            for _ in range(self.passes):
                for _ in self.loader:
                    pass
        batches = iter(self.loader)
        for _ in range(skipped):
            next(batches)
        if self.loaded is not None:
            self._put_back(self.loaded)
        self.loaded = None
        for batch in batches:
            self.batches += 1
            yield batch
        self.passes, self.batches = self.passes + 1, 0

    def state_dict(self) -> dict[str, Any]:
        numpys: Any = np.random.get_state()
        kind, keys, offset, has_gauss, cached = numpys
        return {
            "loader": self.loader.state_dict() if self.has_state else None,
            "position": [self.passes, self.batches],
            "python": list(random.getstate()[1]),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), offset, has_gauss, cached],
            "torch": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.batches = state["position"]
        self.loaded = state
        if self.has_state:
            self.loader.load_state_dict(state["loader"])

    def _put_back(self, state: dict[str, Any]) -> None:
        random.setstate((3, tuple(state["python"]), None))
        kind, keys, offset, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), offset, has_gauss, cached))
        torch.set_rng_state(state["torch"])


def _with_workers(loader: Any, num_workers: int) -> Any:
    loader.num_workers = num_workers
    loader.prefetch_factor = 2 if num_workers else None
    return SavingGenerators(loader)


def plain_careful(data: str, augmented: bool, num_workers: int = 0) -> Any:
    return _with_workers(plain(data, augmented), num_workers)


def stateful_careful(data: str, augmented: bool, num_workers: int = 0) -> Any:
    return _with_workers(stateful(data, augmented), num_workers)


LOADERS: dict[str, Callable[..., Any]] = {
    "DataPorter": dataporter,
    "torch DataLoader, read again": plain,
    "torchdata StatefulDataLoader": stateful,
}
CAREFUL: dict[str, Callable[..., Any]] = {
    "torch, read again, generators saved": plain_careful,
    "torchdata, generators saved": stateful_careful,
}


def measure(quick: bool) -> list[Table]:
    with tempfile.TemporaryDirectory() as directory:
        # Importing scikit-learn would take each of many processes two seconds.
        from sklearn.datasets import load_digits

        digits = load_digits()
        length = 600 if quick else len(digits.target)
        data = str(Path(directory) / "digits.npz")
        images = digits.images[:length].astype(np.float32)
        np.savez(data, images=images, labels=digits.target[:length])
        return _tables(data, length)


def _tables(data: str, length: int) -> list[Table]:
    tables = []
    for augmented in (False, True):
        reports = {
            name: verify(
                make,
                arguments={"data": data, "augmented": augmented},
                workers=[0, 2],
                max_seconds=240,
                measure=False,
                seed=1,
            )
            for name, make in {**LOADERS, **(CAREFUL if augmented else {})}.items()
        }
        what = "random augmentation" if augmented else "the digits as they are"
        tables.append(_table(f"Interrupted and resumed: {what}", reports, length))
    return tables


def _table(question: str, reports: dict[str, VerifyReport], length: int) -> Table:
    held = {
        name: {(case.setting, case.name): case for case in report.cases}
        for name, report in reports.items()
    }
    keys = list(dict.fromkeys(key for cases in held.values() for key in cases))
    settings = list(dict.fromkeys(setting for setting, _ in keys))
    keys.sort(key=lambda key: settings.index(key[0]))
    rows = [
        (f"{setting}: {name}", *(_cell(cases.get((setting, name))) for cases in held.values()))
        for setting, name in keys
    ]
    measures = [report.measures for report in reports.values()]
    rows.append(("state, bytes", *(_bytes(one.state_bytes) for one in measures)))
    why = [
        f"{name}: {diagnosis.cause}. {diagnosis.because}"
        for name, report in reports.items()
        for diagnosis in report.diagnoses
        if name not in CAREFUL
    ]
    if CAREFUL.keys() & reports.keys():
        why.append(
            "Generators saved: the states of the training process's global generators are saved "
            "with the loader's and restored before the next batch. Those of the workers are out of "
            "reach: rereading from the start of the epoch reproduces them; resuming from "
            "torchdata's state does not."
        )
    notes = (
        f"{length} handwritten digits in batches of {BATCH_SIZE}; each cell says how many of the "
        "batches after the interruption are the same, byte for byte. torch's DataLoader has no "
        "state: the delivered batches are read again and discarded. Between two batches the loop "
        "draws from the global generators, as dropout does. The cases `as no workers` and `from no "
        "workers` require the same batches with a different number of workers, which only "
        "DataPorter promises.",
        *why,
    )
    return Table(question, ("", *reports), tuple(rows), (), notes)


def _cell(case: Any) -> str:
    if case is None:
        return "—"
    if case.verdict == "failed" and case.comparison is None:
        return "raises"
    comparison = case.comparison
    if comparison is None:  # refused, or not run
        return str(case.verdict)
    equal = comparison.batches - comparison.differing
    if case.verdict == "failed":
        return f"raises after {equal}" if equal else "raises"
    unit = " samples" if case.by_sample else ""
    if case.verdict == "exact":
        return f"exact, {comparison.batches}{unit}"
    return f"**{equal} of {comparison.batches}{unit}**"


def _bytes(size: int | None) -> str:
    return "none" if size is None else f"{size:,}"


def main() -> None:
    quick = parser_of(__doc__).parse_args().quick
    tables = measure(quick)
    for table in tables:
        show(table, Console())
    if not quick:
        text = "\n".join(map(markdown, tables))
        facts = "".join(f"- {name}: {fact}\n" for name, fact in describe().items())
        RESULTS.write_text(
            "# Exactness after an interruption\n\n"
            f"Written by `python -m benchmarks.verify_peers`.\n\n{facts}\n{text}"
        )


if __name__ == "__main__":
    main()
