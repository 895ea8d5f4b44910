"""VGG with BatchNorm, for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS

#: Convolutions of each stage, by depth; a max-pool ends each stage.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


@MODELS.register_module()
class VGG(nn.Sequential):
    """VGG with BatchNorm: convolutions ``features.N``, and a single linear layer ``classifier``.

    Args:
        depth (int): 11, 13, 16 or 19, the number of layers of the original. Defaults to 16.
        num_classes (int): Defaults to 10.
        in_channels (int): Channels of an image. Defaults to 3.
        image_size (int): Side of an image in pixels. Defaults to 32.
        channels (Sequence[int]): Channels of each stage. Defaults to (64, 128, 256, 512, 512).
        stages (Sequence[int] | None): Number of convolutions of each stage, in place of ``depth``. Defaults to None: by
            ``depth``.

    Raises:
        AutoDFPError: ``depth`` is unknown, ``stages`` and ``channels`` differ in length, or the image is too small for
            so many stages.
    """

    def __init__(
        self,
        depth: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = CHANNELS,
        stages: Sequence[int] | None = None,
    ):
        if stages is None and depth not in STAGES:
            raise AutoDFPError(f'VGG was asked for depth={depth}; it must be one of {", ".join(map(str, STAGES))}')
        stages = STAGES[depth] if stages is None else stages
        side = image_size // 2 ** len(stages)
        if len(stages) != len(channels) or side < 1:
            raise AutoDFPError(
                f'VGG was asked for {len(stages)} stages with the channels {list(channels)} on images of '
                f'{image_size} pixels; each stage needs its channels and halves the image'
            )
        layers: list[nn.Module] = []
        inputs = in_channels
        for count, width in zip(stages, channels, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        parts = dict(features=nn.Sequential(*layers), flatten=nn.Flatten())
        super().__init__(OrderedDict(parts, classifier=nn.Linear(inputs * side**2, num_classes)))
