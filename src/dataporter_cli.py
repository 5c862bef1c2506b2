"""The command line: parses the arguments, calls the library, and turns errors into one line.

This module is outside the package, since importing the package imports torch, which takes seconds.
Each command imports what it needs when it runs, so that ``--help`` and usage errors import none.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

# Libraries that only some commands need, and the names under which pip installs them.
_OPTIONAL = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}

main = typer.Typer(
    name="dataporter",
    help="Exactly resumable, drop-in data loading for PyTorch.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@main.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from dataporter._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@main.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where to save the plot.")] = Path("demo.png"),
    epochs: Annotated[int, typer.Option(min=1, help="How many epochs each run trains.")] = 3,
    keep: Annotated[
        Path | None, typer.Option(help="A new directory for the logs and checkpoints.")
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(help="Numbers of ranks, such as 4,2: kill the first, resume with the next."),
    ] = None,
    mixture: Annotated[
        bool,
        typer.Option("--mixture", help="Train on several texts, and change the mixture midway."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Kill a training run, resume it, and compare every step with an uninterrupted run.

    Trains on scikit-learn's handwritten digits. With --world, the training is distributed (gloo, on
    the CPU), resumes with another number of ranks after each kill, and draws no plot. With
    --mixture, a tiny GPT trains on texts of this machine, and resumes on two ranks with other
    weights and one more text. Exit code: 0 if every sample, every byte and (without --world) every
    loss is the same, 1 if anything differs, 2 if the demo could not run.
    """
    if mixture and world is not None:
        _fail("demo: --mixture chooses its own worlds: leave --world out")
    with _one_line("demo", debug=debug, interrupted="its training processes are stopped"):
        from dataporter.tools.demo.show import show
        from dataporter.tools.demo.show_mixture import show_mixture
        from dataporter.tools.demo.show_worlds import show_worlds

        if mixture:
            exact = show_mixture(keep=keep)
        elif world is None:
            exact = show(output, epochs=epochs, keep=keep)
        else:
            exact = show_worlds(world, epochs=epochs, keep=keep)
    raise typer.Exit(0 if exact else 1)


@main.command()
def analyze(
    target: Annotated[
        str, typer.Argument(help="package.module:name or path/to/file.py:name of a dataset.")
    ],
    samples: Annotated[int, typer.Option(min=1, help="How many samples to read.")] = 1000,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest relative rounding error of a float.")
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option(metavar="PATH=N", help="The largest number at a path.")
    ] = None,
    widened: Annotated[
        bool, typer.Option("--widened", help="Batches are converted back on the device.")
    ] = False,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Read samples of a dataset, and suggest narrower dtypes that keep every value.

    TARGET names a dataset, a loader, or a function that returns one. Exit code: 2 if it cannot be
    read.
    """
    limits = dict(map(_limit, maximum or ()))
    with _one_line("analyze", debug=debug):
        from dataporter.tools.advisor.advisor import suggest_conversions
        from dataporter.tools.target import argument, load_target

        data = load_target(target, dict(map(argument, arguments or ())))
        plan = suggest_conversions(
            data, samples, tolerance=tolerance, maximum=limits, widened=widened
        )
    typer.echo(json.dumps(plan.to_dict(), indent=2) if as_json else plan)


@main.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:name or path/to/file.py:name of a function that returns a loader."
        ),
    ],
    workers: Annotated[
        str | None, typer.Option(help="Numbers of workers to try. By default 0,2,4.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="process, thread or both. By default the loader's.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Batch sizes to resume with, if they may change.")
    ] = None,
    world: Annotated[
        str | None, typer.Option(help="Numbers of ranks, such as 1,2,4; the first saves.")
    ] = None,
    spawn: Annotated[
        bool, typer.Option("--spawn", help="Run the ranks as processes of a gloo group.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Batches a run. By default a little over an epoch."),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Start no further case after so many seconds.")
    ] = 60,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the random steps.")] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function."),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose/--no-diagnose", help="Search for the cause of a difference.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Prove that a loader resumes exactly where it was interrupted, or show where and why not.

    Runs the loader uninterrupted. Then interrupts it at the start, in mid-epoch, at the last step,
    at the end of the epoch, in the next epoch and at random steps, loads its state in new
    processes, and compares every batch that follows. The loader may be DataPorter's, torch's,
    torchdata's or a custom one. Exit code: 0 if exact, 1 if not, 2 if that is not proven.
    """
    from dataporter.tools.verification.command import Options, carry_out

    with _one_line("verify", debug=debug):
        code = carry_out(
            Options(
                *(target, workers, engine, batch_size, world, spawn, steps, max_seconds, seed),
                *(argument or (), diagnose, as_json, html),
            )
        )
    raise typer.Exit(code)


@main.command("inspect")
def inspect_(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint, a JSON file, or a folder of checkpoints.")
    ],
    ranks: Annotated[
        int, typer.Option(min=1, help="For how many ranks to show the next batch.")
    ] = 4,
    indices: Annotated[int, typer.Option(min=0, help="How many of its indices to show.")] = 8,
    check: Annotated[
        bool, typer.Option("--check", help="Compare checksums also for files above 1 GB.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Show the position of each loader whose state is in a checkpoint, and what comes next.

    States are found at any depth. Nothing in the file is executed, and the dataset is not needed.
    Exit code: 0 if there is a state, 1 if there is none, 2 if the file is damaged or cannot be
    read.
    """
    from dataporter.tools.inspection.command import show

    with _one_line("inspect", debug=debug):
        code, message = show(path, ranks=ranks, indices=indices, check=check, as_json=as_json)
    if code:
        _fail(f"inspect: {message}", exit_code=code)


@main.command()
def bench(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:name or path/to/file.py:name of a loader or of a function that "
            "returns one."
        ),
    ],
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long to measure.")] = 10,
    workers: Annotated[
        str | None, typer.Option(help="Other numbers of workers to try, such as 0,1,2,4.")
    ] = None,
    step_ms: Annotated[
        float, typer.Option(min=0, help="Duration of the training's own step in milliseconds.")
    ] = 0,
    argument: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Measure how fast a loader is, where its time goes, and how many workers it needs.

    TARGET may be torch's DataLoader or a ResumableDataLoader. A loop takes its batches and sleeps
    --step-ms after each, like a training whose device computes. Exit code: 2 if the loader cannot
    be built or read.
    """
    from dataporter.tools.bench.command import show

    with _one_line("bench", debug=debug):
        show(
            target,
            seconds=seconds,
            workers=workers,
            step_ms=step_ms,
            arguments=argument or (),
            as_json=as_json,
        )


@contextmanager
def _one_line(command: str, *, debug: bool, interrupted: str = "") -> Iterator[None]:
    """Print an error as one line, with ``--debug`` after its traceback, and exit with code 2.

    Args:
        interrupted: what to add to the line after Ctrl-C, which exits with code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        addition = f"; {interrupted}" if interrupted else ""
        _fail(f"{command}: interrupted{addition}", exit_code=130)
    except Exception as error:
        from dataporter.tools.target import in_one_line

        if debug:
            traceback.print_exc()
        library = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and library in _OPTIONAL:
            needed = " ".join(_OPTIONAL.values())
            _fail(
                f"{command}: {library} is not installed, which this command needs: "
                f"pip install {needed}"
            )
        _fail(f"{command}: {in_one_line(error)}")


def _limit(text: str) -> tuple[str, int]:
    path, _, number = text.rpartition("=")
    try:
        return path, int(number)
    except ValueError:
        _fail(f"analyze: --maximum={text}: expected PATH=N, such as input_ids=50257")


def _fail(message: str, exit_code: int = 2) -> NoReturn:
    typer.echo(f"dataporter: {message}", err=True)
    raise typer.Exit(exit_code)
