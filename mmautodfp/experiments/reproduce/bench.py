"""One network with its weights and its images, ready to be measured."""

from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device

from mmautodfp.api import PruningTask
from mmautodfp.reconstruction import NeuronMerging, PruneOnly
from mmautodfp.rewards import AccuracyReward
from mmautodfp.runs import find_checkpoint
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import fit_state, read_state
from mmautodfp.utils.registry import MODELS
from mmautodfp.utils.timing import median_in_turns


class NetworkBench:
    """Accuracy, cost and speed of a network under any plan, on a GPU if there is one.

    Args:
        config (Path): Its config, ``configs/classification/*_autodfp.py``.
        checkpoint (str): File or URL of its weights.
        data_root (str | None): Replaces the config's.
        num_images (int | None): Images to measure on, of the test set, as many of each class; None takes all.

    Raises:
        AutoDFPError: The weights or the images are not there, or the weights are of another network.
    """

    def __init__(self, config: Path, checkpoint: str, data_root: str | None, num_images: int | None):
        cfg = Config.fromfile(config)
        if data_root is not None:
            cfg.test_dataloader.dataset.data_root = data_root
        self.model = MODELS.build(cfg.model).to(get_device()).eval()
        self.reward = AccuracyReward(num_images, batch_size=cfg.test_dataloader.batch_size)
        self.reward.prepare(self.model, cfg.test_dataloader)
        source = find_checkpoint(checkpoint, config)
        state = fit_state(read_state(source), self.model, source)
        if further := state.keys() - self.model.state_dict():
            raise AutoDFPError(
                f'checkpoint {source} is of a larger network than the {cfg.model.network.type} of {config}, which has '
                f'no {min(further)}; name the checkpoint that was trained with this config'
            )
        self.model.load_state_dict(state)
        self.accuracy = cache(self._accuracy)

    @cached_property
    def task(self) -> PruningTask:
        """The network without a limit and without a compensation."""
        return self._task(1.0)

    @cached_property
    def merging(self) -> PruningTask:
        """The same with Neuron Merging."""
        return replace(self.task, reconstructor=NeuronMerging())

    def _task(self, ratio: float) -> PruningTask:
        return PruningTask.build(self.model, 'network', self.reward.one_batch(), ratio, PruneOnly(), p_min=0.01)

    def uniform_widths(self, ratio: float, of: str) -> tuple[int, ...]:
        """Widths with one ratio for all units.

        Args:
            ratio (float): The share.
            of (str): 'channels': of each unit's channels, int(N * ratio), as Neuron Merging's authors do; 'params': of
                all parameters, the largest uniform plan within it.
        """
        if of == 'channels':
            return tuple(max(1, int(n * ratio)) for n in self.task.dense_widths)
        return tuple(self._task(ratio).uniform_plan().widths.values())

    def _accuracy(self, widths: tuple[int, ...] | None, method: str) -> float:
        """Top-1 in percent at uniform ``widths`` [L] (None: dense), with Neuron Merging if ``method`` is 'merging'."""
        if widths is None:
            return 100 * self.reward(self.model)
        task = self.merging if method == 'merging' else self.task
        return 100 * task.evaluate(self.task.plan(widths), self.reward)

    def shares(self, widths: tuple[int, ...]) -> dict[str, float]:
        """Preserved shares of parameters and FLOPs."""
        costs = self.task.costs
        return dict(
            params_ratio=costs.params['module'].ratio(widths), ours_flops_ratio=costs.flops['module'].ratio(widths)
        )

    def milliseconds(self, plan: PruningPlan, repeat: int = 30) -> float:
        """Median time of one image through the pruned network."""
        inputs = self.reward.one_batch()['inputs']
        call = dict(network=lambda: self.task.module(inputs))
        with self.task.apply(plan):
            return 1000 * median_in_turns(call, repeat)['network']


def locate(name: str, folder: Path | None) -> str:
    """A checkpoint by the file name that a config gives it, in a folder of checkpoints.

    Raises:
        AutoDFPError: It is not there.
    """
    if name.startswith('http'):
        inside = folder / Path(name).name if folder else None
        return str(inside) if inside and inside.is_file() else name
    path = folder / Path(name).name if folder else Path(name)
    if not path.is_file():
        raise AutoDFPError(f'no weights: {path.name} is not there')
    return str(path)
