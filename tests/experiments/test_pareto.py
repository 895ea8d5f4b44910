import pytest

from mmautodfp.experiments import pareto
from mmautodfp.experiments.sweep import METHODS
from mmautodfp.experiments.tables import draw_without_search
from mmautodfp.utils import AutoDFPError


def test_every_method_of_a_sweep_is_drawn_in_a_look_of_its_own(monkeypatch):
    drawn = {}
    monkeypatch.setattr(pareto, 'panels_figure', lambda panels, styles: drawn.update(styles))
    monkeypatch.setattr(pareto, 'save_png', lambda *_: None)
    cell = dict(config='a', model='A', metric='m', params={}, held_out={})
    pareto.draw_pareto('unused.png', [cell], METHODS)
    assert list(drawn) == list(METHODS.values())
    assert len({str(style) for style in drawn.values()}) == len(METHODS)


def test_a_method_that_the_first_panel_lacks_is_in_the_legend_too():
    panels = [
        pareto.Panel('first', 'x', 'y', {'b': [(0, 1)]}),
        pareto.Panel('second', 'x', 'y', {'a': [(0, 1)]}, dense=1),
    ]
    (legend,) = pareto.panels_figure(panels, {'a': dict(), 'b': dict()}).legends
    assert [text.get_text() for text in legend.get_texts()] == ['a', 'b', 'dense']


@pytest.mark.parametrize('results', [{}, dict(fcos=dict(variants={'full': {}}))])
def test_a_swept_config_without_figures_of_allocated_plans_is_named(tmp_path, results):
    cell = dict(config='fcos_digits_autodfp', model='FCOS', metric='m', params={}, held_out={})
    with pytest.raises(AutoDFPError, match='fcos_digits_autodfp of the sweep was to be drawn, but there are'):
        draw_without_search(tmp_path / 'unused.png', results, [cell])
