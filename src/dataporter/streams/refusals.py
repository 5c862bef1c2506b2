"""Refusals: why a stream cannot be read further, and what to write instead (C12)."""

from __future__ import annotations

from inspect import isgenerator
from typing import Any

from dataporter.errors import SampleError, UnsupportedDatasetError, add_note
from dataporter.fetch.on_error import OnError

__all__ = ["other_samples", "raise_unless_tolerated", "unrepeatable"]


def raise_unless_tolerated(error: Exception, where: str, on_error: OnError, iterator: Any) -> None:
    """Raise the exception of a sample where ``on_error`` does not apply to it.

    Raises:
        Exception: the error, with ``on_error="raise"``.
        SampleError: it came from a generator, which has ended with it.
    """
    if on_error == "raise":
        add_note(error, f"while reading {where}")
        raise error
    if isgenerator(iterator) or getattr(iterator, "is_broken", False):
        raise SampleError(
            f"{where} raised {error!r}, and a generator cannot continue after an exception, so "
            "on_error= does not apply: catch the exception inside the generator, or make the "
            "stream an iterator with __next__"
        ) from error


def other_samples(
    shard: int, epoch: int, first: int, stop: int, *, kind: str, has_snapshot: bool
) -> str:
    """That a shard does not repeat the samples that were delivered before.

    Args:
        first, stop: offsets of these samples.
        kind: the class of the dataset.
        has_snapshot: they were read from a state that the dataset had loaded.
    """
    where = (
        f"shard {shard} of the stream (epoch {epoch}) does not repeat its samples {first} to "
        f"{stop - 1}, which were delivered before"
    )
    if not has_snapshot:
        return (
            f"{where}, so reading them again does not lead to the next one: a {kind} probably "
            "draws from its own generator, or reads data in no fixed order. Draw from "
            "dataporter.sample_rng(), or from Python's, NumPy's or torch's global generator, which "
            "the loader seeds; or seed the generator in set_epoch(epoch); or pass seed= to a "
            "Hugging Face shuffle(); or give the dataset state_dict and load_state_dict. Or the "
            "data have changed. load_state_dict(state, on_mismatch='warn') resumes without this "
            "comparison"
        )
    return (
        f"{where}, after its own state was loaded: state_dict() leaves out something that the "
        "samples depend on, such as a generator or a shuffled list, or load_state_dict() does "
        "not restore it, or the data have changed. load_state_dict(state, on_mismatch='warn') "
        "on the loader resumes without this comparison"
    )


def unrepeatable(kind: str, shard: int, offset: int, error: Exception) -> UnsupportedDatasetError:
    """That a shard cannot be read again from a batch on, which draws from another generator."""
    return UnsupportedDatasetError(
        f"the batch from sample {offset} of shard {shard} on is the first to draw from one of the "
        "global generators, which are seeded before each sample only where samples draw from them. "
        f"So it has to be read again, but the {kind} does not repeat itself ({error}). Write "
        "draws = True in its class: then all generators are seeded before each sample from the "
        "start, and nothing is read twice"
    )
