"""What does a checked conversion cost beside a bare `Tensor.to`?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.command import run
from benchmarks.rounds import Rounds, play
from benchmarks.tables import Goal, Table
from dataporter import KeyBasedDtypeConverter

MOST = 1.5
BARE = "Tensor.to"
CHECKED = "checked"
EXACT = "checked with rtol=0"
WIDENED = "widened again"
READ = "reading it once"
SECONDS = 0.05


def cases() -> dict[str, tuple[torch.Tensor, str]]:
    """The contents of typical training batches, and the form that each is converted to."""
    images = torch.randint(0, 256, (64, 3, 224, 224)).float().div_(255)
    tokens = torch.randint(0, 50257, (256, 1024))
    mask = (torch.arange(1024) < torch.randint(1, 1024, (256, 1))).long()
    return {
        "images, 64 x 3 x 224 x 224 float32 → float16": (images, "float16"),
        "the same, normalised (half of it negative)": (images * 4 - 2, "float16"),
        "token ids, 256 x 1024 int64 → int32": (tokens, "int32"),
        "attention mask, 256 x 1024 int64 → uint8": (mask, "uint8"),
        "token ids, 32 x 1024 int64 → int32 (256 KB)": (tokens[:32].clone(), "int32"),
        "token ids, 2048 x 1024 int64 → int32 (16 MB)": (tokens.repeat(8, 1), "int32"),
        "labels, 256 int64 → int32": (torch.arange(256), "int32"),
        "images → uint8:scale": (images, "uint8:scale"),
        "attention mask → bits": (mask, "bits"),
    }


def measure(quick: bool) -> Table:
    threads = torch.get_num_threads()
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            for what, (tensor, form) in cases().items():
                played = play(_contestants(tensor, form), rounds=3 if quick else 15)
                rows.append(_row(what, count, played, form))
                if count == 1 and form in ("float16", "int32", "uint8") and tensor.numel() > 256:
                    ratio = played.ratio(CHECKED, BARE)
                    goals.append(
                        Goal(f"{what}: at most {MOST} times a bare cast", f"{ratio:.2f} times",
                             ratio <= MOST)
                    )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return Table(
        "Conversion: microseconds per tensor (times a bare cast)",
        ("", "threads", BARE, CHECKED, EXACT, WIDENED, READ),
        tuple(rows),
        tuple(goals),
        (
            "A worker has one thread. Medians, and medians of the ratios within a round. The bare "
            "cast beside `uint8:scale` and `bits` is to uint8, which neither scales nor packs. "
            "With `rtol=0` each float is compared with its converted value.",
            "The limits: the check reads each block a second time, in the processor's cache and "
            f"so in less time than `{READ}` from memory. The call takes 15 to 40 µs, most where "
            "large tensors drive the program out of the cache; so below some 2 MB, which a bare "
            "cast writes in 100 µs, no check comes close to it. `uint8:scale` divides each number "
            "by 255 to compare it, and a core divides one float a cycle: half the time of a cast.",
        ),
    )


def _contestants(tensor: torch.Tensor, form: str) -> dict[str, Callable[[], float]]:
    dtype = getattr(torch, form, torch.uint8)
    checked = KeyBasedDtypeConverter({"x": form})
    narrow = checked.convert_batch({"x": tensor})
    bits = tensor.view(-1).view(torch.int64).numpy()
    contestants: dict[str, Callable[[], float]] = {
        BARE: partial(_microseconds, lambda: tensor.to(dtype)),
        CHECKED: partial(_microseconds, lambda: checked.convert_batch({"x": tensor})),
        WIDENED: partial(_microseconds, lambda: checked.widen(narrow)),
        READ: partial(_microseconds, lambda: np.maximum.reduce(bits)),
    }
    exact = KeyBasedDtypeConverter({"x": form}, rtol=0)
    try:
        exact.convert_batch({"x": tensor})
    except ValueError:
        return contestants
    return {
        **contestants,
        EXACT: partial(_microseconds, lambda: exact.convert_batch({"x": tensor})),
    }


def _microseconds(call: Callable[[], Any]) -> float:
    call()
    times = 0
    begin = now = perf_counter()
    while now - begin < SECONDS:
        call()
        times += 1
        now = perf_counter()
    return (now - begin) / times * 1e6


def _row(what: str, threads: int, played: Rounds, form: str) -> tuple[str, ...]:
    cells = [f"{played.median(BARE):,.1f}"]
    for name in (CHECKED, EXACT, WIDENED, READ):
        cells.append(
            f"{played.median(name):,.1f} ({played.ratio(name, BARE):.2f})"
            if name in played.figures
            else "—"
        )
    return (what, str(threads), *cells)


if __name__ == "__main__":
    run(measure, __doc__)
