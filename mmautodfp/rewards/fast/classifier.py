"""The stand-in of a classifier."""

from collections.abc import Sequence

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from .model import FastModel


class FastClassifier(FastModel):
    """A faster copy of a classifier. Linear layers compute in float32, so that close logits stay different.

    Args:
        model (nn.Module): The dense classifier, whose ``forward`` gives logits [B, classes]; in eval mode.
        precision (str): 'float32', 'bfloat16' or 'float16'. Defaults to 'float32'.
    """

    def __init__(self, model: nn.Module, precision: str = 'float32'):
        super().__init__(model, precision)
        for layer in self._copy.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(_float_inputs)

    def _dtype_of(self, name: str, layer: nn.Module) -> torch.dtype:
        return torch.float32 if isinstance(layer, nn.Linear) else self.dtype

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self._copy(self._lay_out(inputs)).float()

    @torch.inference_mode()
    def disagrees(self, model: nn.Module, inputs: Tensor, data_samples: Sequence = ()) -> str | None:
        """Compare the logits of a batch with the model's, see :meth:`FastModel.disagrees`."""
        expected = model(inputs)
        if not isinstance(expected, Tensor) or expected.ndim != 2:
            return 'the model gives no logits [B, classes]'
        return self._differing(dict(logits=expected), dict(logits=self.predict(inputs)))


def _float_inputs(_: nn.Module, args: tuple) -> tuple:
    return apply_to(args, torch.is_tensor, Tensor.float)
