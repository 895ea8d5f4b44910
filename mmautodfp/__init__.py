"""Data-free pruning of MMDetection detectors by channel similarity, searched with Soft Actor-Critic (AutoDFP)."""

from .errors import AutoDFPError

__version__ = '0.1.0'

__all__ = ['AutoDFPError', '__version__']
