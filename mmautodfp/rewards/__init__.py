"""What a pruned model is worth."""

from .base import Reward
from .classification import AccuracyReward, choose_balanced
from .coco import CocoReward
from .coco_map import CocoTruth
from .subset import ImageBatches, choose_covering
from .synthetic import SyntheticReward

__all__ = [
    'AccuracyReward',
    'CocoReward',
    'CocoTruth',
    'ImageBatches',
    'Reward',
    'SyntheticReward',
    'choose_balanced',
    'choose_covering',
]
