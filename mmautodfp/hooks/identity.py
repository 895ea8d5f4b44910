"""What makes two searches the same one, so that the second may go on where the first ended; and going on."""

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from torch import nn

from mmautodfp.fileio import load_tensors
from mmautodfp.search import Racing, Searcher, on_main

if TYPE_CHECKING:
    from .autodfp_hook import AutoDFPHook


def identify(hook: 'AutoDFPHook', cfg: Config) -> dict[str, Any]:
    """What a search must share with the one that it resumes; the agent checks its own settings.

    Args:
        hook (AutoDFPHook): Prepared.
        cfg (Config): Of the run.

    Returns:
        dict[str, Any]: JSON-able facts by name, which an error names if they differ.
    """
    dataset = cfg.val_dataloader.dataset.to_dict() if hook.reward.needs_data else {}
    dataset.pop('data_root', None)  # the data may move
    names = [os.path.basename(image) for image in hook.reward.images]
    return dict(
        module=hook.module,
        units={unit.name: unit.num_channels for unit in hook.units},
        model=repr(cfg.model.to_dict()),
        data=repr(dataset),
        clustering=repr(sorted(hook.clustering.items())),
        bias_threshold=hook.bias_threshold,
        budget=hook.budget.identity,
        channel_divisor=hook.channel_divisor,
        ratios=[hook.ratios.low, hook.ratios.high],
        opening_lams=list(hook.opening_lams),
        reconstructor=repr(hook.settings['reconstructor']),
        reward=hook.reward.identity,
        stages=hook.reward.stages if hook.racing else None,
        racing=vars(hook.racing) if hook.racing else None,
        images=hashlib.sha256('\n'.join(names).encode()).hexdigest(),
        weights=digest_weights(hook.model),
        seed=hook.seed,
        allocation=hook.allocation,
    )


def digest_weights(model: nn.Module) -> str:
    """SHA-256 over the names and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def begin_or_resume(hook: 'AutoDFPHook', cfg: Config, checkpoint: Path) -> Searcher:
    """The hook's search, ready to run; a new one puts the file of an earlier one aside.

    Args:
        hook (AutoDFPHook): Prepared. If it resumes, its racing is that of the search it resumes.
        cfg (Config): Of the run.
        checkpoint (Path): File of the search.

    Raises:
        AutoDFPError: The search to resume is missing, damaged or another one.
    """
    if hook.resume and hook.racing_by_length:
        # More episodes than at first must not make another search of it.
        earlier = on_main(lambda: load_tensors(checkpoint, 'the search to resume')).get('identity') or {}
        hook.racing = Racing(**earlier['racing']) if earlier.get('racing') else None
    searcher = hook.build_searcher(checkpoint, identify(hook, cfg))
    if hook.resume:
        searcher.resume(checkpoint)
        hook.logger.info(f'resumed after {len(searcher.history)} episodes, best {searcher.best_reward:.4f}')
    elif is_main_process() and checkpoint.exists():
        previous = checkpoint.with_name(f'search.{time.strftime("%Y%m%d_%H%M%S")}_{os.getpid()}.pth')
        checkpoint.replace(previous)
        hook.logger.warning(f'{checkpoint} holds an earlier search, which is not resumed; it is now {previous}')
    return searcher
