"""The hook by which MMEngine's Runner prunes a model: it makes a task, searches a plan and applies it."""

from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmautodfp.api import PruningTask, SearchResult, search
from mmautodfp.costs import read_constraint
from mmautodfp.frontier import Choice
from mmautodfp.graph import join_path, samples_of
from mmautodfp.outputs import RunArtifacts, compare, keep_config, read_metainfo, search_line, slim_config
from mmautodfp.rewards import OtherDataset
from mmautodfp.search import NUM_FINALISTS, AgentSpec, Progress, on_every_rank, on_main
from mmautodfp.search.survey import Survey, survey_target
from mmautodfp.utils.configs import size_of_tests
from mmautodfp.utils.registry import AGENTS, HOOKS, RECONSTRUCTORS, REWARDS, build

from .settings import read_settings


@HOOKS.register_module()
class AutoDFPHook(Hook):
    """Searches a pruning plan and prunes the runner's model before the test loop, which then evaluates it.

    No optimizer and no training data are needed. The reward uses images of ``val_dataloader``, and the best plans are
    judged on other images of it. Reported figures are measured on images of ``test_dataloader`` that are used for
    neither.

    Args:
        **settings: The fields of :class:`mmautodfp.hooks.HookSettings`.

    Attributes:
        settings (HookSettings): The settings.
        reconstructor (Reconstructor): The compensation.
        reward (Reward): The reward.
        choice (Choice | None): A point of a frontier to apply in place of a search. Defaults to None; set it before the
            test.
        trusted (bool): Whether reading the checkpoint could run code; the report's command to repeat the run then
            allows it. Defaults to False; set it before the test.
        artifacts (RunArtifacts | None): The files of the run; None until the model is pruned.

    Raises:
        AutoDFPError: A setting is unknown or out of its range.
    """

    priority = 'VERY_LOW'  # after what other hooks do before the test

    def __init__(self, **settings: Any):
        self.settings = told = read_settings(settings)
        self.reconstructor = build(RECONSTRUCTORS, told.reconstructor)
        self.reward = build(REWARDS, told.reward)
        # Only for its error: a wrong setting should be reported before anything is loaded. The search builds its own.
        build(AGENTS, told.agent, spec=AgentSpec(1, uniform_action=(0.5, 0.5), seed=told.seed))
        self.choice: Choice | None = None
        self.trusted = False
        self.artifacts: RunArtifacts | None = None

    @property
    def num_finalists(self) -> int:
        """How many of the best plans are judged; 0 if there is only one plan."""
        if self.choice or self.settings.num_episodes == 1:
            return 0
        usual = NUM_FINALISTS if self.reconstructor.has_full_pass else 0
        return usual if self.settings.finalists is None else self.settings.finalists

    def prepare(self, runner: Runner) -> None:
        """Load the images of the rewards and build the task; :meth:`before_test` calls this.

        It sets ``task``, ``judge`` and ``held_out``. In a distributed run all ranks must call it; if it fails on one,
        all of them end.

        Args:
            runner (Runner): With the model, whose weights are loaded.

        Raises:
            AutoDFPError: There is nothing to prune, the data cannot be read, the constraint cannot be met, or another
                rank failed.
        """
        told, self.logger = self.settings, runner.logger
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.eval()
        survey, example = on_every_rank(partial(self._load_images, runner.cfg, model))
        names = ('channel_divisor', 'p_min', 'p_max', 'allocate', 'clustering', 'bias_threshold')
        self.task = PruningTask.build(
            model,
            survey,
            example,
            told.budget,
            self.reconstructor,
            **{name: getattr(told, name) for name in names},
            also_measure=[name for name in told.objectives or {} if name != 'metric'],
        )
        size = 'x'.join(map(str, example['inputs'].shape))
        self.logger.info(f'{self.task.describe()}\nFLOPs, latency and memory are those of an input of {size}')

    def _load_images(self, cfg: Config, model: nn.Module) -> tuple[Survey, dict[str, Any]]:
        """Prepare the rewards.

        Returns:
            tuple[Survey, dict[str, Any]]: The survey of the target, and the arguments of the model's ``forward`` with
            which FLOPs are counted.
        """
        told = self.settings
        self.logger.info('groups of channels are looked for and tested, which can take minutes for a whole detector')
        survey = survey_target(model, told.target, residual_streams=told.residual_streams)
        changing = [join_path(survey.path, layer) for group in survey.groups for layer in group.layers]
        slim_config(cfg, survey.path, {}, None)  # for its errors, which should not come after the search
        self.reward.prepare(model, cfg.get('val_dataloader'), changing)
        example = dict(self.reward.one_batch(), mode='tensor')
        limits = [one.asked for one in read_constraint(told.budget).budgets if one.metric != 'params']
        size = size_of_tests(cfg)
        if size and not self.reward.needs_data and any(limit.share is None for limit in limits):
            # Limits that are no shares hold for images of the test pipeline's size, not of the synthetic ones'.
            images = F.interpolate(example['inputs'], size)
            example |= dict(inputs=images, data_samples=samples_of(images))
        self.logger.info(f'each episode is rewarded with {self.reward.name} on {len(self.reward.images)} images')
        self.judge = None
        if self.num_finalists:
            self._load_judge(cfg, model)
        self.held_out = None
        if told.compare and self.reward.needs_data:
            reason = 'test_dataloader has no annotated image beyond those of the reward'
            try:
                self.held_out = self.reward.held_out(model, cfg.test_dataloader)
            except OtherDataset as error:  # no reason to fail: the search needs validation images only
                reason = str(error)
            if self.held_out is None:
                self.logger.warning(f'nothing is held out: {reason}')
        return survey, example

    def _load_judge(self, cfg: Config, model: nn.Module) -> None:
        self.judge = self.reward.judge(model, cfg.get('val_dataloader'), cfg.get('test_dataloader'))
        if self.judge is None:
            self.logger.info(
                f'{type(self.reward).__name__} has no further images to judge the best plans by: the one with the '
                'best reward stays'
            )
            return
        self.logger.info(
            f'the best plans, {self.num_finalists} at most, are judged with {self.judge.name} on '
            f'{len(self.judge.images)} other images after the full pass'
        )

    def before_test(self, runner: Runner) -> None:
        """Search, prune the runner's model, compare it with others, and write the files of the run."""
        if self.artifacts is not None:
            return  # another test with the same hook: the model is pruned already
        self.prepare(runner)
        told, task, cfg = self.settings, self.task, runner.cfg
        if self.choice:
            self.logger.info(str(self.choice))
        elif not told.objectives and all(budget.limit >= budget.dense for budget in task.constraint.budgets):
            self.logger.warning('the limit is no less than what the dense model has: nothing has to be pruned')
        keep = partial(on_main, partial(keep_config, cfg, runner.work_dir))
        if not told.resume:  # the search to go on with may be another one
            keep()
        found = self.choice.found_for(task) if self.choice else self._search(runner)
        how = dict(agent=told.agent, reconstructor=told.reconstructor)
        if self.choice:
            how['frontier'] = self.choice.describe()
        artifacts = RunArtifacts(cfg, Path(runner.work_dir), task, found, how)
        pruned = on_every_rank(partial(task.apply, found.plan, final=True))
        # First of all, so that a later error does not cost the pruned model.
        on_main(lambda: artifacts.write_model(pruned, read_metainfo(runner, self.reward.needs_data)))
        if told.resume:
            keep()
        pruned.swap()
        rows = compare(task, found, [self.reward, self.held_out], told.compare, pruned)
        if told.report:
            on_main(lambda: artifacts.gather_evidence(pruned, rows, self.reward.needs_data))
        pruned.swap()
        self.artifacts = artifacts  # from here on the runner's model is the pruned one
        on_main(lambda: artifacts.write_summary(self.reward, self.held_out, self.judge, rows, told.seed, self.trusted))
        if is_main_process():
            self.logger.info('\n'.join(['', *artifacts.table(rows)]))

    def _search(self, runner: Runner) -> SearchResult:
        told, task, cfg = self.settings, self.task, runner.cfg

        def tell(progress: Progress) -> None:
            params = task.costs.params[task.constraint.budgets[0].scope].ratio(progress.widths)
            scalars = dict(reward=progress.reward, best=progress.best_reward, params=params)
            scalars |= progress.scalars  # with an objective on the parameters, its `params` (the saved share) wins
            runner.visualizer.add_scalars({f'autodfp/{k}': v for k, v in scalars.items()}, step=progress.episode)
            tell_line(progress)

        dataset = cfg.val_dataloader.dataset.to_dict() if self.reward.needs_data else {}
        dataset.pop('data_root', None)  # the data may be moved before the search is resumed
        kept = told.num_episodes > 1 or told.resume  # a single plan leaves nothing to go on with
        with search_line(self.logger, told.num_episodes, told.log_interval) as tell_line:
            return search(
                *(task, self.reward, told.num_episodes, told.agent, told.opening_lams, told.racing),
                checkpoint=Path(runner.work_dir) / 'search.pth' if kept else None,
                resume=told.resume,
                seed=told.seed,
                identity=dict(model=repr(cfg.model.to_dict()), data=repr(dataset)),
                on_episode=tell,
                logger=self.logger,
                finalists=self.num_finalists,
                judge=self.judge,
                objectives=told.objectives,
                opening_points=told.opening_points,
            )

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the test loop's figures to the summary, write the report, and log what the run has left."""
        if not is_main_process():
            return
        self.artifacts.add_test_metrics(metrics or {})
        reason = self.artifacts.write_report() if self.settings.report else None
        if reason:
            self.logger.warning(f'the run is complete but for its report ({reason}); tools/report.py tries again')
        self.logger.info('\n'.join(['', *self.artifacts.next_steps()]))
