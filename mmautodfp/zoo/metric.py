"""Top-1 accuracy, for the Runner's evaluators."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from mmautodfp.utils.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of images whose true label has the highest score, in [0, 1], reported as ``accuracy/top1``."""

    default_prefix = 'accuracy'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Add, for each image, whether the true label has the highest score, or is the first of several that do."""
        self.results += [int(sample['pred_scores'].argmax()) == sample['gt_label'] for sample in data_samples]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        """The share of correct results, as ``top1``."""
        return dict(top1=sum(results) / len(results))
