"""COCO mAP without rounding, computed with faster-coco-eval."""

from collections.abc import Iterable, Sequence

from faster_coco_eval import COCO, COCOeval_faster

from mmautodfp.utils import AutoDFPError


class CocoTruth:
    """Ground truth of some images and categories of a COCO-format data set, which is indexed once.

    Args:
        content (dict): Content of the annotation file.
        image_ids (Iterable[int]): The images to evaluate on.
        category_ids (Iterable[int]): The categories to evaluate on.

    Attributes:
        content (dict): The part of ``content`` that belongs to these images and categories.
    """

    def __init__(self, content: dict, image_ids: Iterable[int], category_ids: Iterable[int]):
        self.image_ids = sorted(image_ids)
        self.category_ids = sorted(category_ids)
        images, categories = set(self.image_ids), set(self.category_ids)
        annotations = [
            dict(annotation)  # a copy: the evaluation changes it
            for annotation in content.get('annotations', [])
            if annotation['image_id'] in images and annotation['category_id'] in categories
        ]
        self.content = dict(
            images=[image for image in content['images'] if image['id'] in images],
            categories=[category for category in content['categories'] if category['id'] in categories],
            annotations=annotations,
        )
        self._coco = COCO()
        self._coco.dataset = self.content
        self._coco.createIndex()
        self._coco.print_function = _silent

    @property
    def has_objects(self) -> bool:
        """Whether there is an object that is no crowd; otherwise there is no mAP."""
        return any(not annotation.get('iscrowd') for annotation in self.content['annotations'])

    def mean_ap(
        self, detections: Iterable[dict], iou_type: str = 'bbox', image_ids: Sequence[int] | None = None
    ) -> float:
        """mAP over IoU 0.50:0.95 for objects of all sizes, with up to 100 detections per image: ``COCOeval.stats[0]``.

        Args:
            detections (Iterable[dict]): Detections in COCO's result format.
            iou_type (str): 'bbox' or 'segm'. Defaults to 'bbox'.
            image_ids (Sequence[int] | None): Evaluate on these images only. Defaults to None: on all.

        Returns:
            float: In [0, 1]; 0 if there are no detections.

        Raises:
            AutoDFPError: There is no object of these categories on these images, and so no mAP.
        """
        found = self._coco.loadRes([dict(detection) for detection in detections])  # it changes them
        evaluation = COCOeval_faster(self._coco, found, iou_type, print_function=_silent)
        parameters = evaluation.params
        parameters.imgIds = self.image_ids if image_ids is None else sorted(image_ids)
        parameters.catIds = self.category_ids
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]  # 'all'
        parameters.maxDets = parameters.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval['precision']
        counted = precision[precision > -1]
        if not counted.size:
            raise AutoDFPError(
                'no object of the classes is annotated on the images of the reward, so that there is no mAP; '
                "check that the data set's metainfo names the categories of its annotation file"
            )
        return float(counted.mean())


def _silent(*_, **__) -> None:
    pass
