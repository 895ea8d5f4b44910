import numpy as np
import pytest

from mmautodfp.search import Racing
from mmautodfp.utils import AutoDFPError


def staged(rows):
    """Iterators over the rows, and what was asked of them."""
    asked = []

    def run(row):
        for value in row:
            asked.append(value)
            yield value

    return [run(row) for row in rows], asked


def plans(rng, count, noise=(0.05, 0.03)):
    """[count, 3]: rewards after three stages; the last is the true one."""
    final = rng.uniform(0.2, 0.6, count)
    return np.stack([final + rng.normal(0, sigma, count) for sigma in noise] + [final], axis=1)


def race(racing, rows):
    """What a search over these plans sees: rewards and the stages evaluated."""
    iterators, asked = staged(rows)
    rewards, seen = [], []
    for episode, iterator in enumerate(iterators):
        reward, stages = racing.run(episode, iterator, rows.shape[1], seen)
        rewards.append(reward)
        seen.append(stages)
    return np.array(rewards), seen, asked


def test_prediction_and_bound_are_those_of_a_linear_regression():
    rng = np.random.default_rng(0)
    partial, final = rng.random(12), rng.random(12)
    predicted, bound = Racing(risk=0.05).predict(partial, final, 0.7)
    design = np.stack([np.ones(12), partial], axis=1)
    solution, residual, *_ = np.linalg.lstsq(design, final, rcond=None)
    at = np.array([1, 0.7])
    deviation = np.sqrt(residual[0] / 10 * (1 + at @ np.linalg.inv(design.T @ design) @ at))
    assert predicted == pytest.approx(at @ solution)
    assert bound == pytest.approx(at @ solution + 1.8124611 * deviation)  # Student's t, 10 degrees of freedom, 95 %


def test_the_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    racing, above = Racing(risk=0.05), 0
    for _ in range(2000):
        rows = plans(rng, 25)
        above += rows[-1, -1] > racing.predict(rows[:-1, 0], rows[:-1, -1], rows[-1, 0])[1]
    assert 0.03 < above / 2000 < 0.07


def test_hopeless_plans_are_stopped_and_the_best_is_found_all_the_same():
    racing, evaluations, lost = Racing(), 0, []
    for seed in range(20):
        rows = plans(np.random.default_rng(seed), 200)
        rewards, seen, _ = race(racing, rows)
        evaluations += sum(map(len, seen))
        lost.append(rows[:, -1].max() - rewards.max())
        stopped = [number for number, row in enumerate(seen) if len(row) < 3]
        assert all(rewards[number] < rewards[:number].max() for number in stopped)
        whole = [number for number, row in enumerate(seen) if len(row) == 3]
        assert (rewards[whole] == rows[whole, -1]).all()
    assert evaluations < 0.75 * 20 * 200 * 3
    assert np.mean(lost) < 1e-3


def test_the_first_and_every_so_manieth_episode_is_evaluated_whole():
    rows = np.full((60, 3), 0.1) + np.random.default_rng(0).normal(0, 1e-3, (60, 3))
    rows[3] = 0.9
    _, seen, asked = race(Racing(warmup=12, refresh=7), rows)
    whole = [number for number, row in enumerate(seen) if len(row) == 3]
    assert whole == [*range(12), *range(14, 60, 7)]
    assert len(asked) == sum(map(len, seen))  # nothing is evaluated and thrown away


def test_plans_that_are_all_alike_on_the_first_images_are_told_apart_later():
    rows = np.stack([np.zeros(40), np.linspace(0.9, 0.1, 40), np.linspace(0.9, 0.1, 40)], axis=1)
    rewards, seen, _ = race(Racing(refresh=100), rows)
    assert {len(row) for row in seen[20:]} == {2}
    assert rewards.max() == 0.9


def test_equal_rewards_whose_mean_is_rounded_say_nothing_about_a_plan_that_differs():
    partial, final = np.full(20, 0.1), np.linspace(0.2, 0.6, 20)
    assert ((partial - partial.mean()) ** 2).sum() > 0
    predicted, bound = Racing().predict(partial, final, 0.35)
    assert predicted == pytest.approx(0.4 + 0.25)
    assert bound < 2


@pytest.mark.parametrize(
    'setting', [dict(risk=0), dict(risk=0.6), dict(risk='low'), dict(warmup=3), dict(warmup=True), dict(refresh=0)]
)
def test_settings_out_of_range_are_refused_by_name(setting):
    ((name, value),) = setting.items()
    with pytest.raises(AutoDFPError, match=f'racing was asked for {name}={value!r}; it must be'):
        Racing(**setting)
