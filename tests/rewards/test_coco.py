import json
import os

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from reward_data import Oracle, coco_annotations, coco_loader, demo_detector, digits_loader

from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.coco_map import CocoTruth
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json


@pytest.fixture
def model(digits_root) -> Oracle:
    """Knows the truth about the digits' validation images."""
    return Oracle(digits_root / 'annotations/instances_val.json')


def prepared(model, loader, *arguments, layers=(), **settings) -> CocoReward:
    reward = CocoReward(*arguments, **settings)
    reward.prepare(model, loader, layers)
    getattr(model, 'seen', []).clear()
    return reward


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


@pytest.mark.parametrize('num_images', [12, None])
def test_real_coco_reward_equals_mmdets_metric_with_crowds_and_empty_images(tmp_path, num_images):
    loader = coco_loader()
    loader['dataset']['indices'] = 20
    content = load_json(coco_annotations(), 'annotations')
    first = {image['id'] for image in content['images'][:20]}
    annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] in first]
    assert any(annotation['iscrowd'] for annotation in annotations)
    assert {annotation['image_id'] for annotation in annotations} < first
    model = Oracle(coco_annotations(), masks=True)
    values = {}
    for metric in ('bbox', 'segm', 'mean'):
        reward = prepared(model, loader, num_images, metric=metric, cache_gb=0)
        values[metric] = reward(model)
        assert reward.name == f'{metric}_mAP'
    assert 0.05 < values['segm'] < 0.95
    assert abs(values['segm'] - values['bbox']) > 0.01
    assert values['mean'] == (values['bbox'] + values['segm']) / 2
    expected = mmdet_map(reward, model, tmp_path)
    assert {key: round(values[key], 3) for key in ('bbox', 'segm')} == {
        key: expected[f'coco/{key}_mAP'] for key in ('bbox', 'segm')
    }


def test_masks_that_are_not_predicted_are_missed(model, digits_root):
    reward = prepared(model, digits_loader(digits_root), 4, metric='segm')
    with pytest.raises(AutoDFPError, match='predicts no masks'):
        reward(model)
    with pytest.raises(AutoDFPError, match="metric='panoptic'; it must be 'bbox', 'segm' or 'mean'"):
        CocoReward(4, metric='panoptic')


def test_a_detector_that_fails_on_the_images_when_dense_is_told_before_the_search(model, digits_root, monkeypatch):
    monkeypatch.setattr(Oracle, 'forward', lambda self, **data: data['head'])
    with pytest.raises(AutoDFPError, match=r"the Oracle was to look at .* fails on them \(KeyError: 'head'\); see"):
        prepared(model, digits_loader(digits_root), 4)


def test_no_detections_are_worth_nothing(digits_root, capsys):
    model = Oracle(digits_root / 'annotations/instances_val.json', silent=True)
    reward = prepared(model, digits_loader(digits_root), 10)
    capsys.readouterr()
    assert reward(model) == 0
    model.silent = False
    assert reward(model) > 0
    assert capsys.readouterr().out == ''


def test_an_image_is_the_same_by_whatever_path_it_is_named(model, digits_root, tmp_path):
    (tmp_path / 'link').symlink_to(digits_root)
    reward = prepared(model, digits_loader(digits_root), 20)
    for root in (f'{digits_root}/../digits', tmp_path / 'link'):
        assert len(reward.held_out(model, digits_loader(root)).images) == 280


def test_images_without_annotations_are_not_held_out(model, digits_root, tmp_path):
    content = load_json(digits_root / 'annotations/instances_test.json', 'annotations')
    content['annotations'] = []
    save_json(content, tmp_path / 'bare.json')
    loader = digits_loader(digits_root, 'test')
    loader['dataset']['ann_file'] = str(tmp_path / 'bare.json')
    reward = prepared(model, digits_loader(digits_root), 20)
    assert reward.held_out(model, loader) is None


def test_held_out_images_are_all_the_others(model, digits_root):
    reward = prepared(model, digits_loader(digits_root), 20)
    same = reward.held_out(model, digits_loader(digits_root))
    assert len(same.images) == 280
    assert not set(same.images) & set(reward.images)
    assert len(reward.held_out(model, digits_loader(digits_root, 'test')).images) == 800
    everything = prepared(model, digits_loader(digits_root), None, cache_gb=0)
    assert everything.held_out(model, digits_loader(digits_root)) is None


def test_a_judge_has_other_images_than_the_reward_and_than_the_report(model, digits_root):
    val, test = (digits_loader(digits_root, split) for split in ('val', 'test'))
    reward = prepared(model, val, 20, metric='bbox', precision='auto')
    judge = reward.judge(model, val, test)
    assert (len(judge.images), judge.name, judge.precision) == (20, 'bbox_mAP', 'float32')
    assert 0 < judge(model) < 1
    assert len(reward.held_out(model, test).images) == 800  # no image is in both
    # One loader for both, as MMDetection's configs have it.
    for num, judging in ((20, 20), (120, 90), (299, 0), (None, 0)):
        reward = prepared(model, val, num, cache_gb=0)
        judge, held_out = reward.judge(model, val, val), reward.held_out(model, val)
        parts = [set(part.images) if part else set() for part in (reward, judge, held_out)]
        assert len(parts[1]) == judging
        assert sum(map(len, parts)) == len(set.union(*parts)) == 300
        assert (judge is None) == (judging == 0)
    reward = prepared(model, val, 200, cache_gb=0)
    assert len(reward.judge(model, val).images) == 100  # nothing is reported


def test_a_missing_image_is_missed_when_the_judge_is_made_and_not_when_it_is_asked(model, digits_root, tmp_path):
    reward = prepared(model, digits_loader(digits_root), 20)
    path = reward.judge(model, digits_loader(digits_root)).images[3]
    (tmp_path / 'annotations').symlink_to(digits_root / 'annotations')
    (tmp_path / 'val').mkdir()
    for image in (digits_root / 'val').iterdir():
        if image.name != os.path.basename(path):
            (tmp_path / 'val' / image.name).symlink_to(image)
    for part in (reward.judge, reward.held_out):
        with pytest.raises(AutoDFPError, match=rf'image {tmp_path}/val/{os.path.basename(path)}, which cannot be read'):
            part(model, digits_loader(tmp_path))


def test_images_without_annotations_do_not_judge(model, digits_root, tmp_path):
    content = load_json(digits_root / 'annotations/instances_val.json', 'annotations')
    named = {annotation['image_id'] for annotation in content['annotations'] if annotation['image_id'] <= 20}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in named]
    content['images'] = content['images'][:60]
    save_json(content, tmp_path / 'sparse.json')
    loader = digits_loader(digits_root)
    loader['dataset']['ann_file'] = str(tmp_path / 'sparse.json')
    reward = prepared(model, loader, 30)  # those with annotations come first
    assert reward.judge(model, loader) is None
    assert len(reward.held_out(model, digits_loader(digits_root)).images) == 270


def test_classes_that_nobody_annotated_are_told(model, digits_root):
    loader = digits_loader(digits_root)
    reward = prepared(model, loader, 5)
    assert reward(model) >= 0
    assert reward.truth.has_objects
    content = reward.truth.content | dict(annotations=[])
    reward.truth = CocoTruth(content, reward._image_ids, reward._dataset.cat_ids)
    assert not reward.truth.has_objects
    with pytest.raises(AutoDFPError, match='no object of the classes is annotated'):
        reward(model)


def test_classes_that_are_no_categories_are_told(digits_root, tmp_path):
    loader, file = digits_loader(digits_root), digits_root / 'annotations/instances_val.json'
    content = load_json(file, 'annotations')
    content['categories'][0]['name'] = 'zero'
    save_json(content, tmp_path / 'named.json')
    loader['dataset'] |= dict(ann_file=str(tmp_path / 'named.json'))
    with pytest.raises(AutoDFPError, match=r'names the classes 0, 1, .* has the categories zero, 1, .*let metainfo'):
        CocoReward(4).prepare(Oracle(file), loader)


def test_a_class_that_the_data_set_does_not_have_is_told(model, digits_root):
    loader = digits_loader(digits_root)
    loader['dataset'] |= dict(metainfo=dict(classes=('0', '1')))
    reward = prepared(model, loader, 4)
    with pytest.raises(AutoDFPError, match=r'the detector tells apart \d+ classes or more, but its data set has 2'):
        reward(model)


@pytest.mark.parametrize('setting', ['num_images', 'batch_size'])
def test_counts_below_one_are_refused(setting):
    with pytest.raises(
        AutoDFPError, match=f'CocoReward was asked for {setting}=0; it must be greater than or equal to 1'
    ):
        CocoReward(**{setting: 0})


@pytest.mark.parametrize('stages', [(0.5, 0.25), (0.5, 0.5), (0,), (0.5, 1)])
def test_stages_that_do_not_ascend_are_refused(stages):
    with pytest.raises(AutoDFPError, match='must ascend and lie between 0 and 1'):
        CocoReward(8, stages=stages)


@pytest.mark.parametrize(('stages', 'ends'), [((0.25, 0.5), [5, 10, 21]), ((), [21]), ((0.01, 0.02, 0.9), [1, 19, 21])])
def test_a_stage_is_worth_the_map_of_its_images_and_the_last_one_that_of_all(model, digits_root, stages, ends):
    loader = digits_loader(digits_root)
    loader['dataset']['indices'] = 40
    reward = prepared(model, loader, 21, batch_size=4, stages=stages)
    assert reward.stages == ends
    detections = reward.detect(model)
    expected = []
    for end in ends:
        # One more reward of the first images, which knows of no stage.
        single = prepared(model, loader, end, stages=())
        assert single.images == reward.images[:end]
        chosen = set(single._image_ids)
        ours = [detection for detection in detections if detection['image_id'] in chosen]
        expected.append(single(model))
        assert CocoTruth(reward.truth.content, chosen, reward._dataset.cat_ids).mean_ap(ours) == expected[-1]
    assert list(reward.evaluate(model)) == pytest.approx(expected, abs=1e-12)
    assert expected[-1] == pytest.approx(reward(model), abs=1e-12)
    assert len(set(expected)) == len(ends)


def test_a_race_that_stops_has_not_seen_the_other_images(model, digits_root):
    reward = prepared(model, digits_loader(digits_root), 16, batch_size=3)
    race = reward.evaluate(model)
    for end in reward.stages:
        next(race)
        assert sorted(model.seen) == sorted(reward._image_ids[:end])


def test_the_first_image_has_an_object_that_counts(tmp_path):
    """Of a crowd alone there is no mAP, and a race's first stage may be one image."""
    content = load_json(coco_annotations(), 'annotations')
    plain = content['annotations'][0]['image_id']
    content['annotations'] = [a | dict(iscrowd=int(a['image_id'] != plain)) for a in content['annotations']]
    save_json(content, tmp_path / 'crowds.json')
    loader = coco_loader()
    loader['dataset']['ann_file'] = str(tmp_path / 'crowds.json')
    model = Oracle(tmp_path / 'crowds.json', shake=0.01)
    for seed in range(3):
        reward = prepared(model, loader, 4, seed=seed)
        assert reward._image_ids[0] == plain
        assert len(list(reward.evaluate(model))) == 3


def test_several_threads_find_what_one_finds(digits_root):
    model = demo_detector('faster_rcnn')
    reward = prepared(model, digits_loader(digits_root), 8, batch_size=2)
    allowed = torch.get_num_threads()
    try:
        found = {}
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found[threads] = reward.detect(model)
        assert len(found[1]) > 8
        assert [d['image_id'] for d in found[3]] == [d['image_id'] for d in found[1]]
        for ours, expected in zip(found[3], found[1], strict=True):
            assert ours['category_id'] == expected['category_id']
            assert ours['score'] == pytest.approx(expected['score'], abs=1e-5)
            assert ours['bbox'] == pytest.approx(expected['bbox'], abs=1e-3)
        reward.stand_in.predict = lambda **_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            reward.detect(model)
    finally:
        torch.set_num_threads(allowed)


def test_one_batch_is_an_image_though_the_stem_has_run(digits_root):
    model = demo_detector('faster_rcnn')
    reward = prepared(model, digits_loader(digits_root), 4, batch_size=2, layers=['backbone.layer1.0.conv1'])
    assert reward._batches[0]['inputs'].shape[1] == 16
    assert reward.one_batch()['inputs'].shape == (1, 3, 128, 128)


def test_the_identity_tells_metric_precision_and_stages_apart():
    rewards = [
        CocoReward(4),
        CocoReward(4, metric='segm'),
        CocoReward(4, precision='bfloat16'),
        CocoReward(4, stages=()),
    ]
    assert len({reward.identity for reward in rewards}) == 4
