"""What a pruned model is worth."""

from .accuracy import AccuracyReward, choose_balanced
from .base import Reward
from .coco import CocoReward, choose_covering, coco_map

__all__ = ['AccuracyReward', 'CocoReward', 'Reward', 'choose_balanced', 'choose_covering', 'coco_map']
