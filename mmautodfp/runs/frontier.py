"""What ``tools/frontier.py`` does, and how ``tools/prune.py`` takes a point of it, callable from Python."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process

from mmautodfp import api
from mmautodfp.costs import Budget, read_constraint
from mmautodfp.frontier import Choice, Frontier, choose
from mmautodfp.frontier.measure import NUM_POINTS
from mmautodfp.frontier.points import FURTHER
from mmautodfp.hooks import read_settings
from mmautodfp.outputs import keep_config
from mmautodfp.rewards import Reward
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import pickle_allowed
from mmautodfp.utils.registry import HOOKS, RECONSTRUCTORS, build
from mmautodfp.utils.settings import TwoOrMore, checked

from .checkpoints import find_checkpoint
from .configs import add_settings, load_config, require_other_folder, use_pictures
from .data import require_data, require_pictures
from .runner import build_runner

FILE = 'frontier.json'
#: Settings of images that depend on the model: the reward's are those of the reconstructor.
IMAGES = ('size', 'mean', 'std', 'folder', 'scale', 'keep_ratio', 'rgb')
MODEL = 'model.'  # prefix of facts about a config's model


@checked('a frontier')
def frontier(
    config: str | os.PathLike,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    points: TwoOrMore = NUM_POINTS,
    no_data: bool = False,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
    cfg_options: dict[str, Any] | None = None,
    images: str | None = None,
) -> Frontier:
    """Measure a detector or classifier at points from the dense model down; other arguments as of :func:`.prune`.

    The work dir gets ``frontier.json``, ``frontier.csv``, ``frontier.png`` and ``frontier.html``. Points that the first
    of them holds are not measured again.

    Args:
        config (str | os.PathLike): Config file, or the name of one of ours. Without an ``autodfp`` entry its widths are
            found as ``configs/_base_/zero_data.py`` says, and its points are measured with the COCO mAP.
        work_dir (str | None): Where the results go. Defaults to the config's, else ``work_dirs/<config name>``, in
            either case with ``_frontier`` at its end: a run of ``prune`` keeps its own config there.
        points (int): How many, 2 or more, see :func:`mmautodfp.api.frontier`. Defaults to 21.
        no_data (bool): Measure with synthetic images in place of the config's reward. Defaults to False.

    Raises:
        AutoDFPError: The request cannot be met; one sentence says why.
    """
    cfg = load_config(config, work_dir, launcher, cfg_options)
    cfg.work_dir = work_dir or f'{str(cfg.work_dir).rstrip("/")}_frontier'
    ready_settings(cfg, no_data)
    if images is not None:
        use_pictures(cfg, images)
        require_pictures(images)
    # Where the limits lie does not matter, and no single plan is needed.
    cfg.autodfp.update(budget=budgets_at(cfg, lambda budget: 1.0), allocate=False, compare=True, resume=False)
    cfg.autodfp.objectives = dict(metric=1, memory=0)  # so that memory is measured; the other costs are anyway
    hook = build(HOOKS, cfg.autodfp.to_dict())
    if hook.reward.needs_data:
        require_data(cfg, 'val', 'test')
    require_other_folder(cfg)
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    file = Path(cfg.work_dir) / FILE
    if file.is_file():  # tell now what is known now: groups may be looked for for minutes
        Frontier.load(file).require(dict(number_of_points=points), file)
    runner = build_runner(cfg, trust_checkpoint)
    with pickle_allowed(trust_checkpoint):
        runner.load_or_resume()
    hook.prepare(runner)
    task, held_out = hook.task, hook.held_out
    about = dict(
        model=type(task.model).__name__,
        config=str(cfg.filename),
        target=task.target,
        no_data=no_data,
        metric=hook.reward.name,
        reported_metric=hook.reward.reported_name,
        images=len(hook.reward.images),
        held_out_images=len(held_out.images) if held_out else 0,
        flops_input=list(task.example_input['inputs'].shape),
        trust_checkpoint=trust_checkpoint,
    )
    identity = _identify(cfg, dict(val=hook.reward, test=held_out))
    found = api.frontier(task, hook.reward, held_out, points, file, about, runner.logger, identity)
    if is_main_process():
        keep_config(runner.cfg, cfg.work_dir)
        from mmautodfp.outputs.report.frontier_page import write_frontier  # imports what draws

        page = write_frontier(found, cfg.work_dir)
        runner.logger.info(f'{page} shows the {len(found.points)} points; {FILE} and frontier.csv beside it hold them')
    return found


def _identify(cfg: Config, rewards: Mapping[str, Reward | None]) -> dict[str, str]:
    """What figures depend on, other than the task: settings of the model, and the data of each split's reward."""
    facts = {f'{MODEL}{name}': repr(value) for name, value in cfg.model.to_dict().items()}
    for split, reward in rewards.items():
        if reward is None or not reward.needs_data:
            continue
        name = f'{split}_dataloader.dataset'
        dataset = cfg[f'{split}_dataloader'].dataset.to_dict()
        dataset.pop('data_root', None)  # the data may move
        facts |= {f'{name}.{key}': repr(value) for key, value in dataset.items()}
        file = getattr(reward, 'annotation_file', None)
        if file:
            facts[f'annotations of {name}'] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return facts


def ready_settings(cfg: Config, no_data: bool) -> None:
    """Give a config the settings with which a frontier is measured and its points are pruned.

    Args:
        cfg (Config): Is changed.
        no_data (bool): Whether no data set may be opened.
    """
    add_settings(cfg, 'zero_data' if no_data else 'frontier')
    told = read_settings(cfg.autodfp.to_dict())
    build(RECONSTRUCTORS, told.reconstructor)  # for its error, before wrong settings of its images are used
    cfg.autodfp.finalists = 0  # without a search there are none, and no image has to be set aside
    if no_data and 'SyntheticReward' not in str(told.reward['type']):
        # The model can take images like those of the reconstructor.
        images = dict(told.reconstructor.get('images') or {})
        side = ((cfg.get('model') or {}).get('network') or {}).get('image_size')  # of a classifier
        images = ({} if side is None else dict(size=side)) | {name: images[name] for name in IMAGES if name in images}
        cfg.autodfp.reward = ConfigDict(type='SyntheticReward', images=images)


def budgets_at(cfg: Config, share: Callable[[Budget], float]) -> dict | list[dict]:
    """The budgets of a config with other limits: for each a share of the dense cost."""
    own = cfg.autodfp.get('budget')
    several = isinstance(own, list | tuple)
    settings = [dict(one or {}) for one in (own if several else [own])]
    budgets = read_constraint(settings).budgets
    new = [one | dict(preserve_ratio=share(budget)) for one, budget in zip(settings, budgets, strict=True)]
    for one in new:
        one.pop('limit', None)  # it would take the ratio's place
    return new if several else new[0]


def take_point(cfg: Config, file: str | os.PathLike, limits: Mapping[str, str]) -> Choice:
    """Choose a point of a frontier and give a config the settings to prune it with.

    Args:
        cfg (Config): Is changed; its limits become the costs of the point, for the plans that it is compared with.
        file (str | os.PathLike): What :func:`frontier` wrote.
        limits (Mapping[str, str]): As of :func:`mmautodfp.frontier.choose`.

    Raises:
        AutoDFPError: The file holds no frontier, or no point is within the limits.
    """
    choice = choose(Frontier.load(file), limits, file)
    ready_settings(cfg, choice.frontier.about.get('no_data', False))

    def share(budget: Budget) -> float:
        cost = choice.point.costs.get(f'{budget.scope}_{budget.metric}')
        if cost is None:
            raise AutoDFPError(
                f'the budget is on the {budget.metric} of the {budget.scope}, which the points of {file} do not tell; '
                'measure a frontier with this budget, or set autodfp.budget to the one that it was measured with'
            )
        return cost['ratio']

    budget = budgets_at(cfg, share)
    # No other plan is allocated: it would be the point itself, or close to it.
    cfg.autodfp.update(budget=budget, allocate=False)
    return choice


def require_model(choice: Choice, cfg: Config) -> None:
    """Refuse to prune a point with other settings of the model than it was measured with, though weights are the same.

    The data may differ. A frontier that was made from Python or by an earlier version has no such settings.

    Args:
        choice (Choice): The point.
        cfg (Config): What is to be pruned; its model can be built.

    Raises:
        AutoDFPError: A setting differs; it is named.
    """
    known = choice.frontier.identity.get(FURTHER)
    if known is not None:
        of_data = {name: fact for name, fact in known.items() if not name.startswith(MODEL)}
        choice.frontier.require({FURTHER: of_data | _identify(cfg, {})}, choice.source)
