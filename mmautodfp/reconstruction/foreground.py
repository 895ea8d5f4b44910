"""Foreground: the positions at which a detector sees an object, which count more than others in all errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

# Weight of a position without an object; one with an object of probability p has the weight BACKGROUND + p.
BACKGROUND = 0.1


@dataclass(frozen=True)
class Foreground:
    """Probability, by a dense head, of an object of any class at each position of each level.

    Attributes:
        levels (Sequence[Tensor]): [B, h, w] each, in [0, 1], the finest first.
    """

    levels: Sequence[Tensor]

    def weights(self, x: Tensor) -> Tensor | None:
        """The weight of each position of a feature map.

        Args:
            x (Tensor): Input or output of a layer. A feature map of the size of a level gets the probabilities of that
                level; any other gets the maximum over the levels, resized.

        Returns:
            Tensor | None: [B * h * w] for a feature map [B, C, h, w] of the same images; None for any other tensor.
        """
        finest = self.levels[0]
        if x.ndim != 4 or len(x) != len(finest):
            return None
        size = tuple(x.shape[2:])
        found = next((level for level in self.levels if tuple(level.shape[1:]) == size), None)
        if found is None:
            found = finest
            for level in self.levels[1:]:
                found = found.maximum(F.interpolate(level[None], finest.shape[1:], mode='nearest')[0])
            smaller = size[0] < finest.shape[1]
            found = F.adaptive_max_pool2d(found, size) if smaller else F.interpolate(found[None], size)[0]
        return (found + BACKGROUND).flatten()


def foreground_of(model: nn.Module, outputs: Sequence[Sequence[Tensor]]) -> Foreground | None:
    """The foreground by a detector's dense head, or by that of its first stage; None without such a head.

    Args:
        model (nn.Module): Any model.
        outputs (Sequence[Sequence[Tensor]]): Its outputs for a batch, as of :func:`.outputs_by_kind`.
    """
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if head is None:
        return None
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead  # not needed for a model without a head

    if not isinstance(head, BaseDenseHead):
        return None
    scores = outputs[0]
    if any(level.ndim != 4 or len(level) != len(scores[0]) for level in scores):
        return None
    levels = [_surest(head, level) for level in scores]
    return Foreground(sorted(levels, key=lambda level: -level[0].numel()))


def _surest(head: nn.Module, scores: Tensor) -> Tensor:
    """Probability [B, h, w] of the likeliest class at each position; the last class is the background, not counted."""
    from mmdet.models.dense_heads import CenterNetHead, TOODHead  # as above

    if hasattr(head, 'num_attrib'):  # YOLOv3: for each anchor four numbers for the box, the objectness, the classes
        found = scores.unflatten(1, (-1, head.num_attrib)).sigmoid()
        return (found[:, :, 4] * found[:, :, 5:].amax(2)).amax(1)
    if getattr(head, 'use_sigmoid_cls', True):
        are_probabilities = isinstance(head, CenterNetHead | TOODHead)  # the forward of others gives logits
        return (scores if are_probabilities else scores.sigmoid()).amax(1)
    classes = scores.unflatten(1, (-1, head.cls_out_channels)).softmax(2)
    return classes[:, :, :-1].amax((1, 2))
