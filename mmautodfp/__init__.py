"""Data-free pruning of MMDetection detectors by channel similarity, searched with Soft Actor-Critic (AutoDFP)."""

import sys
from importlib.util import find_spec

# They are no dependencies of ours: the originals and their maintained forks share these import names.
missing = [name for name in ('mmengine', 'mmcv', 'mmdet') if find_spec(name) is None]
if missing:
    raise ImportError(
        f'mmautodfp needs mmengine, mmcv and mmdet, but there is no {" and no ".join(missing)} here: with torch 2.1 '
        'install mmautodfp[openmmlab], with a newer torch mmautodfp[onedl], which has their maintained forks'
    )

from .utils import AutoDFPError, registry  # noqa: E402

__version__ = '0.2.0'

sys.modules[f'{__name__}.registry'] = registry  # where version 0.1 had it, and OpenMMLab's packages have theirs

__all__ = ['AutoDFPError', '__version__']
