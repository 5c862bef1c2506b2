"""Verification: proves that a loader goes on exactly where it was interrupted, or shows where."""

from dataporter.tools.verification.processes import VerificationError
from dataporter.tools.verification.proof import verify
from dataporter.tools.verification.report import VerifyReport

__all__ = ["VerificationError", "VerifyReport", "verify"]
