"""Plans from the dense model down, measured one by one: what can be kept at which cost."""

from .choice import Choice, choose
from .measure import frontier
from .points import Frontier, Point

__all__ = ['Choice', 'Frontier', 'Point', 'choose', 'frontier']
