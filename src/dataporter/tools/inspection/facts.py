"""Facts: what a loader's state says and what comes next, computed without the dataset (C5-C9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataporter.errors import InvalidStateError, StateMismatchError
from dataporter.state.schema import parse as parse_indexed
from dataporter.streams.state import parse as parse_stream
from dataporter.tools.inspection.index_facts import index_facts
from dataporter.tools.inspection.report import StateReport
from dataporter.tools.inspection.stream_facts import stream_facts
from dataporter.tools.target import in_one_line

__all__ = ["facts_of"]


def facts_of(where: str, state: Mapping[str, Any], *, ranks: int, indices: int) -> StateReport:
    """The report of a state, sound or damaged.

    Args:
        where: the path of the state in the checkpoint.
        state: the state as it was found.
        ranks: for how many ranks to show the next batch.
        indices: how many of its samples to show.
    """
    try:
        if "stream" in state:
            return stream_facts(where, state, parse_stream(state), ranks=ranks)
        return index_facts(where, state, parse_indexed(state), ranks=ranks, indices=indices)
    # The state's own order gives other indices than its digest says: it is damaged as well.
    except (InvalidStateError, StateMismatchError) as error:
        return StateReport(where, dict(state), fault=in_one_line(error))
