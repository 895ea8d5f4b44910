"""The baseline: Neuron Merging, as its authors released it."""

from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, unit_statistics
from mmautodfp.kernels import neuron_merging_delivery
from mmautodfp.utils.registry import RECONSTRUCTORS

from .base import Reconstruction, Reconstructor


@RECONSTRUCTORS.register_module()
class NeuronMerging(Reconstructor):
    """Neuron Merging (Kim et al., NeurIPS 2020) in the form that its authors released, as a baseline.

    Args:
        lam (float): Weight of the cosine distance against the bias; the agent's lambda is not used. Defaults to 0.85.
        min_cosine (float): Below this cosine similarity a channel is dropped without replacement. Defaults to 0.1.
    """

    def __init__(self, lam: float = 0.85, min_cosine: float = 0.1):
        super().__init__()
        self.lam = lam
        self.min_cosine = min_cosine
        self._statistics: dict[str, tuple] = {}

    def _fit_unit(self, module: nn.Module, unit: ChannelGroup) -> None:
        self._statistics[unit.name] = unit_statistics(module, unit)

    def moves_constants(self, unit: ChannelGroup) -> bool:
        return False

    def reconstruct(self, unit: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        weight, bn = self._statistics[unit.name]
        channels = unit.channels(keep)
        return Reconstruction(neuron_merging_delivery(weight, bn, channels, self.lam, self.min_cosine))
