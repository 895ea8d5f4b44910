"""Where in an image a detector sees something: what its layers make of these places counts more than the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

# What a place counts at which nothing is seen; one at which something surely is counts 1 more.
BACKGROUND = 0.1


@dataclass(frozen=True)
class Foreground:
    """How sure a dense head is that there is something, whatever it is, at the places of each level.

    Attributes:
        levels (Sequence[Tensor]): [B, h, w] each, in [0, 1], the finest first.
    """

    levels: Sequence[Tensor]

    def weights(self, x: Tensor) -> Tensor | None:
        """How much each place of a feature map counts.

        Args:
            x (Tensor): What a layer reads or gives. A map of the size of a level counts as that level does, any other
                one as the level that is surest there.

        Returns:
            Tensor | None: [B * h * w] for a map [B, C, h, w] of the images; None for what is no such map.
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
    """What a detector's dense head, or that of its first stage, sees; None if it has none.

    Args:
        model (nn.Module): Any model.
        outputs (Sequence[Sequence[Tensor]]): What it says of a batch, as of :func:`.outputs_by_kind`.
    """
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if head is None:
        return None
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead  # a backbone alone does without MMDetection

    if not isinstance(head, BaseDenseHead):
        return None
    scores = outputs[0]
    if any(level.ndim != 4 or len(level) != len(scores[0]) for level in scores):
        return None
    levels = [_surest(head, level) for level in scores]
    return Foreground(sorted(levels, key=lambda level: -level[0].numel()))


def _surest(head: nn.Module, scores: Tensor) -> Tensor:
    """Probability [B, h, w] of the likeliest class at each place; the background, which comes last, is none."""
    if getattr(head, 'use_sigmoid_cls', True):
        return scores.sigmoid().amax(1)
    classes = scores.unflatten(1, (-1, head.cls_out_channels)).softmax(2)
    return classes[:, :, :-1].amax((1, 2))
