import torch

from mmautodfp.utils.timing import median_in_turns


def test_calls_take_turns_and_the_first_do_not_count(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    costs = dict(a=iter([9, 9, 9, 1, 2, 6]), b=iter([9, 9, 9, 4, 4, 5]))

    def call(name):
        calls.append(name)
        now[0] += next(costs[name])

    medians = median_in_turns({name: lambda name=name: call(name) for name in costs}, 3)
    assert medians == dict(a=2, b=4)
    assert calls == ['a', 'b'] * 6
    assert not torch.is_inference_mode_enabled()


def test_calls_are_measured_in_inference_mode_unless_told_otherwise():
    modes = []
    for inference in (True, False):
        measure = dict(call=lambda: modes.append(torch.is_inference_mode_enabled()))
        median_in_turns(measure, 1, inference=inference)
    assert modes == [True] * 4 + [False] * 4
