"""COCO mAP on a validation subset, as a reward."""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from pycocotools.mask import encode
from torch import nn

from mmautodfp.rewards.fast.detector import FastDetector
from mmautodfp.rewards.fast.model import choose_precision, in_threads
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import REWARDS
from mmautodfp.utils.settings import Count, NotNegative, checked

from .base import Precision, Reward, Stages, kept_for_report, stage_ends
from .coco_map import CocoTruth, read_annotations
from .subset import ImageBatches, build_dataset, choose_covering

IOU_TYPES = {'bbox': ['bbox'], 'segm': ['segm'], 'mean': ['bbox', 'segm']}


@REWARDS.register_module()
class CocoReward(Reward):
    """Box or mask mAP (IoU 0.50:0.95) of a detector on some images of a COCO-format data set.

    It is the raw ``COCOeval.stats[0]``; mmdet's ``CocoMetric`` rounds it to three decimals. No detections at all are
    worth 0.

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 500.
        seed (int): Seed of the choice. Defaults to 0.
        metric (str): 'bbox', 'segm' or 'mean', the mean of the two. Defaults to 'bbox'.
        batch_size (int | None): Images evaluated at once. Defaults to None, the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device, see :class:`ImageBatches`.
            Defaults to 4.
        stages (Sequence[float]): Shares of the images, ascending and below 1, after which a race may stop a plan.
            Defaults to (0.25, 0.5).
        precision (str): 'float32', 'bfloat16', 'float16', or 'auto', the one of these that the device is fastest in.
            Held-out figures are always float32. Defaults to 'float32'.
        fast (bool): Evaluate a stand-in with norms folded, channels last and batched post-processing, which gives the
            same detections sooner. Defaults to True.

    Attributes:
        truth (CocoTruth): What is annotated on the images, once prepared.
        detector (FastDetector | None): The stand-in, once prepared; None if the model itself is evaluated.

    Raises:
        AutoDFPError: An argument is of another type or out of its range.
    """

    @checked('CocoReward')
    def __init__(
        self,
        num_images: Count | None = 500,
        seed: int = 0,
        metric: Literal['bbox', 'segm', 'mean'] = 'bbox',
        batch_size: Count | None = None,
        cache_gb: NotNegative = 4.0,
        stages: Stages = (0.25, 0.5),
        precision: Precision = 'float32',
        fast: bool = True,
    ):
        self.num_images = num_images
        self.seed = seed
        self.metric = metric
        self.name = f'{metric}_mAP'
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self.shares = (*stages, 1)
        self.precision = precision
        self.fast = fast

    def prepare(self, model: nn.Module, dataloader: dict, units: Sequence[str] = ()) -> None:
        self._prepare(model, dataloader, units, excluded=set())

    def _prepare(self, model: nn.Module, dataloader: dict, units: Sequence[str], excluded: set[str]) -> None:
        self._dataset = build_dataset(dataloader['dataset'])
        self._preprocess = model.data_preprocessor
        paths = _paths_of(self._dataset)
        infos = {i: self._dataset.get_data_info(i) for i, path in enumerate(paths) if path not in excluded}
        labels = {  # of crowds there is no AP
            index: {box['bbox_label'] for box in info['instances'] if not box.get('ignore_flag')}
            for index, info in infos.items()
        }
        self.indices = choose_covering(labels, self.num_images, self.seed)
        self._paths = [paths[index] for index in self.indices]
        self._taken = set(self._paths)
        self._image_ids = [infos[index]['img_id'] for index in self.indices]
        self.truth = CocoTruth(read_annotations(self._dataset.ann_file), self._image_ids, self._dataset.cat_ids)
        self._batch_size = self.batch_size or dataloader.get('batch_size', 1)
        self._ends = stage_ends(self.shares, len(self.indices))
        stages = [self.indices[start:end] for start, end in pairwise([0, *self._ends])]
        self._batches = ImageBatches(self._dataset, self._preprocess, stages, self._batch_size, self.cache_gb)
        self.detector: FastDetector | None = None
        if self.fast and self.indices:
            self._speed_up(model, units)
        if self.detector is None:
            self.precision = 'float32'

    @torch.no_grad()
    def _speed_up(self, model: nn.Module, units: Sequence[str]) -> None:
        """Set up the stand-in, if it answers as the model does, and run the stem once and for all."""
        self.precision = choose_precision(self.precision, next(model.parameters(), torch.empty(0)).device)
        batch = self._batches[0]
        self.detector = FastDetector.instead_of(model, self.precision, batch['inputs'], batch['data_samples'])
        if self.detector is None or not self._batches.all_preprocessed:
            return
        stem = self.detector.split_stem(batch['inputs'], units)
        if stem:
            for data in self._batches.cache:
                data['inputs'] = self.detector.run_stem(data['inputs'], stem)
            self.detector.drop_stem(stem)

    @property
    def images(self) -> list[str]:
        return self._paths

    @property
    def stages(self) -> list[int]:
        return self._ends

    @property
    def identity(self) -> str:
        return f'{self.name}, {self.precision}, stages {self.shares}'

    @property
    def annotation_file(self) -> str:
        """The data set's COCO file."""
        return self._dataset.ann_file

    def judge(self, model: nn.Module, dataloader: dict, reported: dict | None = None) -> 'CocoReward | None':
        left = set(_paths_of(build_dataset(dataloader['dataset']))) - set(self._paths)
        kept = kept_for_report(left, _paths_of(build_dataset(reported['dataset']))) if reported else set()
        other = self._beside(model, dataloader, len(self.indices), excluded=kept.union(self._paths))
        self._taken = set(self._paths).union(other._paths if other else ())
        return other

    def held_out(self, model: nn.Module, dataloader: dict) -> 'CocoReward | None':
        return self._beside(model, dataloader, None, excluded=self._taken)

    def _beside(
        self, model: nn.Module, dataloader: dict, num_images: int | None, excluded: set[str]
    ) -> 'CocoReward | None':
        """The same metric in float32 on images that are not excluded; None if none of them is annotated."""
        fast = self.detector is not None  # why not has been said
        other = CocoReward(num_images, self.seed, self.metric, self._batch_size, cache_gb=0, stages=(), fast=fast)
        other._prepare(model, dataloader, (), excluded)
        if not other.indices or not other.truth.has_objects:
            return None
        other.one_batch()  # an image that is missing is better missed now than after the search
        return other

    def one_batch(self) -> dict[str, Any]:
        chunk = self._batches.chunks[len(self._batches) // 2]  # by aspect ratio: neither the narrowest nor the widest
        return self._preprocess(pseudo_collate([self._batches.load(chunk[len(chunk) // 2])]), False)

    def __call__(self, model: nn.Module) -> float:
        return self.score(self.detect(model))

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        detections: list[dict] = []
        for number, end in enumerate(self._ends):
            detections += self.detect(model, number)
            yield self.score(detections, self._image_ids[:end])

    def detect(self, model: nn.Module, stage: int | None = None) -> list[dict]:
        """Run a model on the images; detections in COCO's result format.

        Args:
            model (nn.Module): The detector, in eval mode.
            stage (int | None): Run it on the images that this stage adds. Defaults to None: on all.
        """
        numbers = range(len(self._batches)) if stage is None else self._batches.stages[stage]
        if self.detector is not None:
            self.detector.update(model)
            predict = self.detector.predict
        else:
            predict = torch.no_grad()(lambda **data: model(**data, mode='predict'))
        device = next(model.parameters(), torch.empty(0)).device

        def run(number: int) -> list[dict]:
            samples = predict(**self._batches[number])
            return [detection for sample in samples for detection in self._to_coco(sample)]

        found = in_threads(run, numbers, device)
        return [detection for batch in found for detection in batch]

    def score(self, detections: list[dict], image_ids: Sequence[int] | None = None) -> float:
        """The metric of detections that :meth:`detect` gave, on all images or on those named."""
        values = [self.truth.mean_ap(detections, iou_type, image_ids) for iou_type in IOU_TYPES[self.metric]]
        return sum(values) / len(values)

    def _to_coco(self, sample: DetDataSample) -> Iterator[dict]:
        found = sample.pred_instances
        del sample.pred_instances  # the samples are used again
        masks = self._encode_masks(found) if 'segm' in IOU_TYPES[self.metric] else [{}] * len(found)
        boxes = found.bboxes.cpu().numpy().astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = found.scores.tolist(), found.labels.tolist()
        for box, score, label, mask in zip(boxes.tolist(), scores, labels, masks, strict=True):
            category = self._dataset.cat_ids[label]
            yield dict(image_id=sample.img_id, bbox=box, score=score, category_id=category) | mask

    @staticmethod
    def _encode_masks(found) -> list[dict]:
        if 'masks' not in found:
            raise AutoDFPError("mask mAP was asked for, but the detector predicts no masks; use metric='bbox'")
        if not len(found):
            return []
        masks = found.masks.cpu().numpy().astype(np.uint8)
        return [dict(segmentation=code) for code in encode(np.asfortranarray(masks.transpose(1, 2, 0)))]


def _paths_of(dataset) -> list[str]:
    """Where the images of a data set lie; the same image has the same path, however it is named."""
    return [os.path.realpath(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
