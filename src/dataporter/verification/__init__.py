"""Verification: proves that a loader goes on exactly where it was interrupted, or shows where."""

from dataporter.verification.processes import VerificationError
from dataporter.verification.proof import verify
from dataporter.verification.report import VerifyReport

__all__ = ["VerificationError", "VerifyReport", "verify"]
