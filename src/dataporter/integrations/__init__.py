"""Integrations: one module for each framework, imported only where it is used; the hooks always."""

from dataporter.integrations import callers

__all__ = ["callers"]
