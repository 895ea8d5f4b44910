"""COCO mAP on a validation subset, as a reward."""

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from mmdet.structures import DetDataSample
from pycocotools.mask import encode
from torch import nn

from mmautodfp.rewards.fast.detector import FastDetector
from mmautodfp.rewards.fast.model import in_threads
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import REWARDS
from mmautodfp.utils.settings import Count, NotNegative, Whole, checked

from .coco_map import CocoTruth
from .dataset import DatasetReward, Precision, Stages
from .subset import ImageBatches, build_dataset, choose_covering

IOU_TYPES = {'bbox': ['bbox'], 'segm': ['segm'], 'mean': ['bbox', 'segm']}


@REWARDS.register_module()
class CocoReward(DatasetReward):
    """Box or mask mAP (IoU 0.50:0.95) of a detector on some images of a COCO-format data set.

    It is ``COCOeval.stats[0]``, which mmdet's ``CocoMetric`` rounds to three decimals. Without any detections it is 0.

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 500.
        seed (int): Seed of the choice, 0 or more. Defaults to 0.
        metric (str): 'bbox', 'segm' or 'mean', the mean of the two. Defaults to 'bbox'.
        batch_size (int | None): Images in a batch. Defaults to None: the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device, see :class:`ImageBatches`.
            Defaults to 4.
        stages (Sequence[float]): Shares of the images, ascending and below 1, after which a race may stop a plan.
            Defaults to (0.25, 0.5).
        precision (str): 'float32', 'bfloat16', 'float16', or 'auto' for the fastest of these on the device. It needs
            ``fast``. Held-out figures are always float32. Defaults to 'float32'.
        fast (bool): Evaluate a copy of the model, with folded norms, channels last and batched post-processing, which
            gives the same detections faster. Defaults to True.

    Attributes:
        truth (CocoTruth): Annotations of the images, set by :meth:`prepare`.
        stand_in (FastDetector | None): That copy, set by :meth:`prepare`; None if the model itself is evaluated.

    Raises:
        AutoDFPError: An argument is of another type or out of its range.
    """

    batches_type = ImageBatches
    stand_in_type = FastDetector

    @checked('CocoReward')
    def __init__(
        self,
        num_images: Count | None = 500,
        seed: Whole = 0,
        metric: Literal['bbox', 'segm', 'mean'] = 'bbox',
        batch_size: Count | None = None,
        cache_gb: NotNegative = 4.0,
        stages: Stages = (0.25, 0.5),
        precision: Precision = 'float32',
        fast: bool = True,
    ):
        super().__init__(num_images, seed, batch_size, cache_gb, stages, precision, fast)
        self.metric = metric
        self.name = f'{metric}_mAP'

    def prepare(self, model: nn.Module, dataloader: dict, layers: Sequence[str] = ()) -> None:
        super().prepare(model, dataloader, layers)
        if self.stand_in is None:
            self._require_answers(model)
        if self.stand_in is None or not self._batches.all_preprocessed:
            return
        # The stem is the same in all plans: run it once, and cache its outputs in place of the images.
        inputs = self._batches[0]['inputs']
        stem = self.stand_in.split_stem(inputs, layers)
        cache = self._batches.cache
        grown = self.stand_in.run_stem(inputs, stem).nbytes / inputs.nbytes
        if stem and grown * sum(data['inputs'].nbytes for data in cache) <= self.cache_gb * 1e9:
            for data in cache:
                data['inputs'] = self.stand_in.run_stem(data['inputs'], stem)
            self.stand_in.drop_stem(stem)

    @torch.no_grad()
    def _require_answers(self, model: nn.Module) -> None:
        batch = copy.deepcopy(self._batches[0])  # predictions would stay in the samples
        try:
            model(**batch, mode='predict')
        except Exception as error:  # a model's own code may raise anything
            raise AutoDFPError(
                f'the {type(model).__name__} was to look at images of val_dataloader before anything is pruned, but '
                f"fails on them ({in_one_line(error)}); see that MMDetection's tools/test.py runs with this config"
            ) from error

    def _open(self, config: dict) -> tuple[Any, list[str]]:
        dataset = build_dataset(config)
        # Without links, so that an image has the same path in every data set.
        paths = [os.path.realpath(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
        return dataset, paths

    def _choose(self, indices: Sequence[int]) -> list[int]:
        infos = {index: self._dataset.get_data_info(index) for index in indices}
        labels = {  # crowds do not count for the AP
            index: {box['bbox_label'] for box in info['instances'] if not box.get('ignore_flag')}
            for index, info in infos.items()
        }
        chosen = choose_covering(labels, self.num_images, self.seed)
        self._image_ids = [infos[index]['img_id'] for index in chosen]
        content = load_json(self.annotation_file, 'the annotations')
        self._require_categories([category['name'] for category in content['categories']])
        self.truth = CocoTruth(content, self._image_ids, self._dataset.cat_ids)
        return chosen

    def _require_categories(self, names: Sequence[str]) -> None:
        classes = self._dataset.metainfo['classes']
        if len(self._dataset.cat_ids) < len(classes):
            raise AutoDFPError(
                f'the data set names the classes {", ".join(classes)}, but {self.annotation_file} has the categories '
                f'{", ".join(names)}; let metainfo name these'
            )

    @property
    def _has_truth(self) -> bool:
        return self.truth.has_objects

    @property
    def annotation_file(self) -> str:
        """Path of the data set's annotation file."""
        return self._dataset.ann_file

    def __call__(self, model: nn.Module) -> float:
        return self.score(self.detect(model))

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        detections: list[dict] = []
        for number, end in enumerate(self._ends):
            detections += self.detect(model, number)
            yield self.score(detections, self._image_ids[:end])

    def detect(self, model: nn.Module, stage: int | None = None) -> list[dict]:
        """Run a model on the images.

        Args:
            model (nn.Module): The detector, in eval mode.
            stage (int | None): Index of a stage, to run it on the images that this one adds. Defaults to None: on all.

        Returns:
            list[dict]: Detections in COCO's result format.
        """
        numbers = range(len(self._batches)) if stage is None else self._batches.stages[stage]
        load = self._batches.__getitem__
        predict = torch.no_grad()(lambda **data: model(**data, mode='predict'))
        if self.stand_in is not None and self.stand_in.lacks_stem_of(model):
            load = self._batches.read  # the cache holds what another stem made of the images
        elif self.stand_in is not None:
            self.stand_in.update(model)
            predict = self.stand_in.predict

        def run(number: int) -> list[dict]:
            samples = predict(**load(number))
            return [detection for sample in samples for detection in self._to_coco(sample)]

        found = in_threads(run, numbers, self._device)
        return [detection for batch in found for detection in batch]

    def score(self, detections: list[dict], image_ids: Sequence[int] | None = None) -> float:
        """The metric of detections from :meth:`detect`, on some images. Defaults to None: on all."""
        values = [self.truth.mean_ap(detections, iou_type, image_ids) for iou_type in IOU_TYPES[self.metric]]
        return sum(values) / len(values)

    def _to_coco(self, sample: DetDataSample) -> Iterator[dict]:
        found = sample.pred_instances
        del sample.pred_instances  # the cached samples are used again
        masks = self._encode_masks(found) if 'segm' in IOU_TYPES[self.metric] else [{}] * len(found)
        boxes = found.bboxes.cpu().numpy().astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = found.scores.tolist(), found.labels.tolist()
        categories = self._dataset.cat_ids
        if max(labels, default=0) >= len(categories):
            raise AutoDFPError(
                f'the detector tells apart {max(labels) + 1} classes or more, but its data set has {len(categories)}; '
                "let num_classes of its head and the data set's metainfo agree"
            )
        for box, score, label, mask in zip(boxes.tolist(), scores, labels, masks, strict=True):
            yield dict(image_id=sample.img_id, bbox=box, score=score, category_id=categories[label]) | mask

    @staticmethod
    def _encode_masks(found) -> list[dict]:
        if 'masks' not in found:
            raise AutoDFPError("mask mAP was asked for, but the detector predicts no masks; use metric='bbox'")
        if not len(found):
            return []
        masks = found.masks.cpu().numpy().astype(np.uint8)
        return [dict(segmentation=code) for code in encode(np.asfortranarray(masks.transpose(1, 2, 0)))]
