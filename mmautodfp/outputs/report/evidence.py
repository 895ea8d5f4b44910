"""What the report shows and no other file of a run holds: measured on the live model, kept as JSON."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from mmengine.config import Config
from pydantic import TypeAdapter
from sklearn.manifold import TSNE

from mmautodfp.api import PruningTask
from mmautodfp.graph import ChannelGroup, group_statistics
from mmautodfp.kernels import cluster_channels, cosine_distance
from mmautodfp.outputs.latency import measure_latency
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.fileio import load_json, save_json, weights_of
from mmautodfp.utils.timing import describe_machine, machine_line

from .parts import PartCounts, count_parts
from .pictures import Picture, compare_on_images

#: What the evidence holds, if it could be gathered.
GATHERED = ('channels', 'sizes', 'latency', 'parts', 'pictures')
SHOWN_LAYERS = 4
LATENCY_REPEAT = 10


@dataclass(frozen=True)
class ChannelMap:
    """The channels of one group, N of them.

    Attributes:
        group (str): Its name.
        labels (list[int]): [N], DBSCAN's clusters; -1 is noise.
        kept (list[int]): [K], ascending.
        partner (list[int]): [N], the retained channel that takes over most of a pruned one's work, -1 if there is none;
            a retained channel is its own partner.
        scale (list[float]): [N], factor of the partner's output.
        places (list[list[float]] | None): [N, 2], t-SNE of the cosine distances. Defaults to None: the page does not
            show the group's map.
    """

    group: str
    labels: list[int]
    kept: list[int]
    partner: list[int]
    scale: list[float]
    places: list[list[float]] | None = None


@dataclass
class Evidence:
    """What was measured and seen for the report.

    Attributes:
        channels (list[ChannelMap]): Of all groups, in forward order.
        sizes (dict[str, int]): Compared model to the bytes of its weights as ``torch.save`` writes them.
        latency (dict[str, float]): By the names of :data:`mmautodfp.outputs.latency.ROWS`, the pruned module's seconds.
        device (str): What the latency was measured on.
        parts (list[PartCounts]): Of a detector that was pruned as a whole.
        pictures (list[Picture]): Validation images with what the dense and the pruned model find.
        missing (dict[str, str]): Attribute to the reason why it is empty.
    """

    channels: list[ChannelMap] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    device: str = ''
    parts: list[PartCounts] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def gather(self, name: str, measure: Callable[[], Any]) -> None:
        """Set an attribute to what ``measure`` returns, or keep the reason why it failed.

        A run must not fail for its report, so whatever goes wrong here is told in the report alone.
        """
        self.missing.pop(name, None)
        try:
            setattr(self, name, measure())
        except Exception as error:
            self.missing[name] = in_one_line(error)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write it in one step."""
        save_json(asdict(self), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> 'Evidence':
        """Read what :meth:`to_json` wrote; :class:`AutoDFPError` if the file is missing or damaged."""
        content = load_json(path, 'what the report shows')
        try:
            return TypeAdapter(cls).validate_python({one.name: content[one.name] for one in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise AutoDFPError(
                f'what the report shows was to be read from {path}, but that is not as a run leaves it '
                f'({in_one_line(error)}); tools/report.py --again makes it anew'
            ) from None


def collect(
    task: PruningTask,
    plan: PruningPlan,
    swap: Callable[[], None],
    cfg: Config,
    widths: dict[str, dict[str, int]],
    needs_data: bool,
) -> Evidence:
    """Look at a dense model and its pruned form; both are left as they were.

    Args:
        task (PruningTask): Its model is dense at the moment.
        plan (PruningPlan): What was found.
        swap (Callable): Makes the model pruned, and dense again, see :meth:`mmautodfp.surgery.Restore.swap`.
        cfg (Config): Config of the run; images come from its ``val_dataloader``.
        widths (dict[str, dict[str, int]]): Compared model to its group widths, for the sizes.
        needs_data (bool): Whether a data set may be opened.
    """
    evidence = Evidence()
    evidence.gather('channels', lambda: map_channels(task, plan))
    evidence.gather('sizes', lambda: {name: _saved_size(task, chosen) for name, chosen in widths.items()})
    if needs_data:
        evidence.gather('pictures', lambda: compare_on_images(task.model, swap, cfg.val_dataloader.dataset))
    else:
        evidence.missing['pictures'] = 'the run opened no data set'
    return evidence


def measure_times(evidence: Evidence, work_dir: str | os.PathLike) -> None:
    """Add the latency of the run's models and the counts of their parts to the evidence.

    Args:
        evidence (Evidence): Is changed.
        work_dir (str | os.PathLike): With ``summary.json`` and ``pruned.py``.
    """
    evidence.gather('latency', lambda: measure_latency(work_dir, LATENCY_REPEAT))
    evidence.gather('parts', lambda: count_parts(work_dir))
    evidence.device = '' if 'latency' in evidence.missing else machine_line(describe_machine())


def map_channels(task: PruningTask, plan: PruningPlan) -> list[ChannelMap]:
    """Clusters and stand-ins of all groups of the plan, and the places of the channels of some.

    Args:
        task (PruningTask): Its model is dense, its reconstructor fitted.
        plan (PruningPlan): What is kept.
    """
    groups = [group for group in task.groups if group.name in plan.groups]
    maps = [_map_group(task, group, plan.groups[group.name]) for group in groups]
    shown = choose_layers(maps, SHOWN_LAYERS)
    return [
        replace(found, places=_embed(group_statistics(task.module, group)[0])) if index in shown else found
        for index, (group, found) in enumerate(zip(groups, maps, strict=True))
    ]


def choose_layers(maps: Sequence[ChannelMap], most: int) -> list[int]:
    """Indices of the layers to show: those with the most clusters, of equal ones those that lose the most channels."""
    able = [index for index, found in enumerate(maps) if len(found.labels) >= 8]
    ranked = sorted(able, key=lambda i: (-len(set(maps[i].labels)), len(maps[i].kept) / len(maps[i].labels), i))
    return sorted(ranked[:most])


@torch.no_grad()
def _map_group(task: PruningTask, group: ChannelGroup, plan: GroupPlan) -> ChannelMap:
    weight, _ = group_statistics(task.module, group)
    keep = torch.tensor(plan.keep, device=weight.device)
    channels = group.channels(keep).cpu()
    partner, scale = torch.arange(group.width), torch.ones(group.width)
    if plan.width < group.num_channels:
        delivery = task.reconstructor.reconstruct(group, keep, plan.lam).delivery.float().cpu()  # [N, K]
        most = delivery.abs().argmax(1)
        scale = delivery.gather(1, most[:, None]).squeeze(1)
        partner = torch.where(scale != 0, channels[most], -1)
    labels = cluster_channels(weight, **asdict(task.clustering)).labels
    return ChannelMap(group.name, labels.tolist(), channels.tolist(), partner.tolist(), scale.tolist())


@torch.no_grad()
def _embed(weight: torch.Tensor) -> list[list[float]]:
    """t-SNE [N, 2] of the channels by their cosine distances, as in the paper's Fig. 2."""
    distance = cosine_distance(weight.detach()).cpu().double().numpy()
    perplexity = min(30, (len(distance) - 1) / 3)
    tsne = TSNE(metric='precomputed', init='random', perplexity=perplexity, random_state=0)
    return tsne.fit_transform(distance).round(3).tolist()


def _saved_size(task: PruningTask, widths: dict[str, int]) -> int:
    """Bytes of the weights of a model with these widths on disk."""
    plan = task.plan([widths.get(group.name, group.num_channels) for group in task.groups])
    file = io.BytesIO()
    with apply_plan(task.module, plan, groups=task.groups):
        torch.save(dict(state_dict=weights_of(task.model)), file)
    return file.getbuffer().nbytes
