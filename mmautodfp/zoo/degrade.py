"""Degrading images, to measure a detector on worse ones."""

import os
import zlib
from typing import Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import TRANSFORMS
from mmautodfp.utils.settings import checked

# Lowest and highest strength of each kind.
RANGES = {'blur': (0.1, 100), 'noise': (0, 255), 'dark': (0, 1), 'jpeg': (0, 100)}


@TRANSFORMS.register_module()
class Degrade(BaseTransform):
    """Blurs, darkens or compresses an image, or adds noise to it. Put it behind ``LoadImageFromFile`` in a pipeline.

    An image is always changed in the same way: the name of its file is the seed of its noise.

    Args:
        kind (str): 'blur', 'noise', 'dark' or 'jpeg'.
        strength (float): For 'blur' the standard deviation of the Gaussian in pixels of the file, 0.1 to 100; for
            'noise' the standard deviation of independent normal noise in grey levels, 0 to 255; for 'dark' the factor
            of all values, 0 to 1; for 'jpeg' the quality, a whole number from 0 to 100.

    Raises:
        AutoDFPError: The kind is unknown, or the strength is out of its range.
    """

    @checked('Degrade')
    def __init__(self, kind: Literal['blur', 'noise', 'dark', 'jpeg'], strength: float):
        low, high = RANGES[kind]
        if not low <= strength <= high or (kind == 'jpeg' and strength != int(strength)):
            number = 'a whole number' if kind == 'jpeg' else 'a number'
            raise AutoDFPError(f'Degrade: the strength of {kind!r} is {number} from {low} to {high}, got {strength:g}')
        self.kind = kind
        self.strength = strength

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``, uint8 [H, W, 3]; the noise depends on the name in ``results['img_path']``."""
        image = results['img']
        if self.kind == 'blur':
            image = cv2.GaussianBlur(image, (0, 0), self.strength)
        elif self.kind == 'jpeg':
            _, code = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, int(self.strength)])
            image = cv2.imdecode(code, cv2.IMREAD_COLOR)
        else:
            values = image * np.float32(self.strength) if self.kind == 'dark' else image + self._noise(results)
            image = values.round().clip(0, 255).astype(np.uint8)
        results['img'] = image
        return results

    def _noise(self, results: dict) -> np.ndarray:
        seed = zlib.crc32(os.path.basename(results['img_path']).encode())
        shape = results['img'].shape
        return self.strength * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(kind={self.kind!r}, strength={self.strength:g})'
