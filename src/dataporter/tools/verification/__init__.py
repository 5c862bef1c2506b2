"""Verification: proves that a loader resumes exactly, or shows where and why it does not."""

from dataporter.tools.verification.processes import VerificationError
from dataporter.tools.verification.report import VerifyReport
from dataporter.tools.verification.session import verify

__all__ = ["VerificationError", "VerifyReport", "verify"]
