"""Engines: where fetches run. They know requests and batches, and nothing of loaders."""

from dataporter.engines.engine import Engine, Reply, Usage
from dataporter.engines.inline import InlineEngine
from dataporter.engines.options import WorkerOptions
from dataporter.engines.page_lock import PageLock, locking
from dataporter.engines.process import ProcessEngine
from dataporter.engines.thread import ThreadEngine

__all__ = [
    "Engine",
    "InlineEngine",
    "PageLock",
    "ProcessEngine",
    "Reply",
    "ThreadEngine",
    "Usage",
    "WorkerOptions",
    "locking",
]
