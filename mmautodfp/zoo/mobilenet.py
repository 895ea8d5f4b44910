"""MobileNet-V1 for CIFAR and ImageNet, and MobileNet-V2 for CIFAR."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from mmautodfp.utils.registry import MODELS

# (channels, stride) of each block.
V1_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)
# (expansion, channels, blocks, stride of the first) of each stage.
V2_CIFAR = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 convolution and a pointwise one, each with norm and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(inputs, inputs, 3, stride, groups=inputs),
            bn1=nn.BatchNorm2d(inputs),
            relu1=nn.ReLU(),
            conv2=_conv(inputs, outputs, 1),
            bn2=nn.BatchNorm2d(outputs),
            relu2=nn.ReLU(),
        )
    )


@MODELS.register_module()
class MobileNetV1(nn.Sequential):
    """MobileNet-V1: ``conv1, bn1, layers.{0..12}.{conv1 depthwise, bn1, conv2 pointwise, bn2}, linear``.

    Args:
        num_classes (int): Defaults to 10.
        stem_stride (int): Stride of the first convolution: 1 for CIFAR, 2 for ImageNet. Defaults to 1.
        stem (int): Channels of the first convolution. Defaults to 32.
        blocks (Sequence[tuple[int, int]]): Channels and stride of each block. Defaults to the original's.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem_stride: int = 1,
        stem: int = 32,
        blocks: Sequence[tuple[int, int]] = V1_BLOCKS,
    ):
        widths = [stem, *(width for width, _ in blocks)]
        layers = [
            _separable(inputs, width, stride) for inputs, (width, stride) in zip(widths[:-1], blocks, strict=True)
        ]
        super().__init__(
            OrderedDict(
                conv1=_conv(3, stem, 3, stem_stride),
                bn1=nn.BatchNorm2d(stem),
                relu1=nn.ReLU(),
                layers=nn.Sequential(*layers),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(widths[-1], num_classes),
            )
        )


class InvertedResidual(nn.Sequential):
    """Expand (1x1), filter (depthwise 3x3), project (1x1, no activation); a shortcut where the shapes allow.

    Args:
        inputs (int): Channels of the input.
        outputs (int): Channels of the output.
        stride (int): Stride of the depthwise convolution.
        expansion (int): The depthwise convolution has ``inputs * expansion`` channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        width = inputs * expansion
        super().__init__(
            OrderedDict(
                conv1=_conv(inputs, width, 1),
                bn1=nn.BatchNorm2d(width),
                relu1=nn.ReLU6(),
                conv2=_conv(width, width, 3, stride, groups=width),
                bn2=nn.BatchNorm2d(width),
                relu2=nn.ReLU6(),
                conv3=_conv(width, outputs, 1),
                bn3=nn.BatchNorm2d(outputs),
            )
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.shortcut else super().forward(x)


@MODELS.register_module()
class MobileNetV2(nn.Sequential):
    """MobileNet-V2, with ``layers.{0..16}.{conv1 expand, bn1, conv2 depthwise, bn2, conv3 project, bn3}``.

    Around these are ``conv1, bn1`` and ``conv2, bn2, linear``.

    Args:
        num_classes (int): Defaults to 10.
        stem (int): Channels of the first convolution. Defaults to 32.
        last (int): Channels of the last convolution. Defaults to 1280.
        stages (Sequence[tuple[int, int, int, int]]): Of each stage the expansion, channels, number of blocks and stride
            of the first block. Defaults to the usual ones for CIFAR, where the second stage has stride 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem: int = 32,
        last: int = 1280,
        stages: Sequence[tuple[int, int, int, int]] = V2_CIFAR,
    ):
        layers, inputs = [], stem
        for expansion, width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, width, stride if block == 0 else 1, expansion))
                inputs = width
        super().__init__(
            OrderedDict(
                conv1=_conv(3, stem, 3),
                bn1=nn.BatchNorm2d(stem),
                relu1=nn.ReLU6(),
                layers=nn.Sequential(*layers),
                conv2=_conv(inputs, last, 1),
                bn2=nn.BatchNorm2d(last),
                relu2=nn.ReLU6(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(last, num_classes),
            )
        )
