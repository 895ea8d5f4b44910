"""Top-k accuracy, for the Runner's evaluators."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of the images whose label is among the k highest scores, in [0, 1].

    Args:
        topk (Sequence[int]): Each makes a figure, ``accuracy/top<k>``. Defaults to (1,).
        collect_device (str): See mmengine's ``BaseMetric``. Defaults to 'cpu'.

    Raises:
        AutoDFPError: A k is below 1.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1,), collect_device: str = 'cpu'):
        super().__init__(collect_device)
        self.topk = tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise AutoDFPError(f'Accuracy was asked for topk={topk}; each must be 1 or more')

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the place of the true label among the scores: 0 is the first."""
        for sample in data_samples:
            ranking = sample['pred_scores'].argsort(descending=True, stable=True).tolist()
            self.results.append(ranking.index(sample['gt_label']))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Shares of places below each k."""
        return {f'top{k}': sum(place < k for place in results) / len(results) for k in self.topk}
