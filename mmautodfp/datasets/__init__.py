"""Data sets that need no download."""

from .digits import DIGIT_CLASSES, SPLITS, make_digits

__all__ = ['DIGIT_CLASSES', 'SPLITS', 'make_digits']
