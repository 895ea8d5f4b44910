"""Configs as the command line names them, with its overrides."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config import config as config_module
from mmengine.hub import get_config
from mmengine.utils import is_installed

from mmautodfp.hooks import read_settings
from mmautodfp.outputs import PRUNED
from mmautodfp.reconstruction import SyntheticImages
from mmautodfp.utils import AutoDFPError, last_line
from mmautodfp.utils.configs import name_nms, scale_of_tests
from mmautodfp.utils.registry import RECONSTRUCTORS, build, build_settings

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / '.mim' / 'configs'
# A classifier's picture that is longer than so many times its shorter side is made smaller still.
LONGEST = 10


def find_config(config: str | os.PathLike) -> Path:
    """A config file by its path, or by the name of one that comes with the package.

    Args:
        config (str | os.PathLike): A path, or the end of one below ``configs`` with or without ``.py``, such as
            ``demo/vgg_digits_autodfp`` or ``vgg_digits_autodfp.py``; or that of a package of OpenMMLab, such as
            ``mmdet::yolox/yolox_tiny_8xb8-300e_coco.py``.

    Raises:
        AutoDFPError: There is none.
    """
    path = Path(config)
    if path.is_file():
        return path
    if '::' in str(config):  # such as mmdet::yolox/yolox_tiny_8xb8-300e_coco.py
        with contextlib.suppress(Exception):  # raised in many kinds if the file is not there
            if is_installed(str(config).partition('::')[0]):  # else mmengine would install the package
                return Path(get_config(str(config)).filename)
    name = Path(str(config).removesuffix('.py') + '.py').parts
    for known in sorted(CONFIGS.rglob('*.py')):
        if known.relative_to(CONFIGS.parent).parts[-len(name) :] == name:
            return known
    raise AutoDFPError(
        f'config {config} was asked for, but there is no such file, and mmautodfp has no config of that name'
    )


def load_config(
    config: str | os.PathLike,
    work_dir: str | None = None,
    launcher: str = 'none',
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """Read a config and apply what the command line says.

    Args:
        config (str | os.PathLike): As of :func:`find_config`.
        work_dir (str | None): Defaults to the config's, else ``work_dirs/<config name>``.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        cfg_options (dict | None): Overrides, dotted keys to values.

    Raises:
        AutoDFPError: There is no such config, or it cannot be read.
    """
    path = find_config(config)
    try:
        with _own_package_found():
            cfg = Config.fromfile(path)
        cfg.merge_from_dict(_open_switches(cfg, cfg_options or {}))
        name_nms(cfg.get('model'))
    except Exception as error:  # a config is a program, and may fail in any way
        raise AutoDFPError(f'config {config} cannot be read: {type(error).__name__} {last_line(error)}') from None
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise AutoDFPError('--launcher pytorch was asked for, but this process was not started by torchrun; use it')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{path.stem}'
    return cfg


def _open_switches(cfg: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Let options such as ``distillation.steps=100`` stand beside ``distillation=True``, in the config or an option.

    The latter stands for a group of settings with their defaults, of which the former changes one. It also switches the
    group on if the config has False or None there.

    Args:
        cfg (Config): In it, True, False and None are replaced with an empty dict where an option needs one.
        options (dict[str, Any]): Dotted keys to values.

    Returns:
        dict[str, Any]: The options that are left to be merged.
    """
    own = (key for key in options if key.startswith('autodfp.'))
    groups = {key[:place] for key in own for place, sign in enumerate(key) if sign == '.'}
    for group in groups:
        *path, name = group.split('.')
        place = cfg
        for part in path:
            place = place.get(part) if isinstance(place, dict | Config) else None
        if isinstance(place, dict) and isinstance(place.get(name, {}), bool | None):
            place[name] = {}
    return {key: value for key, value in options.items() if not (key in groups and value is True)}


def load_search_config(
    config: str | os.PathLike,
    work_dir: str | None = None,
    preserve_ratio: float | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """A config that has settings of a search, with the overrides that :func:`mmautodfp.runs.prune` takes.

    Raises:
        AutoDFPError: It cannot be read, or has no such settings.
    """
    cfg = load_config(config, work_dir, cfg_options=cfg_options)
    if not isinstance(cfg.get('autodfp'), dict):
        raise AutoDFPError(
            f"{config} was to be pruned, but it has no 'autodfp' entry; put '_base_/autodfp.py' among its bases"
        )
    override_settings(cfg, preserve_ratio, episodes, seed)
    return cfg


def require_other_folder(cfg: Config, kept: bool = False) -> None:
    """Raise an :class:`AutoDFPError` if a run would overwrite the config that it is given.

    Args:
        cfg (Config): Of the run.
        kept (bool): Allow to overwrite a config that an earlier run has written there itself. Defaults to False.
    """
    config, folder = Path(cfg.filename), Path(cfg.work_dir)
    if config.resolve().parent != folder.resolve() or (kept and config.name != PRUNED and _is_written(config)):
        return
    raise AutoDFPError(
        f'the results were to go to {folder}, where {config} itself lies and would be overwritten; name another folder '
        'with --work-dir, or move the config'
    )


def _is_written(config: Path) -> bool:
    """Whether MMEngine wrote a config: nothing of it is lost when it is written again."""
    with _own_package_found():
        return Config.fromfile(config).dump() == config.read_text(encoding='utf-8')


def add_settings(cfg: Config, name: str) -> bool:
    """Give a config without settings those of the package, and override these with its own.

    Args:
        cfg (Config): It is changed if its ``autodfp`` entry is missing or names no type.
        name (str): 'zero_data' or 'autodfp', see ``configs/_base_``.

    Returns:
        bool: Whether it was changed.

    Raises:
        AutoDFPError: Its ``autodfp`` entry is no dict.
    """
    own = cfg.get('autodfp', {})
    if not isinstance(own, dict):
        raise AutoDFPError(f"the 'autodfp' entry of {cfg.filename} is to be a dict of settings, got {own!r}")
    if 'type' in own:
        return False
    settings = Config.fromfile(CONFIGS / '_base_' / f'{name}.py')
    settings.merge_from_dict(dict(autodfp=own))
    cfg.autodfp = settings.autodfp
    return True


def override_settings(cfg: Config, preserve_ratio: float | None, episodes: int | None, seed: int | None) -> None:
    """Put what the command line says of the search into a config's ``autodfp`` entry; None changes nothing.

    Raises:
        AutoDFPError: A setting of the entry is wrong, or there is one ratio for several budgets.
    """
    read_settings(cfg.autodfp.to_dict())  # for its error, before a wrong setting is used
    if preserve_ratio is not None and isinstance(cfg.autodfp.get('budget'), list | tuple):
        raise AutoDFPError(
            f'--preserve-ratio sets the limit of one budget, but {cfg.filename} has {len(cfg.autodfp.budget)}; '
            'set each with --cfg-options autodfp.budget.0.preserve_ratio=...'
        )
    if cfg.autodfp.get('budget') is None:
        cfg.autodfp.budget = {}  # None has no place for an override
    if preserve_ratio is not None:
        cfg.autodfp.budget.pop('limit', None)  # which would come before the ratio
    overrides = {'budget.preserve_ratio': preserve_ratio, 'num_episodes': episodes, 'seed': seed}
    cfg.merge_from_dict({f'autodfp.{key}': value for key, value in overrides.items() if value is not None})


def use_pictures(cfg: Config, folder: str) -> None:
    """Let a config's reconstructor, and its reward if that opens no data set, use pictures in place of drawn images.

    If the settings have no scale, a detector's pictures are made to fit in the size of its test images. A classifier's
    are made so small that their shorter side is that of the parts that are cut out of them: a small part of a large
    photograph would show next to nothing.

    Args:
        cfg (Config): Has settings; they are changed.
        folder (str): Of the pictures.

    Raises:
        AutoDFPError: Its reconstructor uses no images, or a setting is wrong.
    """
    told = read_settings(cfg.autodfp.to_dict())
    kind = type(build(RECONSTRUCTORS, told.reconstructor))
    if 'images' not in inspect.signature(kind).parameters:
        raise AutoDFPError(
            f'--images names pictures to learn from, but the reconstructor of {cfg.filename}, {kind.__name__}, '
            'looks at none; add --cfg-options autodfp.reconstructor.type=SyntheticLeastSquares'
        )
    scale, keep_ratio = scale_of_tests(cfg)
    classifies = 'network' in (cfg.get('model') or {})
    needs_none = 'SyntheticReward' in str(told.reward['type'])
    for name in ('reconstructor', 'reward') if needs_none else ('reconstructor',):
        own = dict(cfg.autodfp.get(name) or {})
        images = dict(own.get('images') or {})
        if classifies:
            side = min(build_settings(SyntheticImages, images, 'images').size)
            scale, keep_ratio = (LONGEST * side, side), True
        if 'scale' not in images:
            images |= dict(scale=scale) | ({} if keep_ratio else dict(keep_ratio=False))
        cfg.autodfp[name] = ConfigDict(own, images=images | dict(folder=folder))


@contextlib.contextmanager
def _own_package_found() -> Iterator[None]:
    """Let ``read_base()`` find our configs from a checkout: mmengine 0.10.7 looks for a package beside its metadata."""
    find = config_module.get_installed_path
    config_module.get_installed_path = lambda package: str(PACKAGE) if package == PACKAGE.name else find(package)
    try:
        yield
    finally:
        config_module.get_installed_path = find
