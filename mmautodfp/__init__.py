"""Data-free pruning of MMDetection detectors by channel similarity, searched with Soft Actor-Critic (AutoDFP)."""

import sys

from .utils import AutoDFPError, registry

__version__ = '0.2.0'

sys.modules[f'{__name__}.registry'] = registry  # where version 0.1 had it, and OpenMMLab's packages have theirs

__all__ = ['AutoDFPError', '__version__']
