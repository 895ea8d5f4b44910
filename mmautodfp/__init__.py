"""Data-free pruning of MMDetection detectors by channel similarity, searched with Soft Actor-Critic (AutoDFP)."""

import sys
from importlib.util import find_spec

# No dependencies of the package: the originals and their maintained forks have the same import names.
missing = [name for name in ('mmengine', 'mmcv', 'mmdet') if find_spec(name) is None]
if missing:
    raise ImportError(
        f'mmautodfp needs mmengine, mmcv and mmdet, but there is no {" and no ".join(missing)} here: with torch 2.1 '
        'install mmautodfp[openmmlab], with a newer torch mmautodfp[onedl], which has their maintained forks'
    )

from .utils import AutoDFPError, registry  # noqa: E402

__version__ = '0.2.0'

sys.modules[f'{__name__}.registry'] = registry  # its place in version 0.1 and in OpenMMLab's packages

__all__ = ['AutoDFPError', '__version__']
