"""A baseline: Neuron Merging, as its authors released it."""

from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, group_statistics
from mmautodfp.kernels import neuron_merging_delivery
from mmautodfp.utils.registry import RECONSTRUCTORS
from mmautodfp.utils.settings import Share, checked

from .base import Reconstruction, Reconstructor


@RECONSTRUCTORS.register_module()
class NeuronMerging(Reconstructor):
    """Neuron Merging (Kim et al., NeurIPS 2020) in the form that its authors released, as a baseline.

    Args:
        lam (float): Weight of the cosine distance against the bias, 0 to 1, in place of the agent's lambda. Defaults to
            0.85.
        min_cosine (float): Pruned channels whose replacement has a lower cosine similarity than this get none. Defaults
            to 0.1.

    Raises:
        AutoDFPError: An argument is of another type or out of its range.
    """

    @checked('NeuronMerging')
    def __init__(self, lam: Share = 0.85, min_cosine: float = 0.1):
        super().__init__()
        self.lam = lam
        self.min_cosine = min_cosine
        self._statistics: dict[str, tuple] = {}

    def _fit_group(self, module: nn.Module, group: ChannelGroup) -> None:
        self._statistics[group.name] = group_statistics(module, group)

    def moves_constants(self, group: ChannelGroup) -> bool:
        return False

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        weight, bn = self._statistics[group.name]
        channels = group.channels(keep)
        return Reconstruction(neuron_merging_delivery(weight, bn, channels, self.lam, self.min_cosine))
