"""A data set of two classes with odd names goes the whole way, and its report is opened in a browser."""

import json
import os
import re
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import REPO
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from own_data import CLASSES, NAMES

from mmautodfp import runs as apis
from mmautodfp.deploy.mmdeploy import export_end2end, images_of
from mmautodfp.deploy.onnx import export_onnx
from mmautodfp.outputs.report import Evidence
from mmautodfp.runs.report import remake_report
from mmautodfp.utils import AutoDFPError

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope='module')
def run(own_data):
    """Pruned into a folder whose name is no better; its work dir and the test loop's figures."""
    work_dir = own_data.root.parent / 'it\'s a "run" <i>ü'
    metrics = apis.prune(own_data.config, work_dir=str(work_dir))
    return work_dir, metrics


def test_it_is_pruned_with_its_own_classes(run):
    assert run[1]['coco/bbox_mAP'] > 0.5
    assert tuple(Config.fromfile(run[0] / 'pruned.py').metainfo.classes) == CLASSES


def test_the_written_config_and_checkpoint_evaluate_to_the_same(run):
    metrics = apis.evaluate(run[0] / 'pruned.py', str(run[0] / 'pruned.pth'), work_dir=str(run[0] / 'test'))
    assert metrics == run[1]


def test_the_command_that_the_run_names_exports_it_within_1e_4_of_torch(run, own_data, tmp_path):
    pytest.importorskip('onnx', reason='the extra export is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='the extra export is not installed')
    log = next(run[0].glob('*/*.log')).read_text()
    # A shell must make of it what was meant; nothing is left for it to expand.
    *_, tool, config, checkpoint = shlex.split(re.search(r'export it: +(.*)', log)[1])
    assert (tool, config, checkpoint) == ('export_onnx', f'{run[0]}/pruned.py', f'{run[0]}/pruned.pth')
    folder = tmp_path / NAMES[3]
    report = export_onnx(config, checkpoint, work_dir=str(folder), repeat=1)
    assert sorted(path.name for path in folder.iterdir()) == ['backbone_neck.onnx', 'export.json']
    assert json.loads((folder / 'export.json').read_text()) == report
    assert report['config'] == config
    assert report['parts']['backbone_neck']['pruned']['params'] < report['parts']['backbone_neck']['dense']['params']
    model = init_detector(config, checkpoint, device='cpu')
    assert model.dataset_meta['classes'] == CLASSES
    data = pseudo_collate(images_of(Config.fromfile(config), len(NAMES)))
    assert [Path(sample.img_path).name for sample in data['data_samples']] == own_data.names[: len(NAMES)]
    images = model.data_preprocessor(data)['inputs']
    session = runtime.InferenceSession(str(folder / 'backbone_neck.onnx'), providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = model.extract_feat(images)
    for found, value in zip(session.run(None, {'images': images.numpy()}), expected, strict=True):
        assert abs(torch.from_numpy(found) - value).max() <= 1e-4 * value.abs().max()


def test_mmdeploy_would_be_handed_its_paths_and_classes_unchanged(run, tmp_path, monkeypatch):
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package, reason='the extra export is not installed')
    asked = []
    fake = types.ModuleType('mmdeploy.apis')
    fake.torch2onnx = lambda *arguments, **_: (asked.append(arguments), 1 / 0)
    monkeypatch.setitem(sys.modules, 'mmdeploy', types.ModuleType('mmdeploy'))
    monkeypatch.setitem(sys.modules, 'mmdeploy.apis', fake)
    with pytest.raises(AutoDFPError, match='mmdeploy cannot write the FasterRCNN'):
        export_end2end(run[0] / 'pruned.py', work_dir=str(tmp_path / NAMES[1]))
    image, _, _, _, cfg, checkpoint = asked[0]
    assert Path(image).is_file()
    assert Path(checkpoint) == run[0] / 'pruned.pth'
    assert tuple(cfg.metainfo.classes) == CLASSES


def test_stock_train_of_mmdet_fine_tunes_it(run, tmp_path):
    import mmdet

    train = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    if not train.is_file():
        pytest.skip('this mmdet comes without its tools')
    command = [sys.executable, train, run[0] / 'pruned.py', '--work-dir', tmp_path / 'tuned']
    environment = os.environ | dict(PYTHONPATH=str(REPO), CUDA_VISIBLE_DEVICES='')
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / 'tuned/epoch_1.pth').is_file()
    lines = next((tmp_path / 'tuned').glob('*/vis_data/scalars.json')).read_text().splitlines()
    # It went on from the pruned weights: an untrained detector of these sizes finds nothing.
    assert max(json.loads(line).get('coco/bbox_mAP', 0) for line in lines) > 0.3


def test_nothing_in_the_report_is_taken_for_markup(run, own_data):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.words = [], ''

        def handle_starttag(self, tag, attributes):
            self.found += [(tag, name) for name, _ in attributes]

        def handle_data(self, data):
            self.words += data

    remake_report(run[0])
    page = Tags()
    page.feed((run[0] / 'report.html').read_text())
    assert not [found for found in page.found if found[0] == 'script' or found[1].startswith('on')]
    assert 'Not shown' not in page.words
    assert repr(CLASSES[1])[:20] in page.words  # in the config
    evidence = Evidence.from_json(run[0] / 'report/evidence.json')
    assert {finding.label for picture in evidence.pictures for finding in picture.dense} <= set(CLASSES)
    for picture in evidence.pictures:
        assert picture.name in own_data.names
        assert picture.name in page.words


def test_nothing_reaches_a_shell(own_data, run):
    assert not list(own_data.root.parent.rglob('pwned'))
    assert not Path('pwned').exists()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_every_section_without_complaint(run, scheme, width):
    playwright = pytest.importorskip('playwright.sync_api', reason='no playwright to drive a browser with')
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=os.environ.get('CHROMIUM'))
        except playwright.Error as error:
            pytest.skip(f'no Chromium that playwright can start ({str(error).splitlines()[0]})')
        page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        complaints, requests = [], []
        page.on('console', lambda message: complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('dialog', lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on('request', lambda request: requests.append(request.url.partition(':')[0]))
        page.goto((run[0] / 'report.html').as_uri())
        assert page.locator('section h2').count() == 7
        for section in page.locator('section').all():
            assert section.bounding_box()['height'] > 50
        assert page.evaluate('[...document.images].every(image => image.naturalWidth > 0)')
        assert page.evaluate('document.documentElement.scrollWidth') == width
        dark = sum(map(int, page.evaluate('getComputedStyle(document.body).backgroundColor')[4:-1].split(','))) < 300
        assert dark is (scheme == 'dark')
        browser.close()
    assert complaints == []
    assert requests.count('file') == 1
    assert set(requests) <= {'file', 'data'}
