import json
import re
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, SHARED, enliven

from mmautodfp.experiments.reproduce.bench import NetworkBench
from mmautodfp.experiments.reproduce.paper import NETWORKS, Claim, claims
from mmautodfp.experiments.reproduce.report import compact, markdown, write_report
from mmautodfp.experiments.reproduce.run import Settings, _Laboratory, reproduce
from mmautodfp.reconstruction import NeuronMerging
from mmautodfp.runs import load_config
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import REWARDS, build
from mmautodfp.zoo import CifarResNet

CONFIGS = REPO / 'configs/classification'


def write_images(path, count=40):
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (count, 32, 32, 3), np.uint8), labels=np.arange(count) % 10)
    return str(path)


def test_the_papers_figures_are_all_there():
    counts = {table: len(claims((table,))) for table in ('1', '2', '3', '4', 'fig6', '6', '7')}
    assert counts == {'1': 1 + 15, '2': 3 + 27, '3': 3 + 3, '4': 4 + 36, 'fig6': 4 * 18 + 3 * 9, '6': 1, '7': 18}
    found = {(c.table, c.network, c.preserve_ratio, c.method): c.paper for c in claims()}
    assert found['2', 'resnet56_cifar10', 0.6, 'merging'] == 76.56
    assert found['1', 'mobilenet_v2_cifar10', 0.4, 'autodfp'] == 77.71
    assert found['4', 'resnet50_imagenet', 0.7, 'autodfp'] == 41.83
    assert found['7', 'vgg16_cifar10', 0.3, 'autodfp'] == 1.67
    assert all((CONFIGS / f'{network}_autodfp.py').is_file() for network in NETWORKS)


def test_rows_without_weights_are_listed_as_such_and_not_guessed(tmp_path):
    settings = Settings(tmp_path, tmp_path, tables=('2', '4', '6'), networks=('vgg16_cifar10', 'resnet50_imagenet'))
    told = []
    rows = reproduce(settings, told.append)
    assert len(rows) == len(told) == 10 + 10 + 1
    assert all(row['ours'] is None and row['reason'] for row in rows)
    write_report(rows, tmp_path, {})
    text = (tmp_path / 'reproduce.md').read_text()
    assert '- not measured: 10 of VGG-16, CIFAR-10: no weights: vgg16_cifar10.pth is not there' in text
    assert json.loads((tmp_path / 'reproduce.json').read_text())['rows'] == rows
    assert not (tmp_path / 'pareto.png').exists()


def test_the_curves_of_figure_6_are_drawn_from_the_points_that_there_are(tmp_path):
    rows = [
        asdict(claim)
        | dict(ours=80.0, params_ratio=claim.preserve_ratio, ours_flops_ratio=0.5, images=10, episodes=None)
        for claim in claims(('fig6',), ('vgg16_cifar10', 'resnet56_cifar10'))
    ]
    for row in rows:
        row['reason'] = 'needs a search: --episodes' if row['method'] == 'autodfp' else None
        row['ours'] = None if row['reason'] else row['ours']
    write_report(rows, tmp_path, {})
    assert cv2.imread(str(tmp_path / 'pareto.png')).shape[1] > 800  # two panels side by side
    text = (tmp_path / 'reproduce.md').read_text()
    assert text.count('| - | 80.00 % |') == 24
    assert text.count('- not measured: 6 of ') == 2


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(dict(state_dict=enliven(CifarResNet(56)).state_dict()), tmp_path / 'resnet56_cifar10.pth.tar')
    return tmp_path


@pytest.fixture
def searches(weights):
    """Settings of searches of one episode, on 20 of 40 images."""
    common = dict(checkpoints=weights, cifar10=write_images(weights / 'few.npz'), episodes=1)
    common |= dict(search_images=20, cfg_options={'autodfp.opening_lams': (0.5,)})
    return Settings(weights / 'out', **common)


@pytest.mark.slow
def test_searched_rows_take_episodes_and_go_on_from_an_earlier_search(searches):
    asked = replace(searches, tables=('2',), networks=('resnet56_cifar10',))
    for episodes in (1, 2):
        found = reproduce(replace(asked, episodes=episodes), lambda line: None)
        rows = {(row['preserve_ratio'], row['method']): row for row in found}
        searched = rows[0.5, 'autodfp']
        assert (searched['episodes'], searched['images'], searched['reason']) == (episodes, 20, None)
        assert searched['reward'] == 'probability'
    assert 0.49 < searched['params_ratio'] <= 0.5
    assert 0 <= searched['ours'] <= 100
    summary = json.loads(next(searches.out.glob('searches/*_0.5_autodfp_*/summary.json')).read_text())
    assert searched['ours'] == 100 * summary['results'][-1]['held_out_metric']
    assert '| ResNet-56, CIFAR-10 | 50.0% | AutoDFP | 64.29 % |' in markdown(found)


@pytest.mark.slow
def test_searching_and_then_merging_is_judged_on_what_did_not_reward_the_search(searches):
    laboratory = _Laboratory('resnet56_cifar10', searches)
    row = laboratory.measure(Claim('1', 'resnet56_cifar10', 0.5, 'search+merging', None))
    assert (row['reason'], row['images']) == (None, 20)
    cfg = load_config(laboratory.config, cfg_options=laboratory._options)
    reward = build(REWARDS, cfg.autodfp.reward.to_dict())
    reward.prepare(laboratory.bench.model, cfg.val_dataloader)
    content = np.load(searches.cifar10)
    rest = [i for i in range(40) if f'cifar10/test/{i}' not in reward.images]
    images = torch.from_numpy(content['images'][rest]).permute(0, 3, 1, 2)
    model = laboratory.bench.model
    plan = PruningPlan.from_json(next(searches.out.glob('searches/*_prune_*/strategy.json')))
    with apply_plan(model.network, plan, NeuronMerging()), torch.no_grad():
        found = model.network(model.data_preprocessor(dict(inputs=list(images)), False)['inputs']).argmax(1)
    assert row['ours'] == pytest.approx(100 * np.mean(found.numpy() == content['labels'][rest]))


@pytest.mark.slow
def test_a_search_with_other_settings_is_not_taken_for_the_one_asked_for(searches):
    claim = Claim('2', 'resnet56_cifar10', 0.5, 'autodfp', None)
    first = _Laboratory('resnet56_cifar10', searches).measure(claim)
    assert first['reason'] is None
    assert _Laboratory('resnet56_cifar10', searches).measure(claim) == first
    for other, message in (
        (dict(search_images=10), r"with reward={.*'num_images': 20.*}, but reward={.*'num_images': 10"),
        (dict(cfg_options={'autodfp.opening_lams': (0.0,)}), r'with opening_lams=\[0\.5\], but opening_lams=\[0\.'),
        (dict(cifar10=write_images(searches.out / 'other.npz')), r"few\.npz'.*}, but cfg_options={.*'other\.npz'"),
    ):
        row = _Laboratory('resnet56_cifar10', replace(searches, **other)).measure(claim)
        assert re.search(message, row['reason'])
        assert row['ours'] is None


@pytest.mark.slow
def test_a_search_that_all_images_reward_is_not_run(searches):
    row = _Laboratory('resnet56_cifar10', replace(searches, search_images=40)).measure(
        Claim('2', 'resnet56_cifar10', 0.5, 'autodfp', None)
    )
    assert row['reason'] == ('nothing is held out to judge a search on: all 40 images reward it; lower --search-images')
    assert not (searches.out / 'searches').exists()


def test_uniform_widths_count_channels_or_parameters(weights):
    config = CONFIGS / 'resnet56_cifar10_autodfp.py'
    bench = NetworkBench(config, str(weights / 'resnet56_cifar10.pth.tar'), write_images(weights / 'few.npz'), 10)
    assert set(bench.share_of_channels(0.6)) == {9, 19, 38}  # of 16, 32 and 64, rounded down
    widths = bench.uniform_widths(0.6)
    assert 0.59 < bench.shares(widths)['params_ratio'] <= 0.6
    plan = bench.unlimited.plan(widths)
    norms = bench.unlimited.module.layer1[0].conv1.weight.flatten(1).norm(dim=1)
    assert set(plan.groups['layer1.0.conv1'].keep) == set(norms.topk(widths[0]).indices.tolist())
    assert bench.milliseconds(plan, repeat=2) > 0
    assert bench.unlimited.module.layer1[0].conv1.out_channels == 16


def test_the_weights_of_a_deeper_network_do_not_pass_for_those_of_this_one(weights):
    path = weights / 'resnet56_cifar10.pth.tar'
    torch.save(dict(state_dict=enliven(CifarResNet(62)).state_dict()), path)  # all of ResNet-56's, and a block more
    with pytest.raises(AutoDFPError, match=r'of a larger network than the .*CifarResNet .* has no .*layer1\.9'):
        NetworkBench(CONFIGS / 'resnet56_cifar10_autodfp.py', str(path), write_images(weights / 'few.npz'), 10)


def test_an_unknown_table_or_network_is_refused(tmp_path):
    with pytest.raises(AutoDFPError, match=r"table '5' was asked for; known are 1, 2.*; 5, of detectors, is apart"):
        reproduce(Settings(tmp_path, tables=('5',)))
    with pytest.raises(AutoDFPError, match="network 'resnet18' was asked for"):
        reproduce(Settings(tmp_path, networks=('resnet18',)))


@pytest.mark.slow
def test_the_uniform_rows_of_table_2_on_400_real_images():
    """Within what so few images allow; tools/reproduce.py has the figures on all of them."""
    checkpoint = SHARED / 'data/checkpoints/resnet56_cifar10.pth.tar'
    images = SHARED / 'data/cifar10/cifar10_test_half.npz'
    for path in (checkpoint, images):
        if not path.is_file():
            pytest.skip(f'{path} is not there')
    bench = NetworkBench(CONFIGS / 'resnet56_cifar10_autodfp.py', str(checkpoint), str(images), 400)
    assert bench.accuracy(None, 'prune') == pytest.approx(93.4, abs=3)
    for ratio, prune, merging in ((0.7, 77.0, 85.2), (0.5, 24.3, 56.2)):
        widths = tuple(bench.share_of_channels(ratio))
        assert bench.accuracy(widths, 'prune') == pytest.approx(prune, abs=6)
        assert bench.accuracy(widths, 'merging') == pytest.approx(merging, abs=6)


def row(ratio: float, method: str, ours: float | None, paper: float = 50.0, **found) -> dict:
    known = dict(table='2', network='resnet56_cifar10', preserve_ratio=ratio, method=method, ours=ours, paper=paper)
    return known | dict(episodes=None, reward=None, reason=None if ours else 'needs a search') | found


def test_the_compact_table_has_a_line_for_each_share_and_no_empty_column():
    rows = [
        row(1.0, 'dense', 93.368, 93.88),
        row(0.7, 'prune', 76.8),
        row(0.7, 'merging', 84.67, 85.22),
        row(0.7, 'autodfp', 88.624, 88.15, episodes=1500, reward='probability'),
        row(0.5, 'prune', 24.0),
        row(0.5, 'autodfp', None),
        row(0.5, 'autodfp', 1.0, table='7'),
    ]
    assert compact([dict(rows=rows)]).splitlines() == [
        '| network | kept | uniform, pruned only | uniform, Neuron Merging | AutoDFP | reward | episodes |',
        '|---|---|---|---|---|---|---|',
        '| ResNet-56, CIFAR-10 | 100% | 93.37 (93.88) |  |  |  |  |',
        '| ResNet-56, CIFAR-10 | 70% | 76.80 (50.00) | 84.67 (85.22) | 88.62 (88.15) | probability | 1,500 |',
        '| ResNet-56, CIFAR-10 | 50% | 24.00 (50.00) |  |  |  |  |',
    ]
