"""A classifier as MMEngine's Runner takes it."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn, tensor

from mmautodfp.utils.registry import MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A network with the data preprocessor that its images need.

    Checkpoints of the bare network load as they are, with or without DistributedDataParallel's ``module.`` and in half
    precision too: :meth:`adapt_state_dict` puts their names right.

    Args:
        network (dict | nn.Module): From images [B, C, H, W] to logits [B, classes], or its config. It is what is
            pruned: ``autodfp.target='network'``.
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
            data_samples (list[BaseDataElement] | None): B of them, with ``gt_label``; needed but for 'tensor'.
            mode (str): 'tensor', 'predict' or 'loss'. Defaults to 'tensor'.

        Returns:
            Tensor | list | dict: Logits [B, classes]; or the samples with ``pred_scores`` (logits [classes]) and
            ``pred_label``; or the cross entropy.
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
        """The weights under this class's names, whether they are a bare network's or a classifier's."""
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        if any(name.startswith('network.') for name in state):
            return state
        return {f'network.{name}': value for name, value in state.items()}

    def _adapt_names(self, state: dict[str, Tensor], prefix: str, *_) -> None:
        if prefix:
            return  # part of a larger model, whose checkpoint holds these names
        adapted = self.adapt_state_dict(state)
        state.clear()
        state.update(adapted)
