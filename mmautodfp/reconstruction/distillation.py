"""Distillation without data: training all weights of a pruned module towards the outputs of the dense one."""

from collections.abc import Iterator

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmautodfp.graph import outputs_by_kind
from mmautodfp.surgery import Restore, replace_tensor
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import Positive, TwoOrMore, settings

from .foreground import foreground_of
from .sensitivity import mean_missed

# Lower bound of a tensor's root mean square, which its learning rate is proportional to; a bias may be zero.
LEAST_SCALE = 1e-2


@settings('distillation')
class Distillation:
    """Settings of the distillation.

    Attributes:
        steps (int): Steps of Adam, at least 2. Defaults to 400.
        batch_size (int): Images per step, at least 2; every step has new ones. Defaults to 8.
        learning_rate (float): Peak of a one-cycle schedule, reached after a tenth of the steps (with ten steps or
            fewer, the rate only falls), as a share of each tensor's root mean square, or of 0.01 if that is larger.
            Defaults to 1e-2.
    """

    steps: TwoOrMore = 400
    batch_size: TwoOrMore = 8
    learning_rate: Positive = 1e-2


@torch.enable_grad()
def distill(
    module: nn.Module,
    dense: nn.Module,
    slim: nn.Module,
    batches: Iterator[tuple],
    settings: Distillation,
    restore: Restore,
) -> None:
    """Train all weights of a pruned module so that its outputs come nearer to those of the dense one.

    The weights are trained in ``slim``, whose running statistics stay fixed, so that each channel is scaled as in the
    training of the dense module; ``module`` gets the weights at the end. If the modules are detectors, positions where
    the dense one sees an object count more, as in the full pass.

    Args:
        module (nn.Module): The pruned module; it gets the new weights.
        dense (nn.Module): The dense module with the running statistics of the synthetic images.
        slim (nn.Module): The pruned module with the running statistics of the synthetic images; changed in place.
        batches (Iterator[tuple]): Inputs of the modules, one batch for each step.
        settings (Distillation): The settings.
        restore (Restore): Remembers every layer that is changed.

    Raises:
        AutoDFPError: A weight is neither float32 nor float64, the outputs have no gradient, or the new weights are not
            finite.
    """
    name, logger = type(module).__name__, MMLogger.get_current_instance()
    weights = [weight.requires_grad_() for weight in slim.parameters()]
    _require_precise(weights, name)
    rates = [settings.learning_rate * max(float(weight.square().mean().sqrt()), LEAST_SCALE) for weight in weights]
    optimizer = torch.optim.Adam([dict(params=[one], lr=rate) for one, rate in zip(weights, rates, strict=True)])
    rise = 0.1 if settings.steps > 10 else 0.0  # of ten steps, torch would divide by the length of the rise, 0
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, settings.steps, pct_start=rise)
    every, missed = max(1, settings.steps // 10), []
    for step, inputs in enumerate(batches, 1):
        with torch.no_grad():
            wanted = outputs_by_kind(dense, *inputs)
        error = mean_missed(outputs_by_kind(slim, *inputs), wanted, foreground_of(dense, wanted))
        if not error.requires_grad:
            raise AutoDFPError(
                f'the {name} was to be distilled, but what it says has no gradient; leave out '
                'reconstructor.distillation'
            )
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        cycle.step()
        missed.append(error.item())
        if step % every == 0:
            lately = sum(missed[-every:]) / every
            logger.info(f'distillation: {step} of {settings.steps} steps, {lately:.2%} of the outputs are missed')
    if not all(weight.isfinite().all() for weight in weights):
        raise AutoDFPError(
            f'the {name} was distilled with a learning rate of {settings.learning_rate:g}, but its weights are not '
            'finite after it; lower reconstructor.distillation.learning_rate'
        )
    _install(slim, module, restore)


def _require_precise(weights: list[Tensor], name: str) -> None:
    coarse = next((weight.dtype for weight in weights if weight.dtype not in (torch.float32, torch.float64)), None)
    if coarse is not None:
        raise AutoDFPError(
            f'the {name} was to be distilled, which takes float32, but it has weights of {coarse}; call float() on it '
            'first, or leave out reconstructor.distillation'
        )


def _install(slim: nn.Module, module: nn.Module, restore: Restore) -> None:
    """Copy the weights of ``slim`` into ``module``; parameters that its layers share stay shared."""
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for source, layer in zip(slim.modules(), module.modules(), strict=True):
        for name, weight in source.named_parameters(recurse=False, remove_duplicate=False):
            restore.remember(layer)
            if weight not in shared:
                replace_tensor(layer, name, weight.detach())
                shared[weight] = layer.get_parameter(name)
            layer.register_parameter(name, shared[weight])
