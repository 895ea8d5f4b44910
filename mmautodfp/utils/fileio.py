"""Writing files in one step, and reading checkpoints without running code in them."""

import json
import os
import pickle
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AutoDFPError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def require_folder(path: str | os.PathLike, what: str) -> None:
    """Raise an :class:`AutoDFPError` if a file is where a folder is to be made.

    Args:
        path (str | os.PathLike): The folder.
        what (str): What it is to hold, for the message.
    """
    file = next((place for place in (Path(path), *Path(path).parents) if place.is_file()), None)
    if file is not None:
        raise AutoDFPError(f'{path} was to receive {what}, but {file} is a file; name another folder')


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give the block a temporary file beside ``path``, which takes its place if no error ends the block.

    Args:
        path (str | os.PathLike): Where the content is to be; its folder is made if need be.

    Raises:
        AutoDFPError: It cannot be written: there is no room, or no permission.
    """
    path = Path(path)
    scratch = path.parent / f'.{path.stem}.{secrets.token_hex(4)}{path.suffix}'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch(exist_ok=False)  # with the usual permissions; a file of the module tempfile would be private
        yield scratch
        scratch.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError if a disk is full
        if isinstance(error, RuntimeError) and not re.search('PytorchStreamWriter|inline_container', str(error)):
            raise
        reason = getattr(error, 'strerror', None) or 'the disk is full or failing'
        raise AutoDFPError(
            f'{path} could not be written ({reason}); what was there before is untouched: make room, or name another '
            'folder, and go on from there'
        ) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


@contextmanager
def claimed(folder: str | os.PathLike) -> Iterator[None]:
    """Make a folder if need be, and lock it for the block, so that no other run can claim it.

    The lock ends with the process, too. Where the system has no locks, as on some network drives, there is none.

    Args:
        folder (str | os.PathLike): Of the results of a run.

    Raises:
        AutoDFPError: Another run has claimed it.
    """
    handle = None
    with suppress(OSError):  # who writes to the folder reports that it cannot be made or read
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AutoDFPError(
                    f'the results were to go to {folder}, but another run is at work there; wait for its end, or name '
                    'another folder with --work-dir'
                ) from None
            except OSError:  # no locks here
                pass
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # forked processes would keep the lock
            os.close(handle)


def save_text(text: str, path: str | os.PathLike) -> None:
    """Write ``text`` to ``path`` in one step."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding='utf-8')


def save_json(content: Any, path: str | os.PathLike) -> None:
    """Write ``content`` as indented JSON in one step. nan and inf are refused: they are not JSON."""
    save_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n', path)


def load_json(path: str | os.PathLike, what: str) -> Any:
    """Read JSON.

    Args:
        path (str | os.PathLike): The file.
        what (str): What it is to the user, for the message, such as 'the plan'.

    Raises:
        AutoDFPError: The file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise AutoDFPError(f'{what} was to be read from {path}, but there is no such file') from None
    except (OSError, ValueError) as error:
        raise AutoDFPError(f'{what} was to be read from {path}, but that is not readable JSON ({error})') from None


def earlier_result(file: Path | None) -> dict[str, Any] | None:
    """What an earlier measurement has left in a file; None if there is no file.

    Raises:
        AutoDFPError: The file holds something else.
    """
    if file is None or not file.exists():
        return None
    found = load_json(file, 'the earlier result')
    if not isinstance(found, dict):
        raise AutoDFPError(f'{file} was to receive a result, but it holds a {type(found).__name__}; name another file')
    return found


def portable(options: dict[str, Any]) -> dict[str, Any]:
    """Options as plain data to be kept: of absolute paths, which hold on this machine alone, only the last part."""
    return _shortened(json.loads(json.dumps(options, default=str)))


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def require_same(stored: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Refuse to go on with figures that were measured with other settings.

    Args:
        stored (dict): Settings of the figures, as JSON gives them.
        asked (dict): Settings that are asked for now, likewise.
        what (str): What the figures are to the user, such as 'the earlier result'.

    Raises:
        AutoDFPError: A setting differs; it is named.
    """
    for name, value in asked.items():
        if stored.get(name) != value:
            told = f'does not tell with what {name} it was measured'
            if name in stored:
                told = f'was measured with {name}={stored[name]!r}'
            raise AutoDFPError(
                f'{what} {told}, but {name}={value!r} is asked for now; name another file or folder, or remove that one'
            )


def save_tensors(content: dict, path: str | os.PathLike) -> None:
    """``torch.save`` in one step. ``content`` must be plain enough for ``torch.load(weights_only=True)``."""
    with atomic_path(path) as scratch:
        torch.save(content, scratch)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict to be saved: copies on the CPU, without a gradient."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_tensors(path: str | os.PathLike, what: str = 'the checkpoint', trust: bool = False) -> dict:
    """Read a ``.pth`` file onto the CPU.

    Args:
        path (str | os.PathLike): The file.
        what (str): What it is to the user, for the message. Defaults to 'the checkpoint'.
        trust (bool): Allow a file whose reading can run code in it (pickle). Defaults to False.

    Returns:
        dict: Its content.

    Raises:
        AutoDFPError: The file is missing, damaged, or needs pickle and is not trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise AutoDFPError(f'{what} was to be read from {path}, but there is no such file')
    try:
        content = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        # torch raises this both for a file that is no checkpoint and for one that holds other objects than tensors.
        foreign = re.search(r'Unsupported (?:class|global: GLOBAL) ([\w.]+)', str(error))  # torch 2.1, torch 2.6
        if foreign:
            raise AutoDFPError(
                f'{what} {path} holds more than tensors (a {foreign[1]}), and reading that can run code hidden in it; '
                'if you trust its origin, pass --trust-checkpoint'
            ) from None
        raise _damaged(path, what, error) from None
    except Exception as error:  # the bytes of another file may be taken for any instruction of pickle
        raise _damaged(path, what, error) from None
    if not isinstance(content, dict):
        raise AutoDFPError(f'{what} {path} holds a {type(content).__name__}, expected a dict of tensors')
    return content


@contextmanager
def pickle_allowed(trust: bool) -> Iterator[None]:
    """For the block, let libraries read a trusted file that needs pickle, which torch 2.6 and later would refuse."""
    name = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    if trust:
        os.environ[name] = '1'
    try:
        yield
    finally:
        if trust:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def load_weights(model: nn.Module, checkpoint: str | os.PathLike, trust: bool = False) -> None:
    """Load a checkpoint into a model, with the errors of :func:`read_state` and :func:`fit_state`.

    Weights that the model has no place for are left out, as MMEngine does.
    """
    model.load_state_dict(fit_state(read_state(checkpoint, trust), model, checkpoint), strict=False)


def read_state(checkpoint: str | os.PathLike, trust: bool = False) -> dict[str, Tensor]:
    """The state dict of a checkpoint, read with :func:`load_tensors`; an :class:`AutoDFPError` if there is none."""
    content = load_tensors(checkpoint, trust=trust)
    state = content.get('state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AutoDFPError(f"checkpoint {checkpoint} holds no 'state_dict'; found {', '.join(map(str, content))}")
    return state


def fit_state(state: dict[str, Tensor], model: nn.Module, source: str | os.PathLike) -> dict[str, Tensor]:
    """Weights under a model's own names.

    Those of another architecture are refused; mmengine would load a part of them with a warning.

    Args:
        state (dict): State dict, with or without the prefix ``module.`` of DistributedDataParallel; for a classifier,
            that of the bare network will do.
        model (nn.Module): The model that is to be given it.
        source (str | os.PathLike): Where the state came from, for the message.

    Returns:
        dict[str, Tensor]: The same tensors under the model's names.

    Raises:
        AutoDFPError: A parameter or buffer of the model is missing or has another shape.
    """
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if adapt := getattr(model, 'adapt_state_dict', None):
        state = adapt(state)
    wanted = model.state_dict()
    # Old checkpoints lack these counters, and inference never reads them.
    missing = [key for key in wanted if key not in state and not key.endswith('num_batches_tracked')]
    reshaped = [
        f'{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}'
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or reshaped:
        groups = ((missing, 'are missing'), (reshaped, 'have other shapes'))
        parts = [f'{len(keys)} {what} (such as {keys[0]})' for keys, what in groups if keys]
        raise AutoDFPError(
            f'checkpoint {source} does not fit the model of the config: of its {len(wanted)} tensors '
            f'{" and ".join(parts)}; name the checkpoint that was trained with this config'
        )
    return state


def _damaged(path: Path, what: str, error: Exception) -> AutoDFPError:
    # torch puts a paragraph of advice before the cause.
    cause = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    if not cause or isinstance(error, KeyError):  # whose text is a bare number
        cause = f'{type(error).__name__} {cause}'.strip()
    reason = cause.splitlines()[0].rstrip('.')[:160]
    return AutoDFPError(
        f'{what} {path} cannot be read, it is damaged or no checkpoint at all ({reason}); put back a copy of it, or '
        'make it anew'
    )
