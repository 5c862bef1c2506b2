"""Interleaving: the sources of a period's samples, in an order that a keyed hash draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataporter.seeding.hashing import GOLDEN_GAMMA, mix

__all__ = ["interleaved", "period_for"]

_SHORTEST = 256
_LONGEST_EXACT = 1024


def period_for(total: int, sources: int) -> int:
    """Number of samples in a period.

    Args:
        total: of the weights as whole numbers. A period is a multiple of it where that is short,
            so that every period holds exactly each source's share.
        sources: with weight.
    """
    least = max(_SHORTEST, 4 * sources)
    return total * -(-least // total) if total <= max(_LONGEST_EXACT, least) else least


def interleaved(
    shares: NDArray[np.int64], keys: NDArray[np.uint64]
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The source of each sample of some periods, and how many of it came before in the period.

    Every arrangement of a period's samples is equally likely over the keys.

    Args:
        shares: how many samples of each source a period has, shape (sources, periods).
        keys: of the periods.

    Returns:
        Two arrays of shape (periods, samples of the longest period); behind the end of a shorter
        one they have no meaning.
    """
    lengths = shares.sum(axis=0)
    longest = int(lengths.max())
    spread = np.arange(longest, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    hashes = mix(spread + keys[:, None])
    if (lengths < longest).any():
        # What fills a shorter period up comes last in it.
        shares = np.concatenate((shares, (longest - lengths)[None]))
        hashes[np.arange(longest) >= lengths[:, None]] = np.uint64((1 << 64) - 1)
    sources, periods = shares.shape
    runs = shares.T.ravel()
    kind = np.uint8 if sources <= 1 << 8 else np.uint16  # for which NumPy sorts by radix
    owners = np.repeat(np.tile(np.arange(sources, dtype=kind), periods), runs)
    begins = (np.cumsum(shares, axis=0) - shares).T.ravel()
    within = np.arange(longest) - np.repeat(begins, runs).reshape(periods, longest)
    drawn = np.take_along_axis(owners.reshape(periods, longest), np.argsort(hashes), axis=1)
    ranks = np.empty((periods, longest), dtype=np.int64)
    np.put_along_axis(ranks, np.argsort(drawn, axis=1, kind="stable"), within, axis=1)
    return drawn.astype(np.uint16, copy=False), ranks
