"""What is told of a run beside its figures."""

from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.dist import get_world_size

from mmautodfp.search import History

from .settings import search_settings

if TYPE_CHECKING:
    from .autodfp_hook import AutoDFPHook


def summarize(hook: 'AutoDFPHook', cfg: Config, history: History, seconds: float) -> dict[str, Any]:
    """The facts of ``summary.json``.

    Args:
        hook (AutoDFPHook): After its search.
        cfg (Config): Of the run.
        history (History): Of the whole search.
        seconds (float): That this run took for its part of it.
    """
    return dict(
        episodes=len(history),
        best_episode=history.best,
        seconds=dict(search=sum(history.seconds), this_run=seconds),
        seed=hook.seed,
        ranks=get_world_size(),
        budget=hook.budget.describe(),
        channel_divisor=hook.channel_divisor,
        metric=hook.reward.name,
        reported_metric=hook.reward.reported_name,
        search_images=len(hook.reward.images),
        image_evaluations=image_evaluations(hook, history),
        held_out_images=len(hook.held_out.images) if hook.held_out else 0,
        flops_input=hook.flops_input,
        **hook.settings,
        autodfp=search_settings(cfg),
    )


def image_evaluations(hook: 'AutoDFPHook', history: History) -> dict[str, int]:
    """Images that a search evaluated, and how many there would have been without a race."""
    whole = len(hook.reward.images) * len(history)
    done = sum(hook.reward.stages[len(row) - 1] for row in history.stages) if hook.racing else whole
    return dict(done=done, without_racing=whole)
