"""The config of a pruned model."""

import copy
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmautodfp.graph import join_path
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.configs import forget_weights, inner_dataset, name_nms, type_name
from mmautodfp.utils.fileio import save_text

#: The config of the pruned model in a run's work dir.
PRUNED = 'pruned.py'


def kept_as(config: str | os.PathLike) -> str:
    """The name under which a run keeps the config that it was started with; ``pruned.py`` is that of its result."""
    name = Path(config).name
    return 'pruned_before.py' if name == PRUNED else name


def keep_config(cfg: Config, work_dir: str | os.PathLike) -> None:
    """Write the config of a run beside its results, as :func:`kept_as` says; one without a file has no name.

    Raises:
        AutoDFPError: It cannot be written.
    """
    if not cfg.filename:
        return
    try:
        text = cfg.dump()
    except Exception as error:  # a config may hold anything
        raise AutoDFPError(
            f'{cfg.filename} cannot be written as a config for the results ({in_one_line(error)}); let it hold only '
            'what a config can: numbers, strings, lists, dicts and types'
        ) from error
    save_text(text, Path(work_dir) / kept_as(cfg.filename))


def slim_config(
    cfg: Config, target: str, layers: dict[str, dict[str, int | bool]], checkpoint: str | os.PathLike | None
) -> Config:
    """The config of a pruned model, for stock MMDetection tools.

    Args:
        cfg (Config): Config of the dense model.
        target (str): Path of the pruned module; '' for the whole model.
        layers (dict[str, dict[str, int | bool]]): Its changed layers, as :func:`mmautodfp.surgery.Slim` takes them. If
            the model was pruned before, they are added to those of that pruning.
        checkpoint (str | os.PathLike | None): Becomes ``load_from``, so that a training starts from the pruned model.

    Returns:
        Config: Builds the slim model, and has no settings of the search.

    Raises:
        AutoDFPError: The model takes an argument that :func:`mmautodfp.surgery.SlimModel` takes.
    """
    cfg = copy.deepcopy(cfg)
    layers = {join_path(target, name): sizes for name, sizes in layers.items()}
    if type_name(cfg.model) == 'SlimModel':  # pruned before
        before = cfg.model.layers
        cfg.model.layers = [*(before if isinstance(before, list) else [before]), layers]
    else:
        forget_weights(cfg.model)
        dense = {name: value for name, value in cfg.model.items() if name != 'type'}
        for name in ('layers', 'slim_type'):
            if name in dense:
                raise AutoDFPError(
                    f'the model of {cfg.filename} takes {name}, a name that mmautodfp.SlimModel needs for itself; '
                    'give this argument of your model another name'
                )
        kind = cfg.model.type
        if not isinstance(kind, str):  # MMEngine writes classes down under 'type' alone
            kind = f'{kind.__module__}.{kind.__qualname__}'
        # Around the whole model: a detector adds its train_cfg and test_cfg to the configs of its heads.
        cfg.model = ConfigDict(type='mmautodfp.SlimModel', slim_type=kind, layers=layers, **dense)
    for name in ('model', 'tta_model'):
        name_nms(cfg.get(name))
    for name in ('autodfp', 'work_dir', 'launcher', 'resume'):
        cfg.pop(name, None)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if 'AutoDFPHook' not in str(hook.get('type'))]
    cfg.load_from = None if checkpoint is None else str(checkpoint)
    return cfg


def read_metainfo(runner: Runner, may_open: bool) -> dict[str, Any]:
    """Metainfo of the data set; from its class and the config alone if no file may be opened."""
    if may_open:
        return runner.test_dataloader.dataset.metainfo
    loader = runner.cfg.get('test_dataloader') or {}
    dataset = inner_dataset(loader.get('dataset') or {})
    cls = dataset.get('type')
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(None) as registry:  # a bare name is MMDetection's, not MMEngine's
            cls = registry.get(cls)
    return {**getattr(cls, 'METAINFO', {}), **(dataset.get('metainfo') or runner.cfg.get('metainfo') or {})}
