"""ONNX files against torch, at batches and sizes that they were not traced with."""

import sys

import pytest
import torch
from conftest import REPO, enliven
from mmengine.config import Config
from torch import nn

from mmautodfp.deploy.models import build_model, input_channels, input_size
from mmautodfp.deploy.onnx import check_onnx, export_onnx, open_session, parts_of, write_onnx
from mmautodfp.graph import find_groups
from mmautodfp.outputs import slim_config
from mmautodfp.runs import load_config
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json, save_tensors

onnx = pytest.importorskip('onnx', reason='the extra export is not installed')
onnxruntime = pytest.importorskip('onnxruntime', reason='the extra export is not installed')


def make_pruned(name: str, folder):
    """A demo model at random weights, every other group at 0.6 of its width; the config that stores it, and itself."""
    folder.mkdir(exist_ok=True)
    cfg = Config.fromfile(REPO / f'configs/demo/{name}_autodfp.py')
    target = cfg.autodfp.target
    dense = build_model(cfg).get_submodule(target)
    widths = {group.name: (int(group.num_channels * 0.6), group.num_channels) for group in find_groups(dense)[::2]}
    plan = PruningPlan({name: GroupPlan(tuple(range(kept)), channels) for name, (kept, channels) in widths.items()})
    layers = apply_plan(dense, plan).changes(dense)
    config = folder / 'pruned.py'
    config.write_text(slim_config(cfg, target, layers, '{{ fileDirname }}/pruned.pth').pretty_text)
    torch.manual_seed(0)
    model = enliven(build_model(Config.fromfile(config)))
    save_tensors(dict(state_dict=model.state_dict()), folder / 'pruned.pth')
    return config, model


@pytest.fixture(scope='module')
def retinanet(tmp_path_factory):
    return make_pruned('retinanet_digits', tmp_path_factory.mktemp('retinanet'))


@pytest.fixture(scope='module')
def report(retinanet):
    config, _ = retinanet
    return export_onnx(config, size=(64, 96), repeat=1)


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {'images': images.numpy()}), strict=True)
    )


def test_both_parts_of_a_single_stage_detector_agree_with_torch_at_any_batch_and_size(retinanet, report):
    config, model = retinanet
    images = torch.randn(3, 3, 128, 160, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        feats = model.extract_feat(images)
        scores, boxes = model(images, mode='tensor')
    expected = dict(
        backbone_neck={f'feats_{level}': value for level, value in enumerate(feats)},
        detector={
            f'{name}_{level}': value
            for name, values in (('cls_scores', scores), ('bbox_preds', boxes))
            for level, value in enumerate(values)
        },
    )
    for part, wanted in expected.items():
        found = run(config.parent / 'onnx' / f'{part}.onnx', images)
        assert list(found) == list(wanted) == report['parts'][part]['outputs']
        for name, value in wanted.items():
            assert abs(torch.from_numpy(found[name]) - value).max() <= 1e-4 * value.abs().max()


def test_dense_and_pruned_stand_side_by_side_in_the_report(retinanet, report):
    config, model = retinanet
    assert load_json(config.parent / 'onnx/export.json', 'the report') == report
    assert report['input'] == [1, 3, 64, 96]
    for part in report['parts'].values():
        assert part['pruned']['bytes'] < part['dense']['bytes']
        assert part['pruned']['params'] < part['dense']['params']
        assert all(seconds > 0 for kind in ('dense', 'pruned') for seconds in part[kind]['seconds'].values())
        assert [check['input'] for check in part['checked']] == [[1, 3, 64, 96], [2, 3, 96, 160], [2, 3, 64, 96]]
        assert all(0 <= check['error'] <= 1e-4 for check in part['checked'])
    assert report['parts']['detector']['pruned']['params'] == sum(p.numel() for p in model.parameters())


def test_a_file_is_run_on_the_processor_as_torch_runs_the_model(retinanet, report, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CUDAExecutionProvider'])
    monkeypatch.setattr(onnxruntime, 'InferenceSession', lambda path, options, providers: providers)
    assert open_session(retinanet[0].parent / 'onnx/detector.onnx') == ['CPUExecutionProvider']


def test_a_file_that_disagrees_with_torch_is_refused(retinanet, tmp_path):
    _, model = retinanet
    part = parts_of(model)[0]
    write_onnx(part, tmp_path / 'part.onnx', (1, 3, 64, 64))
    bias = model.neck.fpn_convs[0].conv.bias
    with torch.no_grad():
        bias += 0.1
    with pytest.raises(AutoDFPError, match=r'onnxruntime differs from torch by \S+ of the largest value'):
        check_onnx(part, tmp_path / 'part.onnx', (1, 3, 64, 64))
    with torch.no_grad():
        bias -= 0.1


def test_of_a_two_stage_detector_backbone_and_neck_are_exported_and_the_rest_is_told(tmp_path, capsys):
    config, _ = make_pruned('faster_rcnn_digits', tmp_path / 'faster_rcnn')
    assert list(export_onnx(config, size=(64, 64), repeat=1)['parts']) == ['backbone_neck']
    assert 'FasterRCNN need NMS and RoIAlign inside' in capsys.readouterr().out


def test_a_classifier_with_linear_layers_has_a_dynamic_batch(tmp_path):
    config, model = make_pruned('vgg_digits', tmp_path / 'vgg')
    report = export_onnx(config, size=(8, 8), repeat=1)
    assert [check['input'] for check in report['parts']['classifier']['checked']] == [[1, 1, 8, 8], [2, 1, 8, 8]]
    images = torch.randn(5, 1, 8, 8)
    (logits,) = run(config.parent / 'onnx/classifier.onnx', images).values()
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model(images, mode='tensor'), rtol=1e-4, atol=1e-4)


def test_a_size_that_a_classifier_does_not_take_is_told(tmp_path):
    config, _ = make_pruned('vgg_digits', tmp_path / 'vgg')
    with pytest.raises(AutoDFPError, match=r'images of shape \[1, 1, 16, 16\].* \(mat1 and .*with --size'):
        export_onnx(config, size=(16, 16), repeat=1)


def test_a_detector_that_makes_four_channels_of_each_first_takes_images_of_three(tmp_path):
    small = 'dict(backbone=dict(deepen_factor=0.17, widen_factor=0.125), neck=dict(in_channels=[32, 64, 128]))'
    config, checkpoint = tmp_path / 'yolox.py', tmp_path / 'yolox.pth'
    config.write_text(f"_base_ = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'\nmodel = {small}\n")
    save_tensors(dict(state_dict=build_model(Config.fromfile(config)).state_dict()), checkpoint)
    report = export_onnx(config, str(checkpoint), size=(64, 96), repeat=1)
    assert report['input'] == [1, 3, 64, 96]
    assert list(report['parts']) == ['backbone_neck', 'detector']


def test_a_model_without_a_convolution_is_told():
    assert input_channels(nn.Sequential(nn.Conv2d(5, 2, 3), nn.Conv2d(2, 1, 3))) == 5
    with pytest.raises(AutoDFPError, match='a model of images was expected, but the Linear has no convolution'):
        input_channels(nn.Linear(2, 1))


def test_images_are_of_the_size_that_the_run_of_the_config_counted_flops_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_json(dict(flops_input=[1, 3, 32, 64]), tmp_path / 'summary.json')
    assert input_size(load_config('retinanet_digits')) == (128, 128)  # the run in this folder was of another one
    (tmp_path / 'pruned.py').write_text(f'_base_ = {str(REPO / "configs/demo/retinanet_digits.py")!r}\n')
    assert input_size(load_config('pruned.py')) == (32, 64)


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_a_missing_package_is_told_in_one_sentence(retinanet, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        AutoDFPError, match=f'^{package} is needed to export but is not installed; pip install onnx onnxruntime'
    ):
        export_onnx(retinanet[0])


def test_weights_of_another_model_are_refused(retinanet):
    with pytest.raises(AutoDFPError, match='does not fit the model of the config'):
        export_onnx(retinanet[0], str(REPO / 'configs/demo/fcos_digits.pth'))


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (dict(size=[0, 3]), r'size=\[0, 3\]; item 1 of it must be greater than or equal to 1'),
        (dict(size=[64]), r'size=\[64\]; it has too few items'),
        (dict(opset=3), 'opset=3; it must be greater than or equal to 11'),
    ],
)
def test_impossible_requests_are_refused(retinanet, arguments, told):
    with pytest.raises(AutoDFPError, match=f'an export was asked for {told}'):
        export_onnx(retinanet[0], **arguments)
