"""What a pruned model is worth."""

from .accuracy import AccuracyReward, choose_balanced
from .base import Reward
from .coco import CocoReward
from .coco_map import CocoTruth
from .subset import ImageBatches, choose_covering

__all__ = [
    'AccuracyReward',
    'CocoReward',
    'CocoTruth',
    'ImageBatches',
    'Reward',
    'choose_balanced',
    'choose_covering',
]
