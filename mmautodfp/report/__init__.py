"""What a run leaves behind, drawn."""

from .plots import draw_run

__all__ = ['draw_run']
