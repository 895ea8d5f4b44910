"""Small networks for the tracer: a test writes the forward of named layers."""

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, GroupSurvey, groups_of, trace_channels


def conv(inputs: int, outputs: int, kernel: int = 3, **settings) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


class Net(nn.Module):
    """Layers by name, and a forward that a test writes as a function of them and an image."""

    def __init__(self, forward, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.way = forward

    def forward(self, x: Tensor):
        return self.way(self, x)


def follow(forward, **layers: nn.Module) -> GroupSurvey:
    model = Net(forward, **layers).eval()
    return groups_of(trace_channels(model, lambda: model(torch.rand(2, 3, 16, 16))))


def read_by(group: ChannelGroup) -> list[tuple[str, int]]:
    """Who reads a group, and from which input on."""
    return [(consumer.name, consumer.offset) for consumer in group.consumers]


def made_by(group: ChannelGroup) -> list[tuple[str, int]]:
    return [(producer.name, producer.offset) for producer in group.producers]
