"""The whole way without data: nothing of a data set is opened, and the result is a model like any other."""

import re
import sys

import pytest
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.utils.fileio import load_json

pytestmark = pytest.mark.slow  # whole runs

CONFIG = 'configs/demo/faster_rcnn_digits_zero_data.py'
OPTIONS = {
    'autodfp.num_episodes': 3,
    'autodfp.agent.warmup_episodes': 1,
    'autodfp.opening_lams': (0.5,),
    'autodfp.reconstructor.images': dict(num_images=4, size=64, batch_size=2),
    'autodfp.reconstructor.refinement': dict(groups_per_pass=16),
    'autodfp.reward.images': dict(num_images=2, size=64),
}
opened: list[str] = []
listening = False


def _listen(event: str, args: tuple) -> None:
    if listening and event in ('open', 'os.listdir', 'os.scandir'):
        opened.append(str(args[0]))


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """A run whose every opening of a file was heard, with a data root that does not exist."""
    global listening
    work_dir = tmp_path_factory.mktemp('zero')
    cfg = Config.fromfile(CONFIG)
    nowhere = {}
    for split in ('train', 'val', 'test'):
        nowhere[f'{split}_dataloader.dataset.data_root'] = '/nowhere/digits/'
        if split != 'train':
            nowhere[f'{split}_evaluator.ann_file'] = '/nowhere/digits/annotations.json'
    assert cfg.test_dataloader.dataset.data_root != '/nowhere/digits/'
    sys.addaudithook(_listen)
    listening = True
    try:
        assert apis.prune(CONFIG, work_dir=str(work_dir), cfg_options=OPTIONS | nowhere) == {}
    finally:
        listening = False
    return work_dir


def test_no_file_of_a_data_set_is_opened(work_dir):
    assert any(path.endswith('faster_rcnn_digits.pth') for path in opened)  # it does listen
    data = [path for path in opened if 'data/digits' in path or path.startswith('/nowhere')]
    images = [path for path in opened if path.endswith(('.jpg', '.png')) and not path.startswith(str(work_dir))]
    assert data == []
    assert [path for path in images if 'matplotlib' not in path] == []


def test_it_leaves_a_pruned_model_and_its_figures(work_dir):
    summary = load_json(work_dir / 'summary.json', 'the summary')
    rows = {row['name']: row for row in summary['results']}
    assert rows['dense']['search_metric'] == pytest.approx(1)
    assert 0 < rows['AutoDFP']['search_metric'] < 1
    assert rows['uniform, pruned only']['search_metric'] < rows['uniform, same compensation']['search_metric']
    assert rows['AutoDFP']['module_params']['ratio'] <= 0.7
    assert (summary['metric'], summary['held_out_images']) == ('output_likeness', 0)
    # The full pass changes plans, so the best are judged: by images of another seed.
    assert (summary['judge_metric'], summary['judge_images']) == ('output_likeness', 2)
    assert len(summary['finalists']) == 3
    (chosen,) = [row for row in summary['finalists'] if row['chosen']]
    assert chosen['metric'] == max(row['metric'] for row in summary['finalists'])
    assert chosen['metric'] != pytest.approx(chosen['reward'], abs=1e-6)


def test_its_report_shows_all_but_the_images(work_dir):
    page = (work_dir / 'report.html').read_text()
    assert page.count('<section') == 7
    assert re.findall(r'Not shown: (.*)\.</p>', page) == ['the run opened no data set']


def test_the_pruned_model_evaluates_on_real_data(work_dir, small_demo):
    options = {key: value for key, value in small_demo.items() if key.startswith('test_')}
    options['test_dataloader.dataset.data_root'] = 'data/digits/'
    metrics = apis.evaluate(
        work_dir / 'pruned.py', str(work_dir / 'pruned.pth'), str(work_dir / 'test'), 'none', False, options
    )
    assert metrics['coco/bbox_mAP'] > 0.1
