"""A wrapper that makes a classifier usable with MMEngine's Runner."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn, tensor

from mmautodfp.utils.registry import MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A network for classification with its data preprocessor.

    It also loads checkpoints of the bare network, in float32 or half precision, with or without the prefix ``module.``
    of DistributedDataParallel, see :meth:`adapt_state_dict`.

    Args:
        network (dict | nn.Module): The network, from images [B, C, H, W] to logits [B, classes], or its config. It is
            pruned with ``autodfp.target='network'``.
        data_preprocessor (dict | nn.Module | None): See mmengine's ``BaseModel``. Defaults to None.
        init_cfg (dict | None): See mmengine's ``BaseModel``. Defaults to None.
    """

    def __init__(
        self,
        network: dict | nn.Module,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.network = MODELS.build(network) if isinstance(network, dict) else network
        self._register_load_state_dict_pre_hook(self._adapt_names)

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Classify preprocessed images.

        Args:
            inputs (Tensor): [B, C, H, W].
            data_samples (list[BaseDataElement] | None): B samples, for 'loss' with ``gt_label``. Defaults to None, for
                'tensor'.
            mode (str): 'tensor', 'predict' or 'loss'. Defaults to 'tensor'.

        Returns:
            Tensor | list | dict: For 'tensor' the logits [B, classes]; for 'predict' the samples, with ``pred_scores``
            (logits [classes]) and ``pred_label`` added; for 'loss' the mean cross entropy as ``loss``.
        """
        logits = self.network(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            labels = tensor([sample.gt_label for sample in data_samples], device=logits.device)
            return dict(loss=F.cross_entropy(logits, labels))
        labels = logits.argmax(1).tolist()
        for sample, scores, label in zip(data_samples, logits, labels, strict=True):
            sample.set_data(dict(pred_scores=scores, pred_label=label))
        return data_samples

    @staticmethod
    def adapt_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the bare network, or of this class, with the names of this class."""
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        if any(name.startswith('network.') for name in state):
            return state
        return {f'network.{name}': value for name, value in state.items()}

    def _adapt_names(self, state: dict[str, Tensor], prefix: str, *_) -> None:
        if prefix:
            return  # a part of a larger model, whose checkpoint has the right names
        adapted = self.adapt_state_dict(state)
        state.clear()
        state.update(adapted)
