"""Latency of pruned models, on small ones."""

import pytest
from conftest import REPO

from mmautodfp.experiments.benchmark_latency import benchmark_latency, benchmark_whole
from mmautodfp.utils import AutoDFPError

DEMO = REPO / 'configs/demo'


def test_pruned_models_that_are_timed_keep_to_flops_and_divisor():
    result = benchmark_latency(DEMO / 'faster_rcnn_digits_autodfp.py', repeat=1, size=(32, 32))
    dense, plain, eights = (result['models'][name] for name in ('dense', 'divisor 1', 'divisor 8'))
    assert dense['ratio'] == dense['predicted'] == 1
    for row in (plain, eights):
        assert row['flops_ratio'] <= 0.5
        assert row['predicted'] < 1
        assert row['seconds'] > 0
    assert all(k % 8 == 0 or k == n for k, n in zip(eights['widths'], dense['widths'], strict=True))
    assert any(k % 8 for k in plain['widths'])


def test_a_share_of_flops_that_cannot_be_reached_is_refused():
    with pytest.raises(AutoDFPError, match='can only reach'):
        benchmark_latency(DEMO / 'faster_rcnn_digits_autodfp.py', repeat=1, size=(32, 32), ratio=0.01)


def test_a_detector_of_two_stages_is_timed_whole_and_in_parts():
    pytest.importorskip('onnxruntime')
    config = DEMO / 'faster_rcnn_digits_autodfp.py'
    result = benchmark_whole(config, repeat=1, size=(64, 96), threads=(1,), device='cpu')
    assert result['input'] == [1, 3, 64, 96]
    assert list(result['models']) == ['dense', 'whole, divisor 8', 'backbone, divisor 8']
    dense, whole, _ = result['models'].values()
    assert dense['flops']['ratio'] == 1
    assert 0.4 < whole['flops']['ratio'] <= 0.5
    assert all(k % 8 == 0 or k == n for k, n in zip(whole['widths'].values(), dense['widths'].values(), strict=True))
    for row in result['models'].values():
        found = row['threads_1']
        parts = dict(found['onnxruntime'])
        total = parts.pop('sum')
        assert list(parts) == ['first_stage', 'second_stage']
        assert total['seconds'] == pytest.approx(sum(part['seconds'] for part in parts.values()))
        assert found['torch']['seconds'] > 0
        assert found['torch']['cpu_ratio'] == found['torch']['cpu_seconds'] / dense['threads_1']['torch']['cpu_seconds']
    assert dense['threads_1']['torch']['ratio'] == dense['threads_1']['onnxruntime']['sum']['ratio'] == 1


def test_a_detector_of_one_stage_is_timed_in_one_part():
    pytest.importorskip('onnxruntime')
    result = benchmark_whole(DEMO / 'retinanet_digits_autodfp.py', repeat=1, size=(64, 64), threads=(1,), device='cpu')
    whole = result['models']['whole, divisor 8']
    assert whole['flops']['ratio'] <= 0.5
    assert list(whole['threads_1']['onnxruntime']) == ['detector', 'sum']
    assert set(result['models']['dense']['threads_1']) == {'torch', 'onnxruntime'}


def test_the_backbone_alone_gives_up_what_it_can_and_a_share_that_cannot_be_reached_is_refused():
    config = DEMO / 'retinanet_digits_autodfp.py'
    result = benchmark_whole(config, 1, divisors=(1, 8), size=(64, 64), threads=(), device='cpu')
    names = ['dense', 'whole, divisor 1', 'backbone, divisor 1', 'whole, divisor 8', 'backbone, divisor 8']
    assert list(result['models']) == names
    # The backbone alone cannot give up half: its groups keep a fifth each, and nothing else is pruned.
    whole, backbone = (result['models'][name] for name in names[1:3])
    assert 0.48 < whole['flops']['ratio'] <= 0.5 < backbone['flops']['ratio'] < 1
    assert backbone['widths']['layer1.0.conv1'] == round(0.2 * 16)
    assert len(backbone['widths']) < len(whole['widths'])
    with pytest.raises(AutoDFPError, match='can only reach'):
        benchmark_whole(config, repeat=1, size=(64, 64), ratio=0.001)
