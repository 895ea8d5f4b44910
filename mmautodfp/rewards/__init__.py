"""Rewards: metrics by which a search judges pruned models."""

from .base import OtherDataset, Reward
from .classification import AccuracyReward
from .coco import CocoReward
from .synthetic import SyntheticReward

__all__ = ['AccuracyReward', 'CocoReward', 'OtherDataset', 'Reward', 'SyntheticReward']
