"""Errors, files, registries and clocks: what every room may use."""

from .errors import AutoDFPError

__all__ = ['AutoDFPError']
