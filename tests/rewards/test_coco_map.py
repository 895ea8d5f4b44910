import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reward_data import coco_annotations

from mmautodfp.rewards.coco_map import CocoTruth
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json

# COCO's mini set has crowds, and images without any annotation.
SETS = ['digits', 'coco']


@pytest.fixture(scope='module', params=SETS)
def content(request) -> dict:
    if request.param == 'coco':
        return load_json(coco_annotations(), 'annotations')
    root = request.getfixturevalue('digits_root')
    full = load_json(root / 'annotations/instances_val.json', 'annotations')
    full['images'] = full['images'][:120]
    ids = {image['id'] for image in full['images']}
    full['annotations'] = [a for a in full['annotations'] if a['image_id'] in ids]
    return full


def reference(content: dict, detections: list[dict], iou_type: str, image_ids, category_ids) -> float:
    """pycocotools on the whole file, told what to look at."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(content)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), iou_type)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def ids(content: dict, kind: str) -> list[int]:
    return [entry['id'] for entry in content[kind]]


def perturbed(content: dict, seed: int = 0, masks: bool = False, shake: float = 0.1) -> list[dict]:
    """Each object up to three times, moved, sometimes of another category; scores of two digits, so that some tie.

    Some images get 150 more detections, and those without an object get three.
    """
    rng = np.random.default_rng(seed)
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    categories = ids(content, 'categories')
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    detections = []

    def detect(image_id, box, category_id, mask=None):
        detection = dict(image_id=image_id, category_id=category_id, score=round(rng.random(), 2))
        if masks:
            detection['segmentation'] = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        detections.append(detection | dict(bbox=[float(side) for side in box]))

    def mask_of(image_id, box):
        mask = np.zeros(sizes[image_id], bool)
        x, y, w, h = (round(side) for side in box)
        mask[y : y + h + 1, x : x + w + 1] = True
        return mask

    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        for _ in range(rng.integers(0, 4)):
            move = rng.normal(0, shake, 2) * (w, h)
            category = annotation['category_id'] if rng.random() < 0.8 else int(rng.choice(categories))
            mask = np.roll(coco.annToMask(annotation), move.round().astype(int)[::-1], (0, 1)) if masks else None
            detect(annotation['image_id'], (x + move[0], y + move[1], w, h), category, mask)
    occupied = {annotation['image_id'] for annotation in content['annotations']}
    for image_id in [*ids(content, 'images')[:3], *(set(sizes) - occupied)]:
        height, width = sizes[image_id]
        for _ in range(150 if image_id in occupied else 3):
            box = (*rng.uniform(0, (width / 2, height / 2)), *rng.uniform(2, (width / 2, height / 2)))
            category = int(rng.choice(categories[:3]))
            detect(image_id, box, category, mask_of(image_id, box) if masks else None)
    rng.shuffle(detections)
    return detections


@pytest.mark.parametrize('shake', [0.03, 0.15])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_map_is_pycocotools(content, iou_type, shake):
    images, categories = ids(content, 'images'), ids(content, 'categories')
    detections = perturbed(content, masks=iou_type == 'segm', shake=shake)
    value = CocoTruth(content, images, categories).mean_ap(detections, iou_type)
    assert 0.02 < value < 0.9
    assert value == pytest.approx(reference(content, detections, iou_type, images, categories), abs=1e-9)


def test_the_perturbed_truth_has_what_is_hard(content):
    detections = perturbed(content)
    per_image = {image: sum(d['image_id'] == image for d in detections) for image in ids(content, 'images')}
    assert max(per_image.values()) > 100
    scores = [d['score'] for d in detections]
    assert len(set(scores)) < len(scores) / 2
    if len(content['categories']) == 80:
        assert any(a['iscrowd'] for a in content['annotations'])
        occupied = {a['image_id'] for a in content['annotations']}
        assert any(count and image not in occupied for image, count in per_image.items())


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_map_of_some_images_and_categories_is_pycocotools_on_them(content, iou_type):
    images, categories = ids(content, 'images')[10:60], ids(content, 'categories')[::2]
    chosen = set(images)
    detections = [d for d in perturbed(content, 1, iou_type == 'segm') if d['image_id'] in chosen]
    truth = CocoTruth(content, images[::-1], categories)
    values = []
    for some in (None, images[:20], images[::3], images[:20]):
        values.append(truth.mean_ap(detections, iou_type, some))
        expected = reference(content, detections, iou_type, some or images, categories)
        assert values[-1] == pytest.approx(expected, abs=1e-9)
    assert len(set(values)) == 3  # and nothing is left of an evaluation in the next one
    assert values[1] == values[3]


def test_neither_the_truth_nor_the_detections_are_written_to(content):
    before, detections = copy.deepcopy(content), perturbed(content, 2)
    told = copy.deepcopy(detections)
    CocoTruth(content, ids(content, 'images'), ids(content, 'categories')).mean_ap(detections)
    assert content == before
    assert detections == told


def test_nothing_detected_is_worth_nothing_and_all_of_it_everything(content, capsys):
    truth = CocoTruth(content, ids(content, 'images'), ids(content, 'categories'))
    assert truth.mean_ap([]) == truth.mean_ap([], 'segm') == 0
    sound = [a for a in content['annotations'] if not a.get('iscrowd')]
    perfect = [{key: a[key] for key in ('image_id', 'category_id', 'bbox')} | dict(score=0.5) for a in sound]
    assert truth.mean_ap(perfect) == pytest.approx(1)
    assert capsys.readouterr().out == ''


def test_without_objects_there_is_no_map(content):
    images, categories = ids(content, 'images'), ids(content, 'categories')
    assert CocoTruth(content, images, categories).has_objects
    crowds = content | dict(annotations=[a | dict(iscrowd=1) for a in content['annotations']])
    for bare in (content | dict(annotations=[]), crowds):
        truth = CocoTruth(bare, images, categories)
        assert not truth.has_objects
        for detections in ([], perturbed(content)):
            with pytest.raises(AutoDFPError, match='no object of the classes is annotated'):
                truth.mean_ap(detections)
