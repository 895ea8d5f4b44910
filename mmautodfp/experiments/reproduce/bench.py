"""A network with its weights and images, to be measured."""

from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from mmautodfp.api import PruningTask
from mmautodfp.reconstruction import NeuronMerging
from mmautodfp.rewards import AccuracyReward, Reward
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import read_state
from mmautodfp.utils.timing import median_in_turns

from ..bench import Bench


class NetworkBench(Bench):
    """Accuracy, cost and speed of a network under any plan, on a GPU if there is one.

    Args:
        config (Path): Its config, ``configs/classification/*_autodfp.py``.
        checkpoint (str): File or URL of its weights.
        data_root (str | None): Replaces the config's.
        num_images (int | None): Test images to measure on, the same number of each class; None for all.

    Raises:
        AutoDFPError: Weights or images are missing, or the weights are of another network.
    """

    def __init__(self, config: Path, checkpoint: str, data_root: str | None, num_images: int | None):
        self.num_images = num_images
        super().__init__(config, checkpoint, data_root and {'test_dataloader.dataset.data_root': data_root})
        state = self.model.adapt_state_dict(read_state(self.cfg.load_from))
        if further := state.keys() - self.model.state_dict():
            raise AutoDFPError(
                f'checkpoint {self.cfg.load_from} is of a larger network than the {self.cfg.model.network.type} of '
                f'{config}, which has no {min(further)}; name the checkpoint that was trained with this config'
            )
        self.accuracy = cache(self._accuracy)

    def reward_on(self, dataloader: dict) -> Reward:
        """Top-1 on :attr:`num_images` of a data loader."""
        reward = AccuracyReward(self.num_images, batch_size=dataloader.batch_size)
        reward.prepare(self.model, dataloader)
        return reward

    @cached_property
    def unlimited(self) -> PruningTask:
        """Any plan of the network, pruned only."""
        return self.task(example_input=self.reward.one_batch())

    @cached_property
    def merging(self) -> PruningTask:
        """:attr:`unlimited` with Neuron Merging."""
        return replace(self.unlimited, reconstructor=NeuronMerging())

    def share_of_channels(self, ratio: float) -> list[int]:
        """Widths [L] of int(N * ratio) of each group's N channels, as Neuron Merging's authors count."""
        return [max(1, int(n * ratio)) for n in self.unlimited.dense_widths]

    def _accuracy(self, widths: tuple[int, ...] | None, method: str) -> float:
        """Top-1 in percent at uniform ``widths`` [L] (None: dense), with Neuron Merging if ``method`` is 'merging'."""
        if widths is None:
            return 100 * self.reward(self.model)
        task = self.merging if method == 'merging' else self.unlimited
        return 100 * task.evaluate(self.unlimited.plan(widths), self.reward)

    def shares(self, widths: tuple[int, ...]) -> dict[str, float]:
        """Preserved shares of parameters and FLOPs."""
        costs = self.unlimited.costs
        return dict(
            params_ratio=costs.params['module'].ratio(widths), ours_flops_ratio=costs.flops['module'].ratio(widths)
        )

    def milliseconds(self, plan: PruningPlan, repeat: int = 30) -> float:
        """Median time of one image through the pruned network."""
        inputs = self.reward.one_batch()['inputs']
        call = dict(network=lambda: self.unlimited.module(inputs))
        with self.unlimited.apply(plan):
            return 1000 * median_in_turns(call, repeat)['network']


def locate(name: str, folder: Path | None) -> str:
    """A config's checkpoint, in a folder of checkpoints if there is one.

    Raises:
        AutoDFPError: It is missing.
    """
    if name.startswith('http'):
        inside = folder / Path(name).name if folder else None
        return str(inside) if inside and inside.is_file() else name
    path = folder / Path(name).name if folder else Path(name)
    if not path.is_file():
        raise AutoDFPError(f'no weights: {path.name} is not there')
    return str(path)
