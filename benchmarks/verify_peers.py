"""What holds after an interruption, of DataPorter, torch's DataLoader and torchdata's?

Each is verified by `dataporter verify` on handwritten digits, once as they are and once with random
augmentation, and seeded as its documentation says: all global generators and the loader's own.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from benchmarks.command import asked_for_quick
from benchmarks.machine import describe
from benchmarks.tables import Table, markdown, show
from dataporter import ResumableDataLoader, VerifyReport, verify

RESULTS = Path(__file__).parent / "verify_peers.md"
BATCH_SIZE = 64
# torchdata 0.11 calls what torch 2.13 has deprecated, with every loader.
warnings.filterwarnings("ignore", message="'set_vital' is deprecated")


class Digits(Dataset[Any]):
    """8 x 8 digits; augmented, they are shifted, scaled and made noisy by the global generators."""

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


LOADERS: dict[str, Callable[..., Any]] = {
    "DataPorter": dataporter,
    "torch DataLoader, read again": plain,
    "torchdata StatefulDataLoader": stateful,
}


def measure(quick: bool) -> list[Table]:
    with tempfile.TemporaryDirectory() as directory:
        # Each of many processes would take two seconds to import scikit-learn.
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
            for name, make in LOADERS.items()
        }
        what = "random augmentation" if augmented else "the digits as they are"
        tables.append(_table(f"Interrupted and gone on: {what}", reports, length))
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
    ]
    notes = (
        f"{length} handwritten digits in batches of {BATCH_SIZE}; of each case, how many of the "
        "batches after the interruption are the same, byte for byte. torch's DataLoader has no "
        "state: what was delivered is read again, and thrown away. Between two batches the loop "
        "draws from the global generators, as dropout does.",
        *why,
    )
    return Table(question, ("", *reports), tuple(rows), (), notes)


def _cell(case: Any) -> str:
    if case is None:
        return "—"
    if case.verdict == "failed" and case.comparison is None:
        return "raises"
    comparison = case.comparison
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
    quick = asked_for_quick(__doc__)
    tables = measure(quick)
    for table in tables:
        show(table, Console())
    if not quick:
        text = "\n".join(map(markdown, tables))
        facts = "".join(f"- {name}: {fact}\n" for name, fact in describe().items())
        RESULTS.write_text(
            "# What holds after an interruption\n\n"
            f"Written by `python -m benchmarks.verify_peers`.\n\n{facts}\n{text}"
        )


if __name__ == "__main__":
    main()
