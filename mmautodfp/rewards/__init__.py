"""What a pruned model is worth."""

from .base import Reward
from .coco import CocoReward, choose_covering, coco_map

__all__ = ['CocoReward', 'Reward', 'choose_covering', 'coco_map']
