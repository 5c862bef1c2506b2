"""The proof: runs a loader left alone and interrupted, in new processes, and compares (C1-C8)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.tools.verification.elasticity import run_batch_sizes, run_worlds
from dataporter.tools.verification.factory import factory_of
from dataporter.tools.verification.interruptions import run_settings
from dataporter.tools.verification.processes import Processes, refuse_inside
from dataporter.tools.verification.report import VerifyReport
from dataporter.tools.verification.session import OnProgress, Session

__all__ = ["verify"]

_WORKERS = (0, 2, 4)


def verify(
    make_loader: Callable[..., Any] | str,
    *,
    workers: Sequence[int] | None = None,
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    worlds: Sequence[int] | None = None,
    spawn: bool = False,
    steps: int | None = None,
    max_seconds: float = 60.0,
    seed: int | None = None,
    diagnose: bool = True,
    measure: bool = True,
    arguments: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Prove that a loader goes on exactly where it was interrupted, or show where it does not.

    The loader is run left alone, and again and again interrupted: at its start, in mid-epoch, after
    the last step, at the end of the epoch, in the second epoch and at random; with its state taken
    through ``torch.save`` and ``torch.load(weights_only=True)`` into a new process of another hash
    seed, or of a process that is killed with SIGKILL; with each number of workers; with another
    batch size and world size where the strategy promises that. Every following batch is compared,
    each leaf's dtype, shape and bytes.

    Args:
        make_loader: a function that returns a fresh loader each time (a ``ResumableDataLoader``,
            torch's or torchdata's, or anything that is iterated over), or where it is found:
            ``"package.module:name"`` or ``"path/to/file.py:name"``. What it takes of
            ``num_workers``, ``worker_kind``, ``batch_size``, ``rank`` and ``world_size``, it is
            given; what it does not is set on the loader.
        workers: numbers of workers to go through; by default 0, 2 and 4.
        engines: ``"process"``, ``"thread"`` or both; by default the loader's own.
        batch_sizes: to go on with; by default one other than the loader's. Empty: none.
        worlds: numbers of ranks to go through, of which the first saves the state; by default 1, 2
            and 4 with ``strategy="distributed"``, else none.
        spawn: let the ranks be processes of a gloo process group, instead of ranks that are told.
        steps: how many batches each run has; by default an epoch and a bit of the next.
        max_seconds: after so long no further case is begun.
        seed: of the random steps.
        diagnose: find out why, where something differs.
        measure: measure the throughput beside torch's ``DataLoader``.
        arguments: given to ``make_loader`` by name.
        on_progress: told what is being done, how many processes have ended and of how many.

    Raises:
        VerificationError: (a ``RuntimeError``) it could not be carried out: the loader cannot be
            made, or gives no batch, or there was no time to interrupt it.
        ConfigurationError: (a ``ValueError``) an argument is wrong.

    Example:
        >>> from dataporter import ResumableDataLoader, verify
        >>> def make_loader():
        ...     return ResumableDataLoader(range(40), batch_size=4, shuffle=True)
        >>> verify(make_loader, workers=[0], measure=False).exact
        True
    """
    refuse_inside()
    unknown = set(engines or ()) - {"process", "thread"}
    if unknown:
        raise ConfigurationError(
            f"engines={list(engines or ())!r}: expected 'process', 'thread' or both"
        )
    _check(workers=workers, batch_sizes=batch_sizes, worlds=worlds, steps=steps)
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 31)
    factory = factory_of(make_loader, arguments or {})
    begun = time.monotonic()
    with Processes(forked=factory.target is None, seed=seed) as processes:
        session = Session(
            factory, processes, random.Random(seed), begun + max_seconds, on_progress, max_seconds
        )
        if factory.target is None:
            session.notes.append(
                f"{factory.name} is no function at the top of a module, so no new interpreter can "
                "find it: its processes are forks of this one, which share what was imported and "
                "the hash seed; hash randomisation and what happens at import are not covered"
            )
        workers = tuple(workers or _WORKERS)
        session.run_reference(steps, workers[0])
        run_settings(session, workers, engines)
        run_batch_sizes(session, batch_sizes)
        run_worlds(session, worlds, spawn=spawn)
        session.require_interruption()
        if measure:
            session.measure(workers)
        if diagnose:
            session.find_out_why()
        report = session.report(seed)
    return replace(report, seconds=time.monotonic() - begun)


def _check(**counts: Any) -> None:
    for name, value in counts.items():
        lowest = 0 if name == "workers" else 1
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and (not isinstance(number, int) or number < lowest):
                raise ConfigurationError(
                    f"{name}={value!r}: expected whole numbers of {lowest} or more"
                )
