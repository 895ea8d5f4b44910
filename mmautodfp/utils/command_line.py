"""What the command-line tools have in common: arguments, the choice of device, errors without a traceback."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

from .errors import AutoDFPError


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_common_arguments(parser: argparse.ArgumentParser, work_dir: str = 'work_dirs/<config name>') -> None:
    """Add the arguments of mmdet's tools, and ``--trust-checkpoint``; the results go to ``work_dir`` by default."""
    parser.add_argument('--work-dir', help=f'where the results go (default: {work_dir})')
    add_device(parser)
    # torch.distributed.launch passes it, and so do scripts written for mmdet's tools.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    add_trust(parser)
    add_cfg_options(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='allow a checkpoint that holds Python objects; reading it can run code hidden in it',
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument('--device', type=_device, help="'cpu', 'cuda' or 'cuda:N' (default: a GPU if there is one)")


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add ``--images``."""
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='pictures, annotated or not, that least squares are learned on in place of drawn ones',
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of the config, such as autodfp.reward.num_images=200',
    )


def option_of(name: str) -> str:
    """What is typed for an argument of this name, such as '--max-flops'."""
    return f'--{name.replace("_", "-")}'


def read_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """A tool's arguments by name; overrides of the config are read, and the device is chosen.

    A tool must not import torch or mmengine before: mmengine looks for a GPU when it is imported.

    Args:
        parser (argparse.ArgumentParser): Knows the tool's arguments.
        argv (Sequence[str] | None): What was typed. Defaults to None: what this process was started with.

    Raises:
        AutoDFPError: The device is not there, or an override is no KEY=VALUE.
    """
    arguments = vars(parser.parse_intermixed_args(argv))
    os.environ.setdefault('LOCAL_RANK', str(arguments.pop('local_rank', 0)))
    _choose_device(arguments.pop('device', None))
    if 'cfg_options' in arguments:
        arguments['cfg_options'] = read_options(arguments['cfg_options'])
    return arguments


@contextmanager
def told(kept: str = '') -> Iterator[None]:
    """End a tool with code 2 and one sentence if a request cannot be met, and with 130 if it is interrupted.

    Args:
        kept (str): What is kept after an interrupt, as a sentence for the message. Defaults to ''.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    def once_more(ignored):
        # An interrupt in a destructor, such as that of torch's data loader, has no effect: signal again.
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        else:
            sys.__unraisablehook__(ignored)

    signal.signal(signal.SIGTERM, interrupt)  # as schedulers stop a job
    sys.unraisablehook = once_more
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _follows_interrupt(error):
            print('; '.join(filter(None, ('interrupted', kept))), file=sys.stderr)
            sys.exit(130)
        if isinstance(error, FileNotFoundError):
            error = f'a file is needed that is not there: {error.filename or error}'
        elif not isinstance(error, AutoDFPError):
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt or was raised on one, as the SyntaxError of mmengine that formats a config."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _follows_interrupt(error.__context__))


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, read as mmengine reads them."""
    from mmengine.config import DictAction

    action, found = DictAction(['--cfg-options'], 'options'), {}
    for option in options:
        if '=' not in option:
            raise AutoDFPError(f'--cfg-options takes KEY=VALUE, got {option!r}')
        namespace = argparse.Namespace()
        try:
            action(None, namespace, [option])
            readable = not re.match(r'[^=]*=\s*(dict\(|\{(?!\{))', option)  # which would be taken for text
        except (AssertionError, RecursionError):  # brackets that do not match
            readable = False
        if not readable:
            raise AutoDFPError(
                f'--cfg-options cannot read {option!r}; values within an entry are named with dots, such as '
                'autodfp.reward.num_images=200; a list of entries, such as several budgets, has to be in a config'
            )
        found |= namespace.options
    return found


def _device(text: str) -> str:
    kind, _, index = text.partition(':')
    if kind not in ('cpu', 'cuda') or (index and not (kind == 'cuda' and index.isdigit())):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; say 'cpu', 'cuda' or 'cuda:N'")
    return text


def _choose_device(device: str | None) -> None:
    kind, _, index = (device or '').partition(':')
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    elif index:
        # A scheduler may have given this job only some of the GPUs: N counts those.
        told = os.environ.get('CUDA_VISIBLE_DEVICES')
        visible = [gpu for gpu in (told or '').split(',') if gpu]
        if told is not None and int(index) >= len(visible):
            raise AutoDFPError(
                f'device {device} was asked for, but CUDA_VISIBLE_DEVICES={told!r} allows {len(visible)} of them, '
                'counted from 0; name one of these or use --device cpu'
            )
        os.environ['CUDA_VISIBLE_DEVICES'] = index if told is None else visible[int(index)]
    if kind == 'cuda':
        import torch

        if not torch.cuda.is_available():
            raise AutoDFPError(f'device {device} was asked for, but torch finds no GPU; use --device cpu')
