import copy
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import REPO, SHARED
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import nn

from mmautodfp import AutoDFPError
from mmautodfp.fileio import load_json, save_json
from mmautodfp.rewards import CocoReward, choose_covering

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]


def digits_loader(root, split='val') -> dict:
    cfg = Config.fromfile(REPO / 'configs/_base_/digits_detection.py')
    loader = copy.deepcopy(cfg[f'{split}_dataloader'])
    loader.dataset.data_root = str(root)
    return loader


def coco_loader() -> dict:
    root = SHARED / 'data' / 'coco'
    if not root.is_dir():
        pytest.skip(f'{root} with real COCO images is not there')
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_val2017_mini.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=PIPELINE,
    )
    return dict(batch_size=4, dataset=dataset)


class Preprocessor(nn.Module):
    def forward(self, batch, training):
        self.calls = getattr(self, 'calls', 0) + 1
        inputs = [image.float() for image in batch['inputs']]
        if len({image.shape for image in inputs}) == 1:
            inputs = torch.stack(inputs)
        return dict(inputs=inputs, data_samples=batch['data_samples'])


class Oracle(nn.Module):
    """Predicts the ground truth, shaken: boxes moved, some classes wrong, some missed, some invented."""

    def __init__(self, ann_file, seed=0, shake=0.15, silent=False, masks=False):
        super().__init__()
        self.data_preprocessor = Preprocessor()
        self.silent = silent
        self.truth = COCO(str(ann_file)) if masks else None
        content = load_json(ann_file, 'annotations')
        categories = sorted(category['id'] for category in content['categories'])
        rng = np.random.default_rng(seed)
        self.found = defaultdict(list)
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            x, y = x + rng.normal(0, shake * w), y + rng.normal(0, shake * h)
            label = categories.index(annotation['category_id'])
            if rng.random() < 0.2:
                label = int(rng.integers(len(categories)))
            if rng.random() < 0.9:
                move = rng.normal(0, shake * np.sqrt(w * h) / 2, 2).round().astype(int)
                self.found[annotation['image_id']].append(([x, y, x + w, y + h], rng.random(), label, annotation, move))

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict'
        for sample in data_samples:
            assert 'pred_instances' not in sample  # nothing of the last episode is left in the cache
            found = [] if self.silent else self.found[sample.img_id]
            boxes, scores, labels, annotations, moves = zip(*found, strict=True) if found else ([],) * 5
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes).reshape(-1, 4),
                scores=torch.tensor(scores),
                labels=torch.tensor(labels).long(),
            )
            if self.truth:
                masks = [
                    np.roll(self.truth.annToMask(annotation).astype(bool), move, (0, 1))
                    for annotation, move in zip(annotations, moves, strict=True)
                ]
                sample.pred_instances.masks = torch.from_numpy(np.array(masks).reshape(len(masks), *sample.ori_shape))
        return data_samples


def mmdet_map(reward: CocoReward, model: Oracle, tmp_path) -> dict[str, float]:
    """CocoMetric's own mAPs on the reward's images: a subset file, and COCOeval's figure before it is rounded."""
    content = load_json(reward.annotation_file, 'annotations')
    chosen = set(reward._image_ids)
    content['images'] = [image for image in content['images'] if image['id'] in chosen]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in chosen]
    (tmp_path / 'subset.json').write_text(json.dumps(content))
    kinds = ['bbox', 'segm'] if model.truth else ['bbox']
    metric = CocoMetric(ann_file=str(tmp_path / 'subset.json'), metric=kinds)
    metric.dataset_meta = reward._dataset.metainfo
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    samples = [DetDataSample(metainfo=dict(img_id=i, ori_shape=sizes[i])) for i in reward._image_ids]
    samples = model(None, samples, 'predict')
    metric.process({}, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('num_images', [20, None])
@pytest.mark.parametrize('shake', [0.05, 0.2])
def test_digits_reward_equals_mmdets_metric(digits_root, tmp_path, num_images, shake):
    reward = CocoReward(num_images)
    model = Oracle(digits_root / 'annotations/instances_val.json', shake=shake)
    reward.prepare(model, digits_loader(digits_root))
    value = reward(model)
    assert 0.05 < value < 0.95
    assert round(value, 3) == mmdet_map(reward, model, tmp_path)['coco/bbox_mAP']
    assert reward(model) == value


@pytest.mark.parametrize('num_images', [30, None])
def test_real_coco_reward_equals_mmdets_metric_with_crowds_and_empty_images(tmp_path, num_images):
    loader = coco_loader()
    model = Oracle(SHARED / 'data/coco/annotations/instances_val2017_mini.json', masks=True)
    values = {}
    for metric in ('bbox', 'segm', 'mean'):
        reward = CocoReward(num_images, metric=metric)
        reward.prepare(model, loader)
        values[metric] = reward(model)
        assert reward.name == f'{metric}_mAP'
    assert 0.05 < values['segm'] < 0.95
    assert abs(values['segm'] - values['bbox']) > 0.01
    assert values['mean'] == (values['bbox'] + values['segm']) / 2
    expected = mmdet_map(reward, model, tmp_path)
    assert {key: round(values[key], 3) for key in ('bbox', 'segm')} == {
        key: expected[f'coco/{key}_mAP'] for key in ('bbox', 'segm')
    }


def test_masks_that_are_not_predicted_are_missed(digits_root):
    model = Oracle(digits_root / 'annotations/instances_val.json')
    reward = CocoReward(4, metric='segm')
    reward.prepare(model, digits_loader(digits_root))
    with pytest.raises(AutoDFPError, match='predicts no masks'):
        reward(model)
    with pytest.raises(AutoDFPError, match="metric='panoptic'; it must be one of bbox, segm, mean"):
        CocoReward(4, metric='panoptic')


def test_no_detections_are_worth_nothing(digits_root, capsys):
    model = Oracle(digits_root / 'annotations/instances_val.json', silent=True)
    reward = CocoReward(10)
    reward.prepare(model, digits_loader(digits_root))
    capsys.readouterr()
    assert reward(model) == 0
    model.silent = False
    assert reward(model) > 0
    assert capsys.readouterr().out == ''


def test_images_are_preprocessed_once_if_they_fit(digits_root):
    model = Oracle(digits_root / 'annotations/instances_val.json')
    rewards = {}
    for cache_gb in (4, 0.0015, 0.0004, 0):  # 20 images are 3.9 MB preprocessed, 1 MB as uint8
        reward = CocoReward(20, batch_size=4, cache_gb=cache_gb)
        reward.prepare(model, digits_loader(digits_root))
        before = model.data_preprocessor.calls
        rewards[cache_gb] = reward(model)
        calls = model.data_preprocessor.calls - before
        assert calls == (0 if cache_gb == 4 else 5)
        kept = {4: 5, 0.0015: 5, 0.0004: 2, 0: 0}[cache_gb]
        assert len(reward._cache) == kept
    assert len(set(rewards.values())) == 1


def test_the_choice_covers_the_categories_and_depends_on_the_seed_alone():
    labels = {image: {image % 7} if image < 90 else {7 + image - 90} for image in range(100)}
    for seed in range(5):
        chosen = choose_covering(labels, 17, seed)
        assert len(set(chosen)) == 17
        assert set().union(*(labels[image] for image in chosen)) == set(range(17))
        assert chosen == choose_covering(dict(reversed(labels.items())), 17, seed)
    assert choose_covering(labels, 17, 0) != choose_covering(labels, 17, 1)
    assert sorted(choose_covering(labels, None, 0)) == list(range(100))
    assert sorted(choose_covering(labels, 1000, 0)) == list(range(100))


def test_an_image_is_the_same_by_whatever_path_it_is_named(digits_root, tmp_path):
    (tmp_path / 'link').symlink_to(digits_root)
    model = Oracle(digits_root / 'annotations/instances_val.json')
    reward = CocoReward(20)
    reward.prepare(model, digits_loader(digits_root))
    for root in (f'{digits_root}/../digits', tmp_path / 'link'):
        assert len(reward.held_out(model, digits_loader(root)).images) == 280


def test_images_without_annotations_are_not_held_out(digits_root, tmp_path):
    content = load_json(digits_root / 'annotations/instances_test.json', 'annotations')
    content['annotations'] = []
    save_json(content, tmp_path / 'bare.json')
    loader = digits_loader(digits_root, 'test')
    loader['dataset']['ann_file'] = str(tmp_path / 'bare.json')
    model = Oracle(digits_root / 'annotations/instances_val.json')
    reward = CocoReward(20)
    reward.prepare(model, digits_loader(digits_root))
    assert reward.held_out(model, loader) is None


def test_held_out_images_are_all_the_others(digits_root):
    model = Oracle(digits_root / 'annotations/instances_val.json')
    reward = CocoReward(20)
    reward.prepare(model, digits_loader(digits_root))
    same = reward.held_out(model, digits_loader(digits_root))
    assert len(same.images) == 280
    assert not set(same.images) & set(reward.images)
    assert len(reward.held_out(model, digits_loader(digits_root, 'test')).images) == 800
    everything = CocoReward(None)
    everything.prepare(model, digits_loader(digits_root))
    assert everything.held_out(model, digits_loader(digits_root)) is None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(ann_file='annotations/absent.json'), r'annotations .*absent\.json, but there is no such file'),
        (dict(data_prefix=dict(img='absent/')), r'image .*absent/.*\.png, which cannot be read'),
        (dict(indices=0), 'the data set has none'),
    ],
)
def test_data_that_cannot_be_had_is_told_in_one_sentence(digits_root, change, message):
    loader = digits_loader(digits_root)
    loader['dataset'].update(change)
    model = Oracle(digits_root / 'annotations/instances_val.json')
    with pytest.raises(AutoDFPError, match=message):
        CocoReward(5).prepare(model, loader)


def test_another_format_than_cocos_is_refused():
    class Nameless:
        pass

    with pytest.raises(AutoDFPError, match='needs a COCO-format data set in val_dataloader, found Nameless'):
        CocoReward(5).prepare(nn.Module(), dict(dataset=dict(type=Nameless)))


def test_classes_that_nobody_annotated_are_told(digits_root):
    loader = digits_loader(digits_root)
    model = Oracle(digits_root / 'annotations/instances_val.json')
    reward = CocoReward(5)
    reward.prepare(model, loader)
    assert reward(model) >= 0
    reward._truth.dataset['annotations'] = []
    reward._truth.createIndex()
    with pytest.raises(AutoDFPError, match='no object of the classes is annotated'):
        reward(model)


@pytest.mark.parametrize('setting', ['num_images', 'batch_size'])
def test_counts_below_one_are_refused(setting):
    with pytest.raises(AutoDFPError, match=f'{setting}=0; it must be 1 or more'):
        CocoReward(**{setting: 0})
