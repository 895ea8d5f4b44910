"""What a search must know of the loaded model before it begins: units, costs, what the agent sees of each layer."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.kernels import rank_channels
from mmautodfp.rewards import Reward
from mmautodfp.search import LayerState, layer_state
from mmautodfp.surgery import (
    LatencyBudget,
    LatencyCost,
    ModelCosts,
    PrunableUnit,
    measure_latency_costs,
    measure_positions,
    model_costs,
    survey_units,
    unit_statistics,
)


def survey(target: nn.Module, path: str, logger: MMLogger) -> list[PrunableUnit]:
    """The prunable units of a module; the log tells what is left alone.

    Args:
        target (nn.Module): The module.
        path (str): Its path in the model, for the log.
        logger (MMLogger): The run's.

    Raises:
        AutoDFPError: There is none.
    """
    found = survey_units(target)
    name = f'{type(target).__name__} {path!r}'
    if not found.units:
        reasons = '; '.join(found.describe_left()) or 'no convolution and no linear layer'
        raise AutoDFPError(f'there is nothing to prune in the {name}, which has {reasons}')
    logger.info(f'{len(found.units)} prunable units in the {name}; left alone:')
    for line in found.describe_left():
        logger.info(f'  {line}')
    return found.units


@torch.no_grad()
def count_costs(
    model: nn.Module, target: nn.Module, units: Sequence[PrunableUnit], batch: dict[str, Any]
) -> ModelCosts:
    """Parameters and FLOPs of a model and its part as functions of the units' widths.

    Args:
        model (nn.Module): The whole model.
        target (nn.Module): The part that is pruned.
        units (Sequence[PrunableUnit]): Its units, L of them.
        batch (dict): One input of the model, as the reward gives it.
    """
    return model_costs(model, target, units, measure_positions(model, lambda: model(**batch, mode='tensor')))


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    target: nn.Module,
    units: Sequence[PrunableUnit],
    reward: Reward,
    budget: LatencyBudget,
    channel_divisor: int,
) -> dict[str, LatencyCost]:
    """Latency of the same by scope, on one of the reward's inputs; measured here or taken from the cache."""
    batch = reward.one_batch()
    return measure_latency_costs(model, target, units, lambda: model(**batch, mode='tensor'), budget, channel_divisor)


def look_at_layers(
    target: nn.Module, units: Sequence[PrunableUnit], bias_threshold: float, clustering: dict[str, Any]
) -> tuple[list[LayerState], list[Tensor]]:
    """What the agent sees of each unit, and each unit's channels by their l2 norm.

    Args:
        target (nn.Module): The module that is pruned.
        units (Sequence[PrunableUnit]): Its units, L of them.
        bias_threshold (float): t of Eq. 17.
        clustering (dict): DBSCAN's settings; may be empty.

    Returns:
        tuple[list[LayerState], list[Tensor]]: [L] states, and [L] rankings of [N] channels, the strongest first.
    """
    statistics = [unit_statistics(target, unit) for unit in units]
    states = [
        layer_state(index, weight, bn, threshold=bias_threshold, **clustering)
        for index, (weight, bn) in enumerate(statistics)
    ]
    return states, [rank_channels(weight).cpu() for weight, _ in statistics]
