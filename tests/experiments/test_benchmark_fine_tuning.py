import copy

import pytest
import torch
from mmengine.config import Config

from mmautodfp.experiments import benchmark_fine_tuning as module
from mmautodfp.experiments.bench import Bench
from mmautodfp.experiments.benchmark_fine_tuning import RANDOM, benchmark_fine_tuning
from mmautodfp.experiments.shares import OURS, UNIFORM, build_task
from mmautodfp.utils import AutoDFPError

CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'


@pytest.fixture(scope='module')
def options(small_ours) -> dict:
    return small_ours | {'train_dataloader.batch_size': 8, 'train_dataloader.dataset.indices': 16}


@pytest.fixture(scope='module')
def bench(options) -> Bench:
    return Bench(CONFIG, cfg_options=options)


@pytest.fixture(scope='module')
def starts(bench) -> dict:
    return module._starts(bench, 0.5)


@pytest.mark.slow
def test_every_start_is_trained_and_the_val_images_choose_its_learning_rate(bench, options):
    figures = []
    told = dict(epochs=1, lr_factors=(0.1, 0.01), cfg_options=options)
    report = lambda result, _: figures.append(copy.deepcopy(result))
    found = benchmark_fine_tuning(CONFIG, seeds=2, report=report, **told)
    assert found['dense'] == bench.reward(bench.model)
    assert list(found['rows']) == list(found['chosen']) == [OURS, UNIFORM, RANDOM]
    task = build_task(bench, 'backbone', 0.5)
    ours = found['rows'][OURS]
    # The slim model that is trained begins as what pruning made of the dense one.
    with task.apply(task.allocated_plan(), final=True):
        assert ours['0.1']['0']['before'] == ours['0.01']['0']['before'] == bench.reward(bench.model)
    for name, rows in found['rows'].items():
        chosen = found['chosen'][name]
        best = max(rows, key=lambda factor: rows[factor]['0']['val'])
        assert chosen['lr_factor'] == float(best)
        assert {factor: list(row) for factor, row in rows.items()} == {
            factor: ['0', '1'] if factor == best else ['0'] for factor in ('0.1', '0.01')
        }
        assert chosen['mean'] == pytest.approx(sum(row['test'] for row in rows[best].values()) / 2)
        gap = abs(rows[best]['0']['test'] - rows[best]['1']['test'])
        assert chosen['deviation'] == pytest.approx(gap / 2**0.5)
    assert ours['0.1']['0']['test'] != ours['0.1']['0']['before']
    assert found['left'][RANDOM] == found['left'][OURS]
    # Killed after the second row: it is measured no more, and further seeds are.
    middle = next(one for one in figures if len(one['rows'].get(OURS, {})) == 2)
    again = benchmark_fine_tuning(CONFIG, seeds=1, known=middle, **told)
    assert again['rows'][OURS]['0.1']['0'] == ours['0.1']['0']
    assert again['rows'][UNIFORM]['0.1']['0'] == found['rows'][UNIFORM]['0.1']['0']
    with pytest.raises(AutoDFPError, match='the earlier result was measured with epochs=1, but epochs=2'):
        benchmark_fine_tuning(CONFIG, known=found, **(told | dict(epochs=2)))


def test_random_weights_have_the_slim_shapes_and_are_new_for_each_seed(bench, starts):
    start = starts[OURS]
    cfg = module._training_config(bench.cfg, start, 2, 0.1, 0)
    pruned, dense = start.model.state_dict(), bench.model.state_dict()
    first, again, other = (module._build(cfg, seed, None).state_dict() for seed in (0, 0, 1))
    shapes = lambda state: {name: value.shape for name, value in state.items()}
    assert shapes(first) == shapes(pruned) != shapes(dense)
    for name in ('backbone.layer1.0.conv1.weight', 'rpn_head.rpn_conv.weight'):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], pruned[name])
    loaded = module._build(cfg, 0, pruned).state_dict()
    assert all(torch.equal(loaded[name], pruned[name]) for name in pruned)


def test_the_learning_rate_is_a_share_of_the_configs_and_falls_to_zero(bench, starts):
    cfg = module._training_config(bench.cfg, starts[UNIFORM], 2, 0.1, 7)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.1 * bench.cfg.optim_wrapper.optimizer.lr)
    assert cfg.optim_wrapper.optimizer.type == bench.cfg.optim_wrapper.optimizer.type
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler.T_max, cfg.randomness.seed) == (2, 2, 7)
    assert 'autodfp' not in cfg
    assert bench.cfg.optim_wrapper.optimizer.lr == Config.fromfile(CONFIG).optim_wrapper.optimizer.lr


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'epochs': 0}, 'epochs=0'),
        ({'lr_factors': (0.1, -1.0)}, 'lr_factors'),
        ({'lr_factors': ()}, 'lr_factors=()'),
        ({'share': 1.5}, 'share=1.5'),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_built(settings, message):
    with pytest.raises(AutoDFPError) as error:
        benchmark_fine_tuning('absent.py', **settings)
    assert message in str(error.value)


def test_what_cannot_be_trained_or_allocated_is_told_in_a_sentence(small_demo):
    cfg = Config(dict(train_cfg=dict(max_epochs=1), val_dataloader=dict(batch_size=1)))
    with pytest.raises(AutoDFPError, match=r'but it has no train_dataloader and no optim_wrapper\.optimizer\.lr'):
        module._require_training(cfg)
    with pytest.raises(AutoDFPError, match='but SimilarityReconstructor allocates none'):
        benchmark_fine_tuning(CONFIG, cfg_options=small_demo)
