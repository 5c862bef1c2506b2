"""Interleaving: the sources of a period's samples, in an order that a keyed hash draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataporter.seeding.hashing import GOLDEN_GAMMA, mix

__all__ = ["interleaved", "period_for"]

_SHORTEST = 256
_LONGEST_EXACT = 1024

_SOURCE = np.uint64((1 << 16) - 1)
_ALL = np.uint64((1 << 64) - 1)


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
    drawn = mix(spread + keys[:, None])
    drawn |= _SOURCE
    if (lengths < longest).any():
        # What fills a shorter period up comes last in it.
        shares = np.concatenate((shares, (longest - lengths)[None]))
        drawn[np.arange(longest) >= lengths[:, None]] = _ALL
    sources, periods = shares.shape
    runs = shares.T.ravel()
    # Sorts the hashes with their sources in the last 16 bits, which is faster than argsort.
    owners = np.repeat(np.tile(_SOURCE - np.arange(sources, dtype=np.uint64), periods), runs)
    drawn -= owners.reshape(periods, longest)
    drawn.sort(axis=1)
    kind = np.uint8 if sources <= 1 << 8 else np.uint16  # for which NumPy sorts by radix
    chosen = (drawn & _SOURCE).astype(kind)
    begins = (np.cumsum(shares, axis=0) - shares).T.ravel()
    within = np.tile(np.arange(longest), periods) - np.repeat(begins, runs)
    by_source = np.argsort(chosen, axis=1, kind="stable")
    by_source += np.arange(0, periods * longest, longest)[:, None]
    ranks = np.empty(periods * longest, dtype=np.int64)
    ranks[by_source.ravel()] = within
    return chosen.astype(np.uint16, copy=False), ranks.reshape(periods, longest)
