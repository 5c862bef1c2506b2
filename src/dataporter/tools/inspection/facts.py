"""Facts: what a loader's state says, and what comes next, computed without the dataset (C5-C9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataporter.errors import InvalidStateError
from dataporter.state.schema import parse as parse_indexed
from dataporter.streams.state import parse as parse_stream
from dataporter.tools.inspection.index_facts import index_facts
from dataporter.tools.inspection.report import StateReport
from dataporter.tools.inspection.stream_facts import stream_facts
from dataporter.tools.target import in_one_line

__all__ = ["facts_of"]


def facts_of(where: str, state: Mapping[str, Any], *, ranks: int, indices: int) -> StateReport:
    """What there is to say of a state.

    Args:
        where: it lies.
        ranks: of how many ranks the next batch is told.
        indices: of how many of its samples.
    """
    try:
        if "stream" in state:
            return stream_facts(where, state, parse_stream(state), ranks)
        return index_facts(where, state, parse_indexed(state), ranks, indices)
    except InvalidStateError as error:
        return StateReport(where, dict(state), fault=in_one_line(error))
