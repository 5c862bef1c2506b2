"""Advisor: the narrowest dtypes that hold a dataset's values."""
