"""Checkpoints as the command line names them: files or URLs."""

import os
import re
from pathlib import Path

from torch.hub import download_url_to_file, get_dir

from mmautodfp.utils import AutoDFPError


def find_checkpoint(source: str | None, config: str | os.PathLike) -> str:
    """A local path; URLs are fetched into torch's cache, once."""
    if not source:
        raise AutoDFPError(f'a checkpoint is needed: name one on the command line or as load_from in {config}')
    if not isinstance(source, str):
        raise AutoDFPError(f'load_from in {config} names a checkpoint by its path or URL, got {source!r}')
    if not re.match('https?://', source, re.IGNORECASE):
        return source
    path = Path(get_dir()) / 'checkpoints' / Path(re.split('[?#]', source)[0]).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = re.search(r'-([0-9a-f]{8,})\.\w+$', path.name)  # OpenMMLab puts it into the name
            download_url_to_file(source, str(path), hash_prefix=digest[1] if digest else None)
        except Exception as error:  # of many kinds, also for a URL that is none
            raise AutoDFPError(
                f'checkpoint {source} cannot be fetched ({error}); fetch it by other means and name the file'
            ) from None
    return str(path)
