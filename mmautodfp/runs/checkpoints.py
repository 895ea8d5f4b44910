"""Checkpoints as the command line names them: files or URLs."""

import os
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn
from torch.hub import download_url_to_file, get_dir

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_tensors


def find_checkpoint(source: str | None, config: str | os.PathLike) -> str:
    """A local path; URLs are fetched into torch's cache, once."""
    if not source:
        raise AutoDFPError(f'a checkpoint is needed: name one on the command line or as load_from in {config}')
    if not isinstance(source, str):
        raise AutoDFPError(f'load_from in {config} names a checkpoint by its path or URL, got {source!r}')
    if urlparse(source).scheme not in ('http', 'https'):
        return source
    path = Path(get_dir()) / 'checkpoints' / Path(urlparse(source).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = re.search(r'-([0-9a-f]{8,})\.\w+$', path.name)  # OpenMMLab puts it into the name
            download_url_to_file(source, str(path), hash_prefix=digest[1] if digest else None)
        except (URLError, OSError, RuntimeError) as error:
            raise AutoDFPError(
                f'checkpoint {source} cannot be fetched ({error}); fetch it by other means and name the file'
            ) from None
    return str(path)


def read_state(checkpoint: str, trust_checkpoint: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint; an :class:`AutoDFPError` if it holds none."""
    content = load_tensors(checkpoint, trust=trust_checkpoint)
    state = content.get('state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise AutoDFPError(f"checkpoint {checkpoint} holds no 'state_dict'; found {', '.join(map(str, content))}")
    return state


def adapt_state(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict under the model's own names; a classifier takes those of a bare network too."""
    adapt = getattr(model, 'adapt_state_dict', None)
    return adapt(state) if adapt else state
