"""What the hook is told."""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmautodfp.costs import read_constraint
from mmautodfp.search import Clustering, RatioRange
from mmautodfp.search.objectives import read_weights
from mmautodfp.search.run import read_racing
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import Count, NotNegative, Several, Share, Whole, settings

# Names of version 0.1, whose configs go on working.
RENAMED = {'module': 'target'}
DROPPED = {'checkpoint_interval': 'a search is written after every round of episodes'}
DEFAULT_TYPES = dict(agent='SAC', reconstructor='SimilarityReconstructor', reward='CocoReward')


@settings('AutoDFPHook')
class HookSettings:
    """The ``autodfp`` entry of a config.

    Attributes:
        target (str | list[str]): Path of the module to prune inside the model and its config, whose outputs keep their
            shapes; 'model' for all of a detector but its predictors; or a list of parts, between which channels are
            pruned too. Defaults to 'backbone'.
        residual_streams (bool | None): Also prune what the blocks of the backbone add up. Defaults to None: where the
            target is 'model' or a list.
        budget (dict | list[dict] | None): Config of the limit, see :class:`mmautodfp.costs.Budget`, or of several
            that hold at once. Defaults to None: 90 % of the target's parameters.
        agent (dict | None): Config of the agent. Defaults to None: SAC, see :class:`mmautodfp.search.SACConfig`.
        reconstructor (dict | None): Config of the compensation. Defaults to None: the paper's (Eq. 12 and 16).
        reward (dict | None): Config of the reward. Defaults to None: COCO mAP on 500 images.
        num_episodes (int): Episodes of the search, warm-up and opening included. Defaults to 5000.
        racing (dict | bool | None): Arguments of :class:`mmautodfp.search.Racing`, which stops plans that part of the
            images show to be hopeless; True for its defaults, False for none. Defaults to None: in searches of 500
            episodes or more.
        finalists (int | None): So many of the plans with the best rewards are judged at the end, each after the full
            pass and on images that did not reward the search, and the best of them is pruned; 0 leaves it out. Defaults
            to None: 10 if the reconstructor has a full pass that changes plans, else 0.
        objectives (dict | None): What the metric and the costs that a plan saves weigh, such as
            ``dict(metric=1, latency=0.3)``, see :class:`mmautodfp.search.Weights`. Defaults to None: within the
            limits, the metric alone counts.
        opening_points (int): With objectives, so many nested plans, from the limit down to the least that can be
            reached, are played after the other opening ones. Defaults to 10.
        p_min (float): Least share of channels that any group keeps. Defaults to 0.2.
        p_max (float): Largest. Defaults to 1.
        channel_divisor (int): Every group keeps a multiple of it or all channels; 8 suits tensor cores and SIMD.
            Defaults to 1.
        allocate (bool): Start from the plan that the reconstructor itself would choose, if it can tell (see
            :meth:`mmautodfp.reconstruction.Reconstructor.error_curve`): the first episode plays it, and the agent's
            actions are counted from it (see :meth:`mmautodfp.search.PruningEnv.rollout`). Defaults to True.
        opening_lams (tuple[float, ...]): The first episodes play the uniform plan with these lambdas, so that the
            search never ends below it; () leaves it out, as in the paper. Where there is an allocated plan, that one
            comes first, and these are played with objectives only. Defaults to (0.0, 0.5, 1.0).
        clustering (dict | None): Settings of :class:`mmautodfp.search.Clustering`. Defaults to None: its own.
        bias_threshold (float): t of Eq. 17, 0 or more. Defaults to 0.5.
        compare (bool): Also evaluate the dense model, the uniform plan (pruned only, with Neuron Merging, with this
            reconstructor) and, if there is one, the allocated plan, on the reward's images and on the held-out ones.
            Defaults to True.
        report (bool): Write ``report.html``. Defaults to True.
        log_interval (int): Episodes between two lines in the log; a new best plan is always told. Defaults to 10.
        resume (bool): Go on from ``search.pth`` in the work dir. Defaults to False.
        seed (int): Seed of the agent, 0 or more. Defaults to 0.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    target: str | Several[str] = 'backbone'
    residual_streams: bool | None = None
    budget: dict | Annotated[list[dict], Field(strict=False)] | None = None
    agent: dict | None = None
    reconstructor: dict | None = None
    reward: dict | None = None
    num_episodes: Count = 5000
    racing: dict | bool | None = None
    finalists: Whole | None = None
    objectives: dict | None = None
    opening_points: Whole = 10
    p_min: float = 0.2
    p_max: float = 1.0
    channel_divisor: Count = 1
    allocate: bool = True
    opening_lams: Several[Share] = (0.0, 0.5, 1.0)
    clustering: dict | None = None
    bias_threshold: NotNegative = 0.5
    compare: bool = True
    report: bool = True
    log_interval: Count = 10
    resume: bool = False
    seed: Whole = 0

    def __post_init__(self):
        if not self.target:
            raise AutoDFPError(
                f"AutoDFPHook was asked for target={self.target!r}; it is the path of a part such as 'backbone', "
                "'model', or a list of parts"
            )


def read_settings(arguments: Mapping[str, Any]) -> HookSettings:
    """The settings of a config, under the names of any version; warnings tell of those that were renamed or dropped."""
    present = {name: value for name, value in arguments.items() if name not in {*RENAMED, *DROPPED}}
    for old, new in RENAMED.items():
        if old in arguments:
            warnings.warn(f'autodfp.{old} is called autodfp.{new} since version 0.2', FutureWarning, stacklevel=3)
            present[new] = arguments[old]  # the old name wins: ours in a base config is then only the default
    for name in DROPPED.keys() & arguments.keys():
        warnings.warn(f'autodfp.{name} does nothing since version 0.2: {DROPPED[name]}', FutureWarning, stacklevel=3)
    present.pop('type', None)
    for name, kind in DEFAULT_TYPES.items():
        if isinstance(present.get(name), dict | None):
            present[name] = dict(type=kind) | (present.get(name) or {})
    told = HookSettings(**present)
    # Built once more for the real task; this tells a wrong one before anything is loaded.
    read_constraint(told.budget)
    read_racing(told.racing or False)
    RatioRange(told.p_min, told.p_max)
    Clustering(**(told.clustering or {}))
    if told.objectives is not None:
        read_weights(told.objectives)
    return told
