"""The memory report: what batches, workers and dataset hold, with DataPorter and without."""

from dataporter.tools.memory_report.measure import memory_report
from dataporter.tools.memory_report.report import MemoryReport

__all__ = ["MemoryReport", "memory_report"]
