"""What mmdeploy is asked for, and how its file's detections are held against torch's; mmdeploy itself is not needed."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, random_plan
from doc_figures import row_of, text_of
from mmdet.apis import init_detector
from mmdet.models.dense_heads import rpn_head
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmautodfp.deploy.mmdeploy import (
    compare,
    deploy_settings,
    export_end2end,
    images_of,
    proposals_across_levels,
    run_both,
    special_operators,
)
from mmautodfp.outputs.artifacts import slim_config
from mmautodfp.surgery import apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_tensors

onnx = pytest.importorskip('onnx', reason='the extra export is not installed')
pytest.importorskip('onnxruntime', reason='the extra export is not installed')


def detections(boxes, scores, labels, **masks):
    boxes, scores = (torch.tensor(values, dtype=torch.float32) for values in (boxes, scores))
    return dict(boxes=boxes.reshape(-1, 4), scores=scores, labels=torch.tensor(labels, dtype=torch.long), **masks)


BOXES = [[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]]


def counted(found):
    return found['scores_from']['0.0']['torch'], found['scores_from']['0.0']['agreed'], found['extra']


EXPECTED = detections(BOXES, [0.9, 0.8, 0.7], [1, 2, 2])


def test_the_order_of_detections_does_not_matter():
    got = {name: values.flip(0) for name, values in EXPECTED.items()}
    found = compare([(EXPECTED, got), (EXPECTED, EXPECTED)])
    counts = {'0.0': dict(torch=6, agreed=6), '0.05': dict(torch=6, agreed=6), '0.5': dict(torch=6, agreed=6)}
    assert found == dict(images=2, scores_from=counts, extra=0, box_error=0, score_error=0)


def test_detections_are_counted_from_each_score_on():
    expected = detections(BOXES, [0.9, 0.1, 0.02], [1, 2, 2])
    got = detections([*BOXES[:1], [0, 0, 3, 3], BOXES[2]], [0.9, 0.1, 0.02], [1, 2, 2])
    assert compare([(expected, got)])['scores_from'] == {
        '0.0': dict(torch=3, agreed=2),
        '0.05': dict(torch=2, agreed=1),
        '0.5': dict(torch=1, agreed=1),
    }


@pytest.mark.parametrize(
    'got',
    [
        detections(BOXES, [0.9, 0.8, 0.7], [1, 2, 3]),  # another class
        detections(BOXES, [0.9, 0.8, 0.6], [1, 2, 2]),  # another score
        detections([*BOXES[:2], [0, 0, 10, 9]], [0.9, 0.8, 0.7], [1, 2, 2]),  # another place
    ],
)
def test_a_detection_of_another_class_score_or_place_is_not_the_same(got):
    found = compare([(EXPECTED, got)])
    assert counted(found) == (3, 2, 1)


def test_a_detection_is_the_same_as_one_other_at_most():
    twice = detections([BOXES[0], BOXES[0]], [0.9, 0.9], [1, 1])
    once = detections([BOXES[0]], [0.9], [1])
    assert counted(compare([(twice, once)])) == (2, 1, 0)
    assert counted(compare([(once, twice)])) == (1, 1, 1)


def test_errors_are_the_largest_of_what_agrees():
    got = detections([[0, 0, 10, 10], [20, 20.0625, 40, 40], [0.03125, 0, 10, 10]], [0.9, 0.7995, 0.7], [1, 2, 2])
    found = compare([(EXPECTED, got)])
    assert counted(found) == (3, 3, 0)
    assert found['box_error'] == 0.0625
    assert found['score_error'] == pytest.approx(5e-4, abs=1e-6)


def test_images_without_detections_agree():
    nothing = detections([], [], [])
    assert counted(compare([(nothing, nothing)])) == (0, 0, 0)
    assert counted(compare([(nothing, EXPECTED)])) == (0, 0, 3)
    assert counted(compare([(EXPECTED, nothing)])) == (3, 0, 0)


def test_pixels_of_masks_that_differ_are_counted():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    other = mask.clone()
    other[0, 2, :2] = True
    pair = [detections([BOXES[0]], [0.9], [1], masks=masks) for masks in (mask, other)]
    assert compare([pair])['mask_pixels_off'] == 2 / 8


@pytest.mark.parametrize(
    ('name', 'outputs', 'numbers'),
    [
        ('retinanet', ['dets', 'labels'], (0.05, 0.5, 20)),
        ('mask_rcnn', ['dets', 'labels', 'masks'], (0.0, 0.5, 20)),
    ],
)
def test_mmdeploy_is_asked_for_the_models_own_post_processing(name, outputs, numbers):
    model = Config.fromfile(REPO / f'configs/demo/{name}_digits.py').model
    settings = deploy_settings(model, opset=17)
    post = settings['codebase_config']['post_processing']
    assert (post['score_threshold'], post['iou_threshold'], post['keep_top_k']) == numbers
    assert settings['onnx_config']['output_names'] == outputs
    assert list(settings['onnx_config']['dynamic_axes']) == ['input', *outputs]
    assert settings['onnx_config']['opset_version'] == 17


@pytest.fixture(scope='module')
def pruned(digits_root, tmp_path_factory):
    """The demo's RetinaNet, pruned at random, as a run writes it."""
    folder = tmp_path_factory.mktemp('end2end')
    cfg = Config.fromfile(REPO / 'configs/demo/retinanet_digits_autodfp.py')
    cfg.test_dataloader.dataset.data_root = f'{digits_root}/'
    model = init_detector(cfg, str(REPO / 'configs/demo/retinanet_digits.pth'), device='cpu', palette='random')
    plan = random_plan(model.backbone)
    changes = apply_plan(model.backbone, plan).changes(model.backbone)
    checkpoint = '{{ fileDirname }}/pruned.pth'
    (folder / 'pruned.py').write_text(slim_config(cfg, 'backbone', changes, checkpoint).pretty_text)
    save_tensors(dict(state_dict=model.state_dict()), folder / 'pruned.pth')
    return folder, model


class Session:
    """Answers as a file would that torch's own detections were written into, and a row of no area."""

    def __init__(self, model, data, shift=0.0):
        self.model, self.data, self.shift = model, data, shift

    def get_outputs(self):
        return [types.SimpleNamespace(name=name) for name in ('dets', 'labels')]

    def run(self, names, feed):
        assert feed['input'].shape == (2, 3, 128, 128)
        samples = self.model.test_step(self.data)
        most = max(len(sample.pred_instances) for sample in samples) + 1
        dets, labels = np.zeros((2, most, 5), np.float32), np.zeros((2, most), np.int64)
        for row, sample in enumerate(samples):
            found = sample.pred_instances
            dets[row, : len(found), :4] = found.bboxes + self.shift
            dets[row, : len(found), 4] = found.scores
            labels[row, : len(found)] = found.labels
            dets[row, len(found) :, 4] = 0.5
        return [dict(dets=dets, labels=labels)[name] for name in names]


def test_each_image_of_a_batch_is_compared_and_empty_rows_are_not_detections(pruned):
    folder, model = pruned
    data = pseudo_collate(images_of(Config.fromfile(folder / 'pruned.py'), 2))
    found = compare(list(run_both(model, Session(model, data), data)))
    assert found['images'] == 2
    total, agreed, extra = counted(found)
    assert total == agreed > 0 == extra
    moved = compare(list(run_both(model, Session(model, data, shift=0.5), data)))
    assert counted(moved)[1] < total


def test_proposals_of_all_levels_suppress_each_other_as_mmdeploy_does_it_and_no_longer_than_asked():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5], [40, 40, 50, 50]])
    arguments = boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]), dict(type='nms', iou_threshold=0.7)
    assert rpn_head.batched_nms(*arguments)[1].tolist() == [0, 1, 2]
    with proposals_across_levels():
        assert rpn_head.batched_nms(*arguments)[1].tolist() == [0, 2]
    assert rpn_head.batched_nms(*arguments)[1].tolist() == [0, 1, 2]


def test_operators_that_onnxruntime_lacks_are_named(tmp_path):
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    nodes = [
        onnx.helper.make_node('MMCVRoiAlign', ['x'], ['y'], domain='mmdeploy'),
        onnx.helper.make_node('Relu', ['y'], ['z']),
        onnx.helper.make_node('RoiAlign', ['z', 'x', 'x'], ['r']),
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, 'g', [value], [])), str(tmp_path / 'a.onnx'))
    assert special_operators(tmp_path / 'a.onnx') == ['RoiAlign', 'mmdeploy::MMCVRoiAlign']


def test_a_missing_mmdeploy_is_told_in_one_sentence(pruned, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdeploy', None)
    with pytest.raises(AutoDFPError, match=r'^mmdeploy is needed to export but is not installed; pip install --no-de'):
        export_end2end(pruned[0] / 'pruned.py')


def test_what_mmdeploy_cannot_do_is_told_in_one_sentence_and_leaves_no_file(pruned, monkeypatch, tmp_path):
    def torch2onnx(image, work_dir, name, *_, **__):
        Path(work_dir, name).write_text('half')
        raise NotImplementedError('no rewriter\nfor this head')

    fake = types.ModuleType('mmdeploy')
    fake.apis = types.ModuleType('mmdeploy.apis')
    fake.apis.torch2onnx = torch2onnx
    monkeypatch.setitem(sys.modules, 'mmdeploy', fake)
    monkeypatch.setitem(sys.modules, 'mmdeploy.apis', fake.apis)
    with pytest.raises(AutoDFPError, match='mmdeploy cannot write the RetinaNet as ONNX: NotImplementedError for this'):
        export_end2end(pruned[0] / 'pruned.py', work_dir=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['deploy.py']


def test_a_classifier_is_refused(tmp_path):
    with pytest.raises(AutoDFPError, match='is no detector'):
        export_end2end(REPO / 'configs/demo/vgg_digits_autodfp.py', work_dir=str(tmp_path))


@pytest.mark.parametrize('arguments', [dict(num_images=0), dict(batch=0), dict(opset=9)])
def test_impossible_requests_are_refused(pruned, arguments):
    with pytest.raises(AutoDFPError, match=r'an export with mmdeploy was asked for .*; it must be greater'):
        export_end2end(pruned[0] / 'pruned.py', **arguments)


def test_the_docs_tell_what_the_command_measured():
    results = load_json(REPO / 'configs/demo/results/mmdeploy.json', 'the results')
    whole = {'RetinaNet as a whole', 'FasterRCNN as a whole'}
    assert set(results) == {'RetinaNet', 'FCOS', 'FasterRCNN', 'MaskRCNN', *whole}
    rows = results | {
        f'{name}, proposals as mmdeploy picks them': result['same_proposals'] | dict(operators=result['operators'])
        for name, result in results.items()
        if 'RCNN' in name
    }
    assert len(rows) == 9
    for model, result in rows.items():
        counts = [f'{count["agreed"]} of {count["torch"]}' for count in result['scores_from'].values()]
        errors = [f'{result[name]:.0e}' for name in ('box_error', 'score_error')]
        row = row_of(model, ', '.join(result['operators']), *counts, str(result['extra']), *errors)
        assert row in text_of('docs/export.md')
