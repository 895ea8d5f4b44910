"""A detector pruned as a whole at several shares of its FLOPs; ``tools/ablation.py --whole`` runs it."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from mmautodfp.api import PruningTask
from mmautodfp.costs import FlopBudget
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, Reconstructor
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.timing import describe_machine

from .ablation import Bench


def run_whole(
    config: str | os.PathLike,
    shares: Sequence[float] = (0.7, 0.5, 0.35),
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Prune a detector to shares of its FLOPs, without a search, and evaluate it on all images of its test loader.

    Args:
        config (str | os.PathLike): Config whose ``autodfp`` entry has ``target='model'`` and our reconstructor.
        shares (Sequence[float]): Of the whole model's FLOPs. Defaults to 0.7, 0.5 and 0.35.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        tell (Callable): Told each row as it is measured. Defaults to print.

    Returns:
        dict[str, Any]: ``rows`` by share and means: metric, and shares of FLOPs and parameters that are left. Where the
        backbone alone cannot reach a share, its row holds the least that it can.
    """
    bench = Bench(config, checkpoint, cfg_options=cfg_options)
    ours = bench.reconstructor(dict(bench.settings.reconstructor))
    example = dict(bench.reward.one_batch(), mode='tensor')
    dense = bench.reward(bench.model)
    tell(f'dense {dense:.4f}')

    def build(share: float, target: str, reconstructor: Reconstructor) -> PruningTask:
        limit = FlopBudget(share, scope='model')
        return PruningTask.build(bench.model, target, example, limit, reconstructor, p_min=bench.settings.p_min)

    rows: dict[str, dict[str, Any]] = {}
    for share in shares:
        task = build(share, 'model', ours)
        uniform, published = task.uniform_plan(), task.uniform_plan(rankings=task.l2_rankings)
        plans = {
            'pruned only, uniform': (PruneOnly(), published, True),
            'Neuron Merging, uniform': (NeuronMerging(), published, True),
            'ours, uniform': (ours, uniform, True),
            'ours, allocated, as in an episode': (ours, task.allocated_plan(), False),
            'ours, allocated': (ours, task.allocated_plan(), True),
        }
        rows[f'{share:g}'] = {}
        for name, (reconstructor, plan, final) in plans.items():
            task.reconstructor = reconstructor
            with task.apply(plan, final):
                metric = bench.reward(bench.model)
            counts = task.summary(plan)
            rows[f'{share:g}'][name] = dict(
                metric=metric, flops=counts['model_flops']['ratio'], params=counts['model_params']['ratio']
            )
            tell(f'{share:g} {name}: {metric:.4f}')
        try:
            backbone = build(share, 'backbone', dict(bench.settings.reconstructor))
        except AutoDFPError as error:
            rows[f'{share:g}']['ours, backbone alone'] = dict(unreachable=str(error))
            continue
        plan = backbone.allocated_plan()
        with backbone.apply(plan, final=True):
            metric = bench.reward(bench.model)
        counts = backbone.summary(plan)
        rows[f'{share:g}']['ours, backbone alone'] = dict(
            metric=metric, flops=counts['model_flops']['ratio'], params=counts['model_params']['ratio']
        )
        tell(f'{share:g} backbone alone: {metric:.4f}')
    return dict(
        config=str(config),
        checkpoint=bench.checkpoint,
        metric=bench.reward.name,
        images=len(bench.reward.images),
        reconstructor=bench.settings.reconstructor,
        dense=dense,
        rows=rows,
        machine=describe_machine(),
    )
