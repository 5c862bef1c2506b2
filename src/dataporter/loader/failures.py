"""Failures: what a loader shows of them, their limit, their file, and one warning a pass."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from dataporter.checks import given
from dataporter.errors import ConfigurationError, TooManyFailuresError, warn
from dataporter.fetch.failure import Failure
from dataporter.fetch.on_error import OnError
from dataporter.state.ledger import Ledger

__all__ = ["Failures", "Reporter", "Reporting", "file_checked", "limit_checked"]

_SHOWN = 3
# A fraction of few samples says little, so that a pass is not ended by so few failures.
_FEWEST = 10
_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Failures(Sequence[Failure]):
    """The failures of a loader: a sequence of :class:`~dataporter.Failure` that cannot be changed.

    Attributes:
        records: the first samples that failed, as many as a state can hold.
        total: number of failures, those that no record counts included.
        file: where each failure has a line; None without ``failures=``.
    """

    records: tuple[Failure, ...]
    total: int
    file: str | None

    @overload
    def __getitem__(self, offset: int) -> Failure: ...
    @overload
    def __getitem__(self, offset: slice) -> tuple[Failure, ...]: ...
    def __getitem__(self, offset: int | slice) -> Failure | tuple[Failure, ...]:
        return self.records[offset]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def left_out(self) -> int:
        """Number of failures that no record counts; the file has them."""
        return Ledger(self.records, self.total).left_out

    def __repr__(self) -> str:
        left_out = f"; {self.left_out:,} in no record" if self.left_out else ""
        lines = "".join(f"\n  {record}" for record in self.records)
        failures = "1 failure" if self.total == 1 else f"{self.total:,} failures"
        return f"<{failures}{left_out}{':' if lines else ''}{lines}>"


@dataclass(frozen=True, slots=True)
class Reporting:
    """What a pass reports its failures by.

    Attributes:
        on_error: the loader's.
        limit: ``max_failures``.
        file: of ``failures=``.
        seed, rank, world_size: of the loader.
        sharers: number of ranks that the delivered samples of a progress are counted over.
    """

    on_error: OnError
    limit: int | float | None
    file: str | None
    seed: int
    rank: int
    world_size: int
    sharers: int


class Reporter:
    """Reports the failures of a loader's passes: at once to the file, at the end in one warning."""

    def __init__(self) -> None:
        self._reporting: Reporting | None = None
        self.forget()

    def begin(self, reporting: Reporting) -> None:
        """A pass begins; the one before may have been left early."""
        self.sum_up()
        self._reporting = reporting

    def forget(self) -> None:
        """A state was loaded: what was not reported yet is no longer of this run."""
        self._count = 0
        self._first: list[Failure] = []
        # By epoch, the lines that the file has, from one epoch on; None: not looked up yet.
        self._known: dict[int, set[_Key]] | None = None
        self._known_from = 0

    def check(self, ledger: Ledger, progress: Any, *, at_end: bool = False) -> None:
        """Raise if a pass that stands there, with this ledger, has too many failures.

        Raises:
            TooManyFailuresError: (a ``RuntimeError``) more than the limit.
        """
        assert self._reporting is not None
        limit, failed = self._reporting.limit, ledger.in_epoch_of(progress.epoch)
        if limit is None:
            return
        allowed = f"max_failures={limit}"
        if isinstance(limit, float):
            read = -(-progress.delivered // self._reporting.sharers)
            allowed += f" of the {read:,} samples so far"
            # 0.29 * 100 is a little less than 29.
            if failed <= limit * read + 1e-9 or (failed <= _FEWEST and not at_end):
                return
        elif failed <= limit:
            return
        rank = f" on rank {self._reporting.rank}" if self._reporting.world_size > 1 else ""
        records = [record for record in ledger.records if record.epoch == progress.epoch]
        raise TooManyFailuresError(
            f"{_counted(failed)} failed in epoch {progress.epoch}{rank}, and {allowed} allows no "
            f"more: {_shown(records or ledger.records, failed)}. loader.failures has "
            f"the records{self._in_file()}. The last batch was not delivered: mend the dataset, or "
            "raise max_failures, and resume from loader.state_dict()",
            failures=ledger.records,
            total=ledger.total,
        )

    def take(self, failures: Iterable[Failure]) -> None:
        """Report failures that count from now on."""
        failures = list(failures)
        assert self._reporting is not None
        self._count += len(failures)
        self._first += failures[: _SHOWN - len(self._first)]
        if self._reporting.file is not None:
            try:
                self._write(Path(self._reporting.file), failures)
            except OSError as error:
                # A full disk must not end a training that can do without the file.
                warn(
                    f"failures={self._reporting.file!r} could not be written ({error}); "
                    "loader.failures still counts every failure",
                    RuntimeWarning,
                )

    def sum_up(self) -> None:
        """Warn of all failures that no warning has reported yet."""
        count, first = self._count, self._first
        if not count or self._reporting is None:
            return
        self._count, self._first = 0, []
        on_error = self._reporting.on_error
        is_name = isinstance(on_error, str)
        name = repr(on_error) if is_name else getattr(on_error, "__name__", "a function")
        keep = self._in_file() or "; failures='bad.jsonl' keeps a line for each"
        warn(
            f"{_counted(count)} failed (on_error={name}) in epoch {first[0].epoch}: "
            f"{_shown(first, count)}. loader.failures has the records{keep}",
            RuntimeWarning,
        )

    def _in_file(self) -> str:
        assert self._reporting is not None
        file = self._reporting.file
        return "" if file is None else f", and {self._own_file(Path(file))} a line for each"

    def _own_file(self, file: Path) -> Path:
        assert self._reporting is not None
        if self._reporting.world_size == 1:
            return file
        # Not one file for all: appending from several machines loses lines.
        return file.with_name(f"{file.stem}.rank{self._reporting.rank}{file.suffix}")

    def _write(self, file: Path, failures: list[Failure]) -> None:
        """Append the lines that the files do not have yet, from a life that was rolled back."""
        assert self._reporting is not None
        lines = []
        for failure in failures:
            known = self._lines_of(file, failure.epoch)
            line = {
                **asdict(failure),
                "seed": self._reporting.seed,
                "rank": self._reporting.rank,
            }
            del line["count"]
            if (key := _key(json.loads(text := json.dumps(line)))) not in known:
                known.add(key)
                lines.append(f"{text}\n")
        if lines:
            _append(self._own_file(file), "".join(lines).encode())

    def _lines_of(self, file: Path, epoch: int) -> set[_Key]:
        """The lines of an epoch, read from the file once, and noted from then on."""
        if self._known is None or epoch < self._known_from:
            self._known, self._known_from = self._written(file, epoch), epoch
        for done in [earlier for earlier in self._known if earlier < epoch]:
            del self._known[done]
        self._known_from = epoch
        return self._known.setdefault(epoch, set())

    def _written(self, file: Path, first_epoch: int) -> dict[int, set[_Key]]:
        """What the files of all ranks have: the world may have been another one."""
        assert self._reporting is not None
        found: dict[int, set[_Key]] = {}
        others = file.parent.glob(f"{_literal(file.stem)}.rank*{_literal(file.suffix)}")
        for path in (file, *others):
            for line in _lines(path):
                epoch, seed = line.get("epoch"), line.get("seed")
                if isinstance(epoch, int) and epoch >= first_epoch and seed == self._reporting.seed:
                    found.setdefault(epoch, set()).add(_key(line))
        return found


def limit_checked(name: str, limit: Any) -> int | float:
    """The value of ``max_failures=``, checked."""
    if type(limit) is int and limit >= 0:
        return limit
    if isinstance(limit, float) and 0 < limit < 1:
        return limit
    raise ConfigurationError(
        f"{given(name, limit)}: expected a whole number from 0, or a fraction of the samples "
        "between 0 and 1"
    )


def file_checked(name: str, file: Any) -> str | None:
    """The value of ``failures=``, as an absolute path.

    Args:
        name: of the argument, for the message.
        file: a path, or what ``loader.failures`` is, for code that builds a loader from the
            attributes of another one.
    """
    if isinstance(file, Failures):
        return file.file
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise ConfigurationError(
            f"{given(name, file)}: expected the path of a file, such as failures='bad.jsonl'"
        )
    path = Path(os.fsdecode(file)).absolute()
    if path.is_dir() or not path.parent.is_dir():
        what = "a folder" if path.is_dir() else f"in a folder that does not exist, {path.parent}"
        raise ConfigurationError(
            f"{given(name, os.fspath(file))} is {what}: expected the path of a file, which is "
            "created at the first failure"
        )
    return str(path)


def _append(path: Path, lines: bytes) -> None:
    # One write at the end of the file: a kill leaves all of it or nothing.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":  # of a machine that lost its power, say
                lines = b"\n" + lines
        os.write(descriptor, lines)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that hold an object."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
    except FileNotFoundError:
        return


def _key(line: dict[str, Any]) -> _Key:
    # Without step and rank, which differ in another world.
    return line.get("position"), repr(line.get("index")), line.get("error")


def _literal(text: str) -> str:
    """A glob pattern for the text itself."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _counted(count: int) -> str:
    return "1 sample" if count == 1 else f"{count:,} samples"


def _shown(failures: Iterable[Failure], count: int) -> str:
    shown = list(failures)[:_SHOWN]
    more = count - sum(failure.count for failure in shown)
    listed = "; ".join(map(str, shown))
    return f"{listed}; and {more:,} more" if more > 0 else listed
