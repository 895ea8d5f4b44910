"""A reward may look at a model, but neither change it nor leave it in another mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mmautodfp.utils import AutoDFPError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode before and after the block that rewards it, and check that it was not changed.

    Raises:
        AutoDFPError: A weight is not what it was, or a norm was trained.
    """
    model.eval()
    before = _versions(model)
    try:
        yield
    finally:
        model.eval()  # the next plan is compensated in this mode, whatever the reward left
    after = _versions(model)
    changed = next((name for name, version in before.items() if after.get(name) != version), None)
    if changed is not None:
        raise AutoDFPError(
            f'the reward changed {changed} of the {type(model).__name__}, which it is to look at alone; let it work on '
            'a copy (copy.deepcopy(model)), and load the weights anew, for the dense ones may have changed too'
        )


def _versions(model: nn.Module) -> dict[str, tuple]:
    """By name, what differs once a weight is changed or a norm trained."""
    # Training a norm raises the version of its batch counter, but not that of its statistics.
    counts = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith('num_batches_tracked'))
    return {
        name: (id(tensor), None if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
        for name, tensor in (*model.named_parameters(), *counts)
    }
