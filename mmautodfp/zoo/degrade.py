"""Worse photographs, to see what a detector makes of them."""

import os
import zlib
from typing import Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import TRANSFORMS
from mmautodfp.utils.settings import checked

# What a strength may be, lowest and highest.
RANGES = {'blur': (0.1, 100), 'noise': (0, 255), 'dark': (0, 1), 'jpeg': (0, 100)}


@TRANSFORMS.register_module()
class Degrade(BaseTransform):
    """Blur an image, add noise to it, darken it or compress it; it stands behind ``LoadImageFromFile``.

    An image is changed in the same way whenever it is read: its noise is drawn with a seed made of its file's name.

    Args:
        kind (str): 'blur', 'noise', 'dark' or 'jpeg'.
        strength (float): The standard deviation of the Gaussian blur in pixels of the image as it is stored; the
            standard deviation of the normal noise in grey levels, each pixel and colour on its own; what all values are
            multiplied by, 0 to 1; or JPEG's quality, a whole number from 0 to 100.

    Raises:
        AutoDFPError: A setting is not one of these.
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
        """Change ``results['img']``, uint8 [H, W, 3]; the noise is that of ``results['img_path']``."""
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
