"""Integrations: one module per framework, imported where it is used; look-ups by frames always."""

from dataporter.integrations import callers

__all__ = ["callers"]
