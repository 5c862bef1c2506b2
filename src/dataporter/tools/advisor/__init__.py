"""Advisor: which dtypes a dataset's values allow."""
