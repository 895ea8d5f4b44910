"""Errors, files, registries and clocks: what every room may use."""

from .errors import AutoDFPError, first_line, in_one_line, last_line

__all__ = ['AutoDFPError', 'first_line', 'in_one_line', 'last_line']
