"""Verification: proves that a loader goes on exactly where it was interrupted, or shows where."""

from dataporter.tools.verification.processes import VerificationError
from dataporter.tools.verification.report import VerifyReport
from dataporter.tools.verification.session import verify

__all__ = ["VerificationError", "VerifyReport", "verify"]
