"""What a pruned model is worth."""

from .base import Reward
from .coco import CocoReward
from .coco_map import CocoTruth
from .subset import ImageBatches, choose_covering
from .synthetic import SyntheticReward

__all__ = ['CocoReward', 'CocoTruth', 'ImageBatches', 'Reward', 'SyntheticReward', 'choose_covering']
