"""The piece that faces MMEngine: Runner in, search, pruned model out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmautodfp.registry import AGENTS, HOOKS, RECONSTRUCTORS, REWARDS, build
from mmautodfp.report import collect
from mmautodfp.search import (
    AgentSpec,
    Progress,
    PruningEnv,
    RatioRange,
    Searcher,
    on_main,
    scale_states,
    share_out,
)
from mmautodfp.surgery import LatencyBudget, PruningPlan, allocation_of, apply_plan, round_widths

from .artifacts import RunArtifacts, slim_config
from .comparison import compare
from .identity import begin_or_resume
from .preparation import count_costs, look_at_layers, measure_latency, survey
from .progress import SearchLine, search_line
from .settings import build_budget, build_racing, check_arguments, find_module, read_metainfo
from .summary import summarize


@HOOKS.register_module()
class AutoDFPHook(Hook):
    """Search a pruning plan before the test loop and leave the pruned model in the runner, for that loop to evaluate.

    It needs no optimizer and no training data. The reward uses images of ``val_dataloader``; figures to report come
    from the images of ``test_dataloader`` that the reward does not use.

    Args:
        module (str): Path of the module to prune inside the model and its config. Defaults to 'backbone'.
        budget (dict | Sequence[dict] | None): Config of the limit, see :class:`mmautodfp.surgery.Budget`, or of
            several that hold at once. Defaults to None: 90 % of the module's parameters.
        agent (dict | None): Config of the agent. Defaults to None: SAC, see :class:`mmautodfp.search.SACConfig`.
        reconstructor (dict | None): Config of the compensation. Defaults to None: the paper's (Eq. 12 and 16).
        reward (dict | None): Config of the reward. Defaults to None: COCO mAP on 500 images.
        num_episodes (int): Episodes of the search, warm-up and opening included. Defaults to 5000.
        racing (dict | bool | None): Arguments of :class:`mmautodfp.search.Racing`, which stops plans that part of the
            images show to be hopeless; True for its defaults, False for none. Defaults to None: in searches of 500
            episodes or more.
        p_min (float): Least share of channels that any unit keeps. Defaults to 0.2.
        p_max (float): Largest. Defaults to 1.
        channel_divisor (int): Every unit keeps a multiple of it or all channels; 8 suits tensor cores and SIMD.
            Defaults to 1.
        allocate (bool): Start from the plan that the reconstructor itself would choose, if it can tell (see
            :meth:`mmautodfp.surgery.Reconstructor.error_curve`): the first episode plays it, and the agent's actions
            are counted from it. Defaults to True.
        opening_lams (Sequence[float]): The first episodes (the next ones, after an allocated plan) play the uniform
            plan with these lambdas, so that the search never ends below it. Defaults to (0.0, 0.5, 1.0); () leaves it
            out, as in the paper.
        clustering (dict | None): DBSCAN's ``eps`` and ``min_samples``. Defaults to None: 0.5 and 5.
        bias_threshold (float): t of Eq. 17. Defaults to 0.5.
        compare (bool): Also evaluate the dense model, the uniform plan (pruned only, with Neuron Merging, with this
            reconstructor) and, if there is one, the allocated plan, on the reward's images and on the held-out ones.
            Defaults to True.
        checkpoint_interval (int): Episodes between two writings of ``search.pth``. Defaults to 1.
        log_interval (int): Episodes between two lines in the log; a new best plan is always told. Defaults to 10.
        resume (bool): Go on from ``search.pth`` in the work dir. Defaults to False.
        seed (int): Seed of the agent. Defaults to 0.

    Raises:
        AutoDFPError: An argument is out of its range.
    """

    priority = 'VERY_LOW'  # what other hooks do before the test is done by then

    def __init__(
        self,
        module: str = 'backbone',
        budget: dict | Sequence[dict] | None = None,
        agent: dict | None = None,
        reconstructor: dict | None = None,
        reward: dict | None = None,
        num_episodes: int = 5000,
        racing: dict | bool | None = None,
        p_min: float = 0.2,
        p_max: float = 1.0,
        channel_divisor: int = 1,
        allocate: bool = True,
        opening_lams: Sequence[float] = (0.0, 0.5, 1.0),
        clustering: dict | None = None,
        bias_threshold: float = 0.5,
        compare: bool = True,
        checkpoint_interval: int = 1,
        log_interval: int = 10,
        resume: bool = False,
        seed: int = 0,
    ):
        counts = dict(num_episodes=num_episodes, checkpoint_interval=checkpoint_interval, log_interval=log_interval)
        counts |= dict(channel_divisor=channel_divisor)
        check_arguments(module, opening_lams, clustering or {}, counts)
        self.module = module
        self.ratios = RatioRange(p_min, p_max)
        self.budget = build_budget(budget)
        self.channel_divisor = channel_divisor
        self.agent = agent or dict(type='SAC')
        self.reconstructor = build(RECONSTRUCTORS, reconstructor or dict(type='SimilarityReconstructor'))
        self.reward = build(REWARDS, reward or dict(type='CocoReward'))
        self.num_episodes = num_episodes
        self.racing_by_length = racing is None
        self.racing = build_racing(racing, num_episodes)
        self.allocate = allocate
        self.opening_lams = tuple(opening_lams)
        self.clustering = clustering or {}
        self.bias_threshold = bias_threshold
        self.compare = compare
        self.checkpoint_interval = checkpoint_interval
        self.log_interval = log_interval
        self.resume = resume
        self.seed = seed
        self.settings = dict(agent=self.agent, reconstructor=reconstructor or dict(type='SimilarityReconstructor'))
        self.artifacts: RunArtifacts | None = None
        self.line: SearchLine | None = None
        # Built once more with the real task in before_test; this tells a wrong setting before anything is loaded.
        build(AGENTS, self.agent, spec=AgentSpec(1, uniform_action=(0.5, 0.5), seed=seed))

    def prepare(self, runner: Runner) -> None:
        """Survey the loaded model, load the reward's images and set up the environment; :meth:`before_test` does it.

        All ranks of a distributed run must call it; what fails on one ends it on all.

        Args:
            runner (Runner): Its model is loaded.

        Raises:
            AutoDFPError: There is nothing to prune, the data cannot be had, the budget cannot be met, or another rank
                failed.
        """
        _on_every_rank(partial(self._load, runner))
        self._measure_latency()
        _on_every_rank(self._set_up)
        self._build_env()

    def before_test(self, runner: Runner) -> None:
        """Search, prune the runner's model and write what the run leaves behind."""
        if self.artifacts is not None:
            return  # tested once more: the model is pruned already
        self.prepare(runner)
        needs_data = self.reward.needs_data
        searcher = begin_or_resume(self, runner.cfg, Path(runner.work_dir) / 'search.pth')
        start = time.perf_counter()
        with search_line(self.logger, self.num_episodes, len(searcher.history), self.log_interval) as self.line:
            plan = searcher.run()
        seconds = time.perf_counter() - start
        artifacts = RunArtifacts(runner.cfg, Path(runner.work_dir), self.module, plan, self.settings)
        pruned = apply_plan(self.target, plan, self.reconstructor, finish=True)
        # Before anything else can go wrong.
        on_main(lambda: artifacts.write_model(self.model, self.layer_states, read_metainfo(runner, needs_data)))
        pruned.swap()
        rows = compare(self, plan, searcher.best_reward)
        if is_main_process():
            self.evidence = collect(
                *(self.model, self.target, plan, self.reconstructor, pruned.swap, runner.cfg),
                widths={row.name: row.widths for row in rows},
                needs_data=self.reward.needs_data,
                clustering=self.clustering,
            )
        pruned.swap()
        self.artifacts = artifacts  # from here on the runner's model is the pruned one
        facts = summarize(self, runner.cfg, searcher.history, seconds)
        on_main(lambda: artifacts.write_summary(facts, rows))
        if is_main_process():
            for line in artifacts.table(rows):
                self.logger.info(line)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the test loop's figures to the summary and say where everything is."""
        if is_main_process():
            self.artifacts.add_test_metrics(metrics or {})
            reason = self.artifacts.write_report(self.evidence)
            if reason:
                self.logger.warning(f'the run is complete but for its report ({reason}); tools/report.py tries again')
            for line in self.artifacts.next_steps():
                self.logger.info(line)

    def _load(self, runner: Runner) -> None:
        """No rank may wait for another in here."""
        self.logger, self.visualizer = runner.logger, runner.visualizer
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.model.eval()
        self.target = find_module(self.model, self.module)
        slim_config(runner.cfg, self.module, {}, None)  # better to know now than after the search
        self.units = survey(self.target, self.module, self.logger)
        self.reconstructor.ensure_fitted(self.target, self.model)
        self.reward.prepare(
            self.model, runner.cfg.get('val_dataloader'), [f'{self.module}.{unit.name}' for unit in self.units]
        )
        self.logger.info(f'each episode is rewarded with {self.reward.name} on {len(self.reward.images)} images')
        held_out = self.compare and self.reward.needs_data
        self.held_out = self.reward.held_out(self.model, runner.cfg.test_dataloader) if held_out else None
        if held_out and self.held_out is None:
            self.logger.warning(
                'test_dataloader has no annotated image beyond those of the reward: nothing is held out'
            )
        batch = self.reward.one_batch()
        self.flops_input = list(batch['inputs'].shape)
        self.costs = count_costs(self.model, self.target, self.units, batch)

    def _measure_latency(self) -> None:
        """On the first rank, so that all ranks keep to the same limit."""
        for budget in self.budget.budgets:
            if isinstance(budget, LatencyBudget):
                count = len(self.units)
                self.logger.info(f'latency of the {count} units at {budget.points} widths each: measured or cached')
                call = partial(measure_latency, self.model, self.target, self.units, self.reward)
                latency = on_main(partial(call, budget, self.channel_divisor))
                self.costs = replace(self.costs, latency=latency)

    def _set_up(self) -> None:
        self.dense_widths = [unit.num_channels for unit in self.units]
        least = round_widths(self.ratios.low, self.dense_widths, self.channel_divisor)
        self.budget.bind(self.costs, least, self.channel_divisor)
        self.layer_states, self.l2_rankings = look_at_layers(
            self.target, self.units, self.bias_threshold, self.clustering
        )

    def _rank_and_allocate(self) -> tuple[list[torch.Tensor], list[int] | None]:
        """Each unit's channels [N] in the order in which they stay; the widths [L] to start from, if there are any."""
        own = [self.reconstructor.ranking(unit) for unit in self.units]
        rankings = [l2 if ranking is None else ranking.cpu() for ranking, l2 in zip(own, self.l2_rankings, strict=True)]
        if not self.allocate:
            return rankings, None
        widest = round_widths(self.ratios.high, self.dense_widths, self.channel_divisor)
        return rankings, allocation_of(self.reconstructor, self.units, rankings, self.budget, widest)

    def _build_env(self) -> None:
        # On the first rank: sums on other devices may differ in their last digits, and the order of channels with them.
        rankings, self.allocation = on_main(self._rank_and_allocate)
        self.env = PruningEnv(
            names=[unit.name for unit in self.units],
            rankings=rankings,
            states=scale_states(self.layer_states),
            budget=self.budget,
            evaluate=self.evaluate,
            ratios=self.ratios,
            start=self.allocation,
        )

    @property
    def spec(self) -> AgentSpec:
        """The task as an agent sees it."""
        share = 0.5 if self.allocation else self.ratios.to_action(self.budget.uniform_ratio())
        return AgentSpec(self.env.horizon, uniform_action=(share, 0.5), seed=self.seed)

    @property
    def opening(self) -> list[torch.Tensor]:
        """Actions [L, 2] of the episodes that the search opens with."""
        allocated = [torch.full((self.env.horizon, 2), 0.5)] if self.allocation else []
        return allocated + [self.env.uniform_actions(lam) for lam in self.opening_lams]

    def build_searcher(self, checkpoint: Path | None = None, identity: dict[str, Any] | None = None) -> Searcher:
        """A search that has not begun; :meth:`prepare` must have been called.

        ``agent``, ``num_episodes``, ``seed``, ``opening_lams`` and ``racing`` of the hook may be set before, for one
        search after the other on the same task.

        Args:
            checkpoint (Path | None): File that the first rank keeps the search in. Defaults to None: not kept.
            identity (dict | None): What one that resumes it must share, see :class:`mmautodfp.search.Searcher`.
                Defaults to None.
        """
        agent, opening = build(AGENTS, self.agent, spec=self.spec), self.opening
        warmup = getattr(getattr(agent, 'config', None), 'warmup_episodes', 0)
        if len(opening) < self.num_episodes <= warmup:
            self.logger.warning(
                f'all {self.num_episodes} episodes are warm-up: the plans are random; lower agent.warmup_episodes '
                f'({warmup}) or raise num_episodes'
            )
        return Searcher(
            self.env,
            agent,
            self.num_episodes,
            opening=opening,
            checkpoint=checkpoint if is_main_process() else None,
            checkpoint_interval=self.checkpoint_interval,
            identity=identity,
            report=self._report,
            evaluate=self._evaluate_in_stages if self.racing else None,
            num_stages=len(self.reward.stages),
            racing=self.racing,
        )

    def evaluate(self, plan: PruningPlan) -> float:
        """What an episode does at its end: prune, reward, restore."""
        with apply_plan(self.target, plan, self.reconstructor):
            return self.reward(self.model)

    def _evaluate_in_stages(self, plan: PruningPlan) -> Iterator[float]:
        """The same, on more and more images; the plan is undone when the iterator is closed."""
        with apply_plan(self.target, plan, self.reconstructor):
            yield from self.reward.evaluate(self.model)

    def _report(self, progress: Progress) -> None:
        scalars = dict(reward=progress.reward, best=progress.best_reward, **progress.scalars)
        scope = self.budget.budgets[0].scope
        scalars |= dict(params=self.costs.params[scope].ratio(progress.widths))
        self.visualizer.add_scalars({f'autodfp/{k}': v for k, v in scalars.items()}, step=progress.episode)
        if self.line:
            self.line.tell(progress)


def _on_every_rank(call: Callable[[], None]) -> None:
    """A rank that fails tells the others, which would wait for it; a call must therefore wait for no rank itself."""
    share_out([call] * get_world_size())
