"""The settings of the hook: the ``autodfp`` entry of a config."""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmautodfp.costs import read_constraint
from mmautodfp.search import Clustering, Racing, RatioRange
from mmautodfp.search.objectives import read_weights, require_no_race
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import build_switched
from mmautodfp.utils.settings import Count, NotNegative, Several, Share, Whole, settings

# Names of settings in version 0.1, whose configs still work.
RENAMED = {'module': 'target'}
DROPPED = {'checkpoint_interval': 'a search is written after every round of episodes'}
DEFAULT_TYPES = dict(agent='SAC', reconstructor='SimilarityReconstructor', reward='CocoReward')


@settings('AutoDFPHook')
class HookSettings:
    """The ``autodfp`` entry of a config.

    Attributes:
        target (str | list[str]): What to prune: the path of a part of the model, whose outputs keep their shapes;
            'model' for all layers of a detector except its predictors; or a list of parts, between which channels are
            pruned too. Defaults to 'backbone'.
        residual_streams (bool | None): Also prune the channels that residual blocks add up. Defaults to None: if the
            target is 'model' or a list.
        budget (dict | list[dict] | None): Config of the limit, see :class:`mmautodfp.costs.Budget`, or of several
            limits, which must all be kept. Defaults to None: 90 % of the target's parameters.
        agent (dict | None): Config of the agent. Defaults to None: SAC, see :class:`mmautodfp.search.SACConfig`.
        reconstructor (dict | None): Config of the compensation. Defaults to None: the paper's (Eq. 12 and 16), see
            :class:`mmautodfp.reconstruction.SimilarityReconstructor`.
        reward (dict | None): Config of the reward. Defaults to None: COCO mAP on 500 images.
        num_episodes (int): Episodes of the search, including those of the warm-up and the opening. Defaults to 5000.
        racing (dict | bool | None): Arguments of :class:`mmautodfp.search.Racing`, which stops the evaluation of plans
            that look hopeless after part of the images. True is for its defaults, False leaves it out. Defaults to
            None: in searches of 500 episodes or more.
        finalists (int | None): Number of plans with the best rewards that are judged at the end, each after the full
            pass and on images that the reward does not use; the best of them is taken. 0 leaves this out. Defaults to
            None: 10 if the reconstructor has a full pass, else 0.
        objectives (dict | None): Weights of the metric and of the costs that a plan saves, such as
            ``dict(metric=1, latency=0.3)``, see :class:`mmautodfp.search.Weights`. Defaults to None: within the
            limits, the metric alone counts.
        opening_points (int): With objectives, number of nested plans, from the limit down to the narrowest one, that
            are played after the other opening plans. Defaults to 10.
        p_min (float): Least share of channels that a group keeps. Defaults to 0.2.
        p_max (float): Largest share of channels that a group keeps. Defaults to 1.
        channel_divisor (int): Every group keeps a multiple of it, or all of its channels; 8 is good for tensor cores
            and SIMD. Defaults to 1.
        allocate (bool): Start from the plan that is allocated by the reconstructor's error curves, if it has any (see
            :meth:`mmautodfp.reconstruction.Reconstructor.error_curve`): the first episode plays it, and the agent's
            actions are relative to it (see :meth:`mmautodfp.search.PruningEnv.rollout`). Defaults to True.
        opening_lams (tuple[float, ...]): The first episodes play the uniform plan with these lambdas, so that the
            result of the search is never worse; () leaves them out, as in the paper. If there is an allocated plan, it
            is played first, and the uniform ones only with objectives. Defaults to (0.0, 0.5, 1.0).
        clustering (dict | None): Settings of :class:`mmautodfp.search.Clustering`. Defaults to None: its defaults.
        bias_threshold (float): t of Eq. 17, 0 or more. Defaults to 0.5.
        compare (bool): Also evaluate the dense model, the uniform plan (without compensation, with Neuron Merging, with
            this reconstructor) and the allocated plan, if there is one, on the reward's and on the held-out images.
            Defaults to True.
        report (bool): Write ``report.html``. Defaults to True.
        log_interval (int): Episodes between two lines in the log; every new best plan gets one too. Defaults to 10.
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
    """The settings of an ``autodfp`` entry, checked.

    Names of version 0.1 are accepted; a warning says which were renamed or dropped.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """
    present = {name: value for name, value in arguments.items() if name not in {*RENAMED, *DROPPED}}
    for old, new in RENAMED.items():
        if old in arguments:
            warnings.warn(f'autodfp.{old} is called autodfp.{new} since version 0.2', FutureWarning, stacklevel=3)
            present[new] = arguments[old]  # the old name wins: the new one may come from a base config of ours
    for name in DROPPED.keys() & arguments.keys():
        warnings.warn(f'autodfp.{name} does nothing since version 0.2: {DROPPED[name]}', FutureWarning, stacklevel=3)
    present.pop('type', None)
    for name, kind in DEFAULT_TYPES.items():
        if isinstance(present.get(name), dict | None):
            present[name] = dict(type=kind) | (present.get(name) or {})
    told = HookSettings(**present)
    # Only for their errors: a wrong setting should be reported before anything is loaded.
    read_constraint(told.budget)
    build_switched(Racing, told.racing or False, 'racing')
    RatioRange(told.p_min, told.p_max)
    Clustering(**(told.clustering or {}))
    if told.objectives is not None:
        read_weights(told.objectives)
    require_no_race(told.racing, told.objectives)
    return told
