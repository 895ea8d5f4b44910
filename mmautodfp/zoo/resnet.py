"""ResNets for CIFAR with the structure used in the paper's Table 2, and classifiers of torchvision."""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, with an activation before the block and none after the sum.

    ``x = relu(x); y = bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)``

    Args:
        inputs (int): Channels of x.
        width (int): Channels of y.
        stride (int): Stride of conv1 and of the shortcut.
    """

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()  # not in place: it would change the block's input
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut


@MODELS.register_module()
class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers in three stages of :class:`BasicBlock`; no activation follows the first convolution.

    Args:
        depth (int): Number of layers, 6n + 2, such as 20, 32, 44, 56 or 110. Defaults to 56.
        num_classes (int): Defaults to 10.
        in_channels (int): Channels of an image. Defaults to 3.
        channels (Sequence[int]): Channels of the three stages. Defaults to (16, 32, 64).

    Raises:
        AutoDFPError: ``depth`` is not 6n + 2, or there are not three stages.
    """

    def __init__(
        self, depth: int = 56, num_classes: int = 10, in_channels: int = 3, channels: Sequence[int] = (16, 32, 64)
    ):
        super().__init__()
        if depth < 8 or depth % 6 != 2 or len(channels) != 3:
            raise AutoDFPError(
                f'CifarResNet was asked for depth={depth} and {len(channels)} stages; it has 6n + 2 layers, such as '
                '20 or 56, in three stages'
            )
        first, second, third = channels
        blocks = depth // 6
        self.conv1 = nn.Conv2d(in_channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = self._stage(blocks, first, first, 1)
        self.layer2 = self._stage(blocks, first, second, 2)
        self.layer3 = self._stage(blocks, second, third, 2)
        self.fc = nn.Linear(third, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode='fan_out')

    @staticmethod
    def _stage(blocks: int, inputs: int, width: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, width, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, in_channels, H, W]."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(x).mean((2, 3)))


@MODELS.register_module()
def TorchvisionNet(name: str, num_classes: int = 1000, small_images: bool = False) -> nn.Module:
    """Build a classifier of torchvision with random weights, which can load torchvision's checkpoints.

    Args:
        name (str): Name in torchvision, such as 'resnet34', 'resnet50' or 'resnet101'.
        num_classes (int): Defaults to 1000.
        small_images (bool): For ResNets: a 3x3 stem of stride 1 without max-pooling, as is usual for CIFAR. Defaults to
            False.

    Raises:
        AutoDFPError: torchvision has no such classifier, or ``small_images`` is set but it is no ResNet.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise AutoDFPError(f'torchvision was asked for the classifier {name!r}, which it does not have')
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if small_images:
        if not isinstance(model, torchvision.models.ResNet):
            raise AutoDFPError(f'small_images is for ResNets, but was asked of {name}')
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    return model
