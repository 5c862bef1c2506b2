"""`inspect_checkpoint`: finds the states in a file or folder, and reports what they say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataporter.checks import whole_number
from dataporter.errors import CheckpointNotFoundError, UnreadableCheckpointError
from dataporter.state.found import as_subscripts, states_in
from dataporter.tools.inspection.distributed import METADATA, is_distributed, read_distributed
from dataporter.tools.inspection.facts import facts_of
from dataporter.tools.inspection.reading import looks_like_checkpoint, read
from dataporter.tools.inspection.report import CheckpointReport, ConverterReport, FileReport
from dataporter.tools.target import in_one_line

__all__ = ["inspect_checkpoint"]

_MOST_FILES = 200
_PREVIOUS = re.compile(r"(?P<stem>.+)\.previous-(?P<number>\d{6,})(?P<suffix>\.[^.]*)?", re.ASCII)


def inspect_checkpoint(
    path: str | os.PathLike[str], *, ranks: int = 4, indices: int = 8, check: bool = False
) -> CheckpointReport:
    """Find the states of loaders in a checkpoint, and report what comes next after a resume.

    States are found in dicts, lists and JSON strings at any depth: those of
    :class:`~dataporter.ResumableDataLoader`, map-style and streams, of
    :class:`~dataporter.ResumableSampler` (which have the same format) and of
    :class:`~dataporter.KeyBasedDtypeConverter`. The dataset is not needed: with this library's
    orders, the next samples follow from the state. Nothing in the file is executed. Tensors are
    mapped and not read, so a checkpoint may be larger than the memory.

    Args:
        path: a file of ``torch.save``, :func:`~dataporter.save_atomically` or ``json.dump``; a
            folder of ``torch.distributed.checkpoint``; or a folder of any of these, of which all
            are inspected, newest first.
        ranks: for how many ranks to report the next batch.
        indices: how many of its samples to report.
        check: compare the SHA-256 of :func:`~dataporter.save_atomically` also for files above
            1 GB, which reads the whole file.

    Returns:
        The report: ``print`` it, or take its ``states``.

    Raises:
        CheckpointNotFoundError: (a ``FileNotFoundError``) there is nothing at ``path``.
        UnreadableCheckpointError: (a ``ValueError``) the file is not a checkpoint, is damaged, or
            holds pickled objects. In a folder of several, the file's report says so instead.

    Example:
        >>> import tempfile
        >>> from dataporter import ResumableDataLoader, save_atomically
        >>> loader = ResumableDataLoader(range(100), batch_size=4, shuffle=True, seed=7)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_atomically({"data": [loader.state_dict()]}, f"{folder}/checkpoint.pt")
        ...     (state,) = inspect_checkpoint(path).states
        >>> state.where, state.epoch, state.step, state.progress
        ("['data'][0]", 0, 1, 0.04)
        >>> list(state.next[0].indices) == next(batches).tolist()
        True
    """
    path = Path(path)
    whole_number("ranks", ranks)
    whole_number("indices", indices)
    if not path.exists():
        raise CheckpointNotFoundError(
            f"there is no file or folder {path}: give the path of a checkpoint"
        )

    def report_of(checkpoint: Path) -> FileReport:
        is_folder = checkpoint.is_dir()
        data = read_distributed(checkpoint) if is_folder else read(checkpoint, check=check)
        return _report(checkpoint, data, ranks=ranks, indices=indices)

    if not path.is_dir() or is_distributed(path):
        return CheckpointReport(str(path), (report_of(path),))
    checkpoints = _newest_first(path)
    files = []
    for checkpoint in checkpoints[:_MOST_FILES]:
        try:
            files.append(report_of(checkpoint))
        except UnreadableCheckpointError as error:
            files.append(FileReport(str(checkpoint), fault=in_one_line(error)))
    return CheckpointReport(str(path), tuple(files), len(checkpoints) - len(files))


def _report(path: Path, data: Any, *, ranks: int, indices: int) -> FileReport:
    states, converters = [], []
    for found in states_in(data):
        where = as_subscripts(found.keys)
        if found.kind == "loader":
            states.append(facts_of(where, found.state, ranks=ranks, indices=indices))
        else:
            converters.append(ConverterReport(where, dict(found.state["originals"])))
    saved = (path / METADATA if path.is_dir() else path).stat().st_mtime
    return FileReport(str(path), saved, tuple(states), tuple(converters))


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder: the series with the newest file first, each from its newest."""
    try:
        series: dict[str, list[tuple[float, Path]]] = {}
        for path in _checkpoints(folder):
            match = _PREVIOUS.fullmatch(path.name)
            name = f"{match['stem']}{match['suffix'] or ''}" if match else path.name
            number = float(match["number"]) if match else float("inf")
            series.setdefault(name, []).append((number, path))
        newest = {
            name: max(path.stat().st_mtime for _, path in members)
            for name, members in series.items()
        }
    except OSError as error:
        raise UnreadableCheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    return [
        path
        for name in sorted(series, key=lambda name: (-newest[name], name))
        for _, path in sorted(series[name], reverse=True)
    ]


def _checkpoints(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if is_distributed(path) or (path.is_file() and looks_like_checkpoint(path)):
            yield path
