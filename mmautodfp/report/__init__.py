"""Pictures of a run."""

from .plots import draw_pareto, draw_run

__all__ = ['draw_pareto', 'draw_run']
