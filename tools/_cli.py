"""What the command-line tools share: common arguments, the choice of device, errors without a traceback."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KEPT = {
    'prune': '; if episodes were finished, they are kept and the same command with --resume goes on',
    'sweep': '; what was finished is kept: the same command goes on',
    'ablation': '; figures that were finished are kept: the same command goes on',
    'reproduce': '; searches that were begun are kept: the same command goes on',
}


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that mmdet's tools have as well."""
    parser.add_argument('--work-dir', help='where the results go (default: work_dirs/<config name>)')
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


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of the config, such as autodfp.reward.num_images=200',
    )


def _device(text: str) -> str:
    kind, _, index = text.partition(':')
    if kind not in ('cpu', 'cuda') or (index and not (kind == 'cuda' and index.isdigit())):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; say 'cpu', 'cuda' or 'cuda:N'")
    return text


@contextmanager
def told(command: str) -> Iterator[None]:
    """End the tool with code 2 and one sentence if a request cannot be met, with 130 if it is interrupted."""
    from mmautodfp.utils import AutoDFPError

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # as schedulers stop a job
    try:
        yield
    except AutoDFPError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except FileNotFoundError as error:
        print(f'error: a file is needed that is not there: {error.filename or error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'interrupted{KEPT.get(command, "")}', file=sys.stderr)
        sys.exit(130)


def main(command: str, args: argparse.Namespace) -> None:
    """Run a command of the package; exit code 2 and one sentence if the request cannot be met."""
    # mmengine looks for a GPU when it is imported, so the choice has to be made before that.
    kind, _, index = (args.device or '').partition(':')
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    elif index:
        # A scheduler may have given this job some of the GPUs: N counts among those.
        visible = [gpu for gpu in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if gpu]
        os.environ['CUDA_VISIBLE_DEVICES'] = visible[int(index)] if int(index) < len(visible) else index
    os.environ.setdefault('LOCAL_RANK', str(getattr(args, 'local_rank', 0)))

    import torch

    from mmautodfp.deploy.mmdeploy import export_end2end
    from mmautodfp.deploy.onnx import export_onnx
    from mmautodfp.experiments.sweep import sweep
    from mmautodfp.outputs.report import remake_report
    from mmautodfp.runs import evaluate, prune
    from mmautodfp.utils import AutoDFPError

    def report(**arguments):
        print(f'{remake_report(**arguments)} is the report, its pictures are in the folder report beside it')

    commands = dict(prune=prune, evaluate=evaluate, sweep=sweep, report=report)
    commands |= dict(export=export_onnx, export_mmdeploy=export_end2end)

    arguments = vars(args)
    device = arguments.pop('device')
    arguments.pop('local_rank', None)
    with told(command):
        if kind == 'cuda' and not torch.cuda.is_available():
            raise AutoDFPError(f'device {device} was asked for, but torch finds no GPU; use --device cpu')
        if 'cfg_options' in arguments:
            arguments['cfg_options'] = read_options(arguments['cfg_options'])
        commands[command](**arguments)


def read_options(options: list[str]) -> dict:
    """KEY=VALUE pairs, read as mmengine reads them."""
    from mmengine.config import DictAction

    from mmautodfp.utils import AutoDFPError

    for option in options:
        if '=' not in option:
            raise AutoDFPError(f'--cfg-options takes KEY=VALUE, got {option!r}')
    namespace = argparse.Namespace()
    DictAction(['--cfg-options'], 'options')(None, namespace, options)
    return namespace.options
