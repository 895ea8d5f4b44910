from mmautodfp.experiments import pareto
from mmautodfp.experiments.sweep import METHODS


def test_every_method_of_a_sweep_is_drawn_in_a_look_of_its_own(monkeypatch):
    drawn = {}
    monkeypatch.setattr(pareto, 'panels_figure', lambda panels, styles: drawn.update(styles))
    monkeypatch.setattr(pareto, 'save_png', lambda *_: None)
    cell = dict(config='a', model='A', metric='m', params={}, held_out={})
    pareto.draw_pareto('unused.png', [cell], METHODS)
    assert list(drawn) == list(METHODS.values())
    assert len({str(style) for style in drawn.values()}) == len(METHODS)
