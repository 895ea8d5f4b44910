"""A chain of small convolutions, images that it takes, and a metric of it that is a plain function."""

import torch
from conftest import enliven
from torch import nn

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def make_chain(seed: int = 0) -> nn.Sequential:
    """Of 8, 12 and 10 channels that can be pruned, each with a norm."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 10)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return enliven(nn.Sequential(*layers, nn.Conv2d(10, 4, 1)), seed)


@torch.no_grad()
def brightness(model: nn.Module) -> float:
    """The higher, the better."""
    return model(IMAGES).mean().item()
