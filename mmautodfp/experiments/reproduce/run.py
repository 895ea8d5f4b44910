"""Measure the rows of the classifiers' tables, uniform and searched."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from mmautodfp.rewards import Reward
from mmautodfp.runs import find_config, load_config
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import REWARDS, build

from ..bench import require_judged, search_in
from .bench import NetworkBench, locate
from .paper import ALL_TABLES, NETWORKS, SEARCHED, Claim, claims

# The paper's uniform rows of ResNet-56 are from Neuron Merging, which keeps a share of each group's channels; the other
# rows keep a share of the parameters.
OF_CHANNELS = ('resnet56_cifar10',)


@dataclass(frozen=True)
class Settings:
    """What to measure, and with what.

    Attributes:
        out (Path): Folder of the result and of the searches. Searches that are there are resumed.
        checkpoints (Path | None): Folder of the weights. Defaults to None: the configs' ``load_from``.
        cifar10 (str | None): Folder or .npz file. Defaults to None: the configs'.
        imagenet (str | None): Folder of the validation images. Defaults to None: the configs'.
        tables (tuple[str, ...]): Defaults to all.
        networks (tuple[str, ...]): Defaults to all.
        episodes (int | None): Of each search. Defaults to None: no searched rows.
        search_images (int): Images that reward a search; it is judged on the rest. Defaults to 1000.
        num_images (int | None): Images for the uniform rows. Defaults to None: all.
        seed (int): Of the searches. Defaults to 0.
        cfg_options (dict | None): Further overrides of the searches' configs, dotted keys to values.
    """

    out: Path
    checkpoints: Path | None = None
    cifar10: str | None = None
    imagenet: str | None = None
    tables: tuple[str, ...] = ALL_TABLES
    networks: tuple[str, ...] = tuple(NETWORKS)
    episodes: int | None = None
    search_images: int = 1000
    num_images: int | None = None
    seed: int = 0
    cfg_options: dict | None = None


def reproduce(settings: Settings, tell: Callable[[str], None] = print) -> list[dict]:
    """Measure the rows of tables, as far as weights and images are there.

    Args:
        settings (Settings): What to measure.
        tell (Callable): Told a line after each row. Defaults to print.

    Returns:
        list[dict]: A row for each of the paper's numbers: the fields of :class:`Claim`, ``ours``, ``params_ratio``,
        ``ours_flops_ratio``, ``images``, for searches ``episodes`` and ``reward``, and ``reason``, why it was not
        measured (None if it was).

    Raises:
        AutoDFPError: A table or network is unknown.
    """
    require_in_paper(settings.tables, settings.networks)
    rows = []
    for network in settings.networks:
        wanted = claims(settings.tables, (network,))
        laboratory = _Laboratory(network, settings) if wanted else None
        for claim in wanted:
            start = time.perf_counter()
            row = asdict(claim) | laboratory.measure(claim)
            rows.append(row)
            found = row['reason'] or f'{row["ours"]:.2f} {claim.unit}'
            paper = '-' if claim.paper is None else f'{claim.paper:g}'
            tell(
                f'table {claim.table}  {network}  {claim.preserve_ratio:.1%}  {claim.method}: {found} (paper {paper})  '
                f'{time.perf_counter() - start:.1f} s'
            )
    return sorted(rows, key=lambda row: ALL_TABLES.index(row['table']))


def require_in_paper(tables: Sequence[str], networks: Sequence[str]) -> None:
    """Raise :class:`AutoDFPError` for a table or network that the paper does not have."""
    for asked, known, what in ((tables, ALL_TABLES, 'table'), (networks, NETWORKS, 'network')):
        unknown = [name for name in asked if name not in known]
        if unknown:
            also = '; 5, of detectors, is apart' if what == 'table' else ''
            raise AutoDFPError(f'{what} {unknown[0]!r} was asked for; known are {", ".join(known)}{also}')


class _Laboratory:
    """Measures the rows of one network."""

    def __init__(self, network: str, settings: Settings):
        self.network, self.settings = network, settings
        self.config = find_config(f'classification/{network}_autodfp')
        self.data_root = settings.cifar10 if network.endswith('cifar10') else settings.imagenet
        self.bench: NetworkBench | None = None
        self.missing: str | None = None
        try:
            self.checkpoint = locate(Config.fromfile(self.config).load_from, settings.checkpoints)
            self.bench = NetworkBench(self.config, self.checkpoint, self.data_root, settings.num_images)
        except AutoDFPError as error:
            self.missing = str(error)

    def measure(self, claim: Claim) -> dict:
        found = dict(ours=None, params_ratio=None, ours_flops_ratio=None, images=None, episodes=None, reward=None)
        if self.bench is None:
            return found | dict(reason=self.missing)
        try:
            measured = self._searched(claim) if claim.method in SEARCHED else self._uniform(claim)
        except AutoDFPError as error:  # such as a ratio that cannot be reached
            return found | dict(reason=str(error))
        return found | measured | dict(reason=None)

    def _uniform(self, claim: Claim) -> dict:
        bench = self.bench
        images = len(bench.reward.images)
        if claim.method == 'dense':
            return dict(ours=bench.accuracy(None, 'prune'), params_ratio=1.0, ours_flops_ratio=1.0, images=images)
        count = bench.share_of_channels if self.network in OF_CHANNELS else bench.uniform_widths
        widths = tuple(count(claim.preserve_ratio))
        found = bench.shares(widths)
        if claim.unit == 'ms':
            return found | dict(ours=bench.milliseconds(bench.unlimited.plan(widths)))
        return found | dict(ours=bench.accuracy(widths, claim.method), images=images)

    def _searched(self, claim: Claim) -> dict:
        settings, bench = self.settings, self.bench
        if settings.episodes is None:
            raise AutoDFPError('needs a search: --episodes')
        pruned_only = claim.method != 'autodfp'
        name = f'{self.network}_{claim.preserve_ratio:g}_{"prune" if pruned_only else "autodfp"}_seed{settings.seed}'
        work_dir = settings.out / 'searches' / name
        judge = self._held_out if claim.unit == '%' else None  # raises before the search if there is none
        options = self._options | ({'autodfp.reconstructor.type': 'PruneOnly'} if pruned_only else {})
        told = dict(checkpoint=self.checkpoint, preserve_ratio=claim.preserve_ratio, seed=settings.seed)
        summary = search_in(work_dir, self.config, settings.episodes, **told, cfg_options=options)
        *_, row = summary['results']
        found = dict(params_ratio=row['module_params']['ratio'], ours_flops_ratio=row['module_flops']['ratio'])
        found |= dict(episodes=summary['episodes'], images=summary['held_out_images'], reward=summary['metric'])
        plan = PruningPlan.from_json(work_dir / 'strategy.json')
        if claim.unit == 'ms':
            return found | dict(ours=bench.milliseconds(plan), images=None)
        if claim.unit == 'h':
            return found | dict(ours=summary['seconds']['search'] / summary['episodes'] * 3000 / 3600, images=None)
        if claim.method == 'search+merging':
            return found | dict(ours=100 * bench.merging.evaluate(plan, judge), images=len(judge.images))
        require_judged(row, name)
        return found | dict(ours=100 * row['held_out_metric'])

    @property
    def _options(self) -> dict:
        """Overrides of the searches' configs."""
        options = {'autodfp.reward.num_images': self.settings.search_images, 'log_level': 'WARNING'}
        options['autodfp.finalists'] = 0  # the paper has none
        options |= self.settings.cfg_options or {}
        if self.data_root is not None:
            options |= {f'{split}_dataloader.dataset.data_root': self.data_root for split in ('val', 'test')}
        return options

    @cached_property
    def _held_out(self) -> Reward:
        """Accuracy on the test images that do not reward the searches."""
        cfg = load_config(self.config, cfg_options=self._options | {'autodfp.reward.cache_gb': 0})
        reward = build(REWARDS, cfg.autodfp.reward.to_dict())
        reward.prepare(self.bench.model, cfg.val_dataloader)
        judge = reward.held_out(self.bench.model, cfg.test_dataloader)
        if judge is None:
            raise AutoDFPError(
                f'nothing is held out to judge a search on: all {len(reward.images)} images reward it; lower '
                '--search-images'
            )
        return judge
