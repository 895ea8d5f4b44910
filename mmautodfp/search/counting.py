"""The costs of a model's plans, counted or measured on the model itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from mmautodfp.costs import (
    Constraint,
    FlopBudget,
    LatencyBudget,
    MemoryBudget,
    ModelCosts,
    ParamBudget,
    measure_latency_costs,
    measure_memory_costs,
    measure_positions,
    model_costs,
)
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.utils import AutoDFPError, in_one_line

from .example import call_model, call_whole
from .ranks import on_every_rank, on_main
from .survey import Survey


def count_costs(
    model: nn.Module,
    survey: Survey,
    reconstructor: Reconstructor,
    example_input: Any,
    limit: Constraint,
    also_measure: Sequence[str],
    channel_divisor: int,
) -> ModelCosts:
    """The costs that the limits and ``also_measure`` name, and the parameters; with an example input the FLOPs too.

    Arguments as of :meth:`.PruningTask.build`. Latency and memory are measured on rank 0, for all ranks.
    """
    kinds = (ParamBudget, FlopBudget, LatencyBudget, MemoryBudget)
    others = set(also_measure) - {budget.metric for budget in limit.budgets}
    # A budget of all of the model limits nothing.
    budgets = [*limit.budgets, *(kind(1.0, 'model') for kind in kinds if kind.metric in others)]
    module, groups = survey.module, survey.groups
    parts = [module.get_submodule(part) for part in survey.parts]
    count = partial(model_costs, model, module, groups, moves_constants=reconstructor.moves_constants, parts=parts)
    if example_input is None:
        for budget in budgets:
            if budget.metric != 'params':
                raise AutoDFPError(
                    f'the {budget.metric} was to be limited or to be an objective, but without an example_input it '
                    'cannot be told; give one, or name the parameters in its place'
                )
        return replace(count(positions={}), flops={})
    run = partial(call_model, model, example_input)
    costs = count(positions=on_every_rank(partial(_measure_positions, model, run)))
    for budget in budgets:
        if isinstance(budget, LatencyBudget):
            whole = partial(call_whole, model, example_input)
            measure = partial(measure_latency_costs, model, module, groups, whole, budget, channel_divisor, parts=parts)
            costs = replace(costs, latency=on_main(measure))
    if any(isinstance(budget, MemoryBudget) for budget in budgets):
        measure = partial(measure_memory_costs, model, module, groups, run, reconstructor.moves_constants, parts)
        costs = replace(costs, memory=on_main(measure))
    return costs


def _measure_positions(model: nn.Module, run: Callable[[], Any]) -> dict[nn.Module, int]:
    try:
        return measure_positions(model, run)
    except AutoDFPError:
        raise
    except Exception as error:  # a model's own code may end with anything
        raise AutoDFPError(
            f'the {type(model).__name__} was to be called with the example_input, which it does not take '
            f'({in_one_line(error)}); give a tuple of arguments, a dict of named ones or a single one, of the type and '
            'on the device of its weights'
        ) from error
