"""The paper's compensation: each pruned channel is replaced by a similar retained one."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, group_statistics, path_statistics
from mmautodfp.kernels import ChannelSimilarity
from mmautodfp.utils.registry import RECONSTRUCTORS
from mmautodfp.utils.settings import checked

from .base import Reconstruction, Reconstructor


@RECONSTRUCTORS.register_module()
class SimilarityReconstructor(Reconstructor):
    """The paper's: each pruned channel is replaced by the retained one that Eq. 16 chooses, scaled by Eq. 12.

    If a depthwise layer lies between producer and consumer, both equations use the weights of the two together; the
    paper does not say what it does there.

    Args:
        normalization (str): How |B| of Eq. 16 is scaled to [0, 1] over the candidates of each pruned channel: 'max' or
            'minmax'. Defaults to 'minmax', which is the better one on ResNet-56 at all ratios.
        min_cosine (float | None): Pruned channels whose replacement has a lower cosine similarity than this get none.
            Defaults to None, the paper's: always replaced.

    Raises:
        AutoDFPError: ``normalization`` is neither, or an argument is of another type.
    """

    @checked('SimilarityReconstructor')
    def __init__(self, normalization: Literal['max', 'minmax'] = 'minmax', min_cosine: float | None = None):
        super().__init__()
        self.normalization = normalization
        self.min_cosine = min_cosine
        self._similarity: dict[str, ChannelSimilarity] = {}
        self._constant: dict[str, Tensor] = {}

    def _fit_group(self, module: nn.Module, group: ChannelGroup) -> None:
        similarity = ChannelSimilarity.from_weight(*path_statistics(module, group))
        self._similarity[group.name] = similarity
        # Channels with the same output for every input need no replacement: that output is moved.
        shift = group_statistics(module, group)[1].shift.clone()
        constant = torch.zeros_like(shift) if group.activation is None else group.activation(shift)
        self._constant[group.name] = torch.where(similarity.alive, 0, constant)

    def moves_constants(self, group: ChannelGroup) -> bool:
        return group.activation is not None

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        similarity, keep = self._similarity[group.name], group.channels(keep)
        delivery = similarity.delivery(keep, lam, self.normalization, self.min_cosine)
        constant = self._constant[group.name].clone()
        constant[keep] = 0  # retained channels keep their constant outputs
        return Reconstruction(delivery, constant if self.moves_constants(group) else None)
