"""Measure the tool itself; each figure is a ratio within one run.

Figures of search, fine_tuning and robustness that --out holds already are kept: the same command goes on.

Example:
    python tools/benchmark.py reward configs/demo/faster_rcnn_digits_autodfp.py --out reward.json
    python tools/benchmark.py search configs/demo/vgg_digits_autodfp.py --episodes 100 --out searches.json

kernels     comparing and delivering the channels of a 3x3 layer with 512 of them, against per-channel loops
latency     dense and uniformly pruned to half of the FLOPs, with widths that are multiples of 1 and of 8; with --whole
            the whole detector, beside one whose backbone alone was pruned (several detectors may share an --out); on a
            GPU if there is one
memory      what a MemoryBudget counts against what torch allocates, dense and with half of the channels, in the
            backbone and as a whole (several detectors may share an --out); on a GPU if there is one
overhead    what the agent costs beside the evaluation of its plans
reward      an episode against MMDetection's runner.val() on the same images, and where its time goes
racing      searches with and without stopping hopeless plans early, over five seeds
precision   whether lower precision ranks a hundred random plans as float32 does
ranks       seconds an episode on one rank and on two
search      random search, CMA-ES and SAC on the same task, over five seeds, beside the plans that need no search
objectives  one search for many preferences against weighted searches, random plans and the frontier: hypervolumes
            over five seeds
fine_tuning a pruned detector trained for a short while: from ours, from uniform pruning and from random weights of its
            shape, over three seeds
robustness  the dense and the pruned detectors on blurred, noisy, darker and compressed test images
families    which of MMDetection's detectors can be pruned as a whole: one config of each family, or the one named
"""

import json
import sys
from argparse import SUPPRESS, ArgumentParser
from importlib import import_module
from inspect import signature
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, option_of, read_arguments, told

#: What can be measured: a module of mmautodfp.experiments and its function, whose parameters are the options; and the
#: parameter that --repeat sets.
KINDS = dict(
    kernels=('benchmark_kernels.benchmark_kernels', 'repeat'),
    latency=('benchmark_latency.benchmark_latency', 'repeat'),
    memory=('benchmark_memory.benchmark_memory', None),
    overhead=('benchmark_episodes.benchmark_overhead', 'episodes'),
    search=('benchmark_search.benchmark_search', 'seeds'),
    reward=('benchmark_episodes.benchmark_reward', 'repeat'),
    racing=('benchmark_episodes.benchmark_racing', 'seeds'),
    precision=('benchmark_episodes.benchmark_precision', 'plans'),
    ranks=('benchmark_episodes.benchmark_ranks', 'episodes'),
    families=('families.measure_families', None),
    objectives=('benchmark_objectives.benchmark_objectives', 'seeds'),
    fine_tuning=('benchmark_fine_tuning.benchmark_fine_tuning', 'seeds'),
    robustness=('benchmark_robustness.benchmark_robustness', None),
)
WHOLE = ('benchmark_latency.benchmark_whole', 'repeat')  # for latency --whole


def make_parser() -> ArgumentParser:
    """A parser of the options of all kinds; those that are not given are left out."""
    parser = new_parser(__doc__)
    parser.argument_default = SUPPRESS
    parser.add_argument('what', choices=KINDS, help='what to measure, see above')
    parser.add_argument(
        'config',
        nargs='?',
        default=None,
        help='config of a detector with the search settings; kernels need none, families takes one of mmdet, such as '
        'atss/atss_r50_fpn_1x_coco',
    )
    parser.add_argument(
        '--repeat',
        type=int,
        help='measurements (kernels, latency, reward), seeds (racing, search, objectives, fine_tuning), plans '
        '(precision), episodes (overhead, ranks)',
    )
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help="of the images (latency, memory; default: the config's)"
    )
    parser.add_argument('--whole', action='store_true', help='of latency: a detector that is pruned as a whole')
    parser.add_argument('--divisors', type=int, nargs='+', help='widths are multiples of it, for --whole (default: 8)')
    parser.add_argument('--episodes', type=int, help='for search and objectives (default: 100)')
    parser.add_argument('--only', help='regular expression that the names of searches must match')
    parser.add_argument('--finalists', type=int, help='plans of each search that are judged, for search (default: 0)')
    parser.add_argument(
        '--share',
        type=float,
        help="of the backbone's parameters that stays, for fine_tuning and robustness (default: 0.5)",
    )
    parser.add_argument('--epochs', type=int, help='of each training, for fine_tuning (default: 5)')
    parser.add_argument(
        '--lr-factors',
        type=float,
        nargs='+',
        help='shares of the learning rate, of which val chooses, for fine_tuning (default: 1 0.3 0.1 0.03)',
    )
    add_cfg_options(parser)
    parser.add_argument('--out', type=Path, default=None, help='JSON file to write as well')
    return parser


@told()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    given = read_arguments(parser, argv)
    what, config, out = (given.pop(name) for name in ('what', 'config', 'out'))
    whole = given.pop('whole', False)
    if not given['cfg_options']:
        del given['cfg_options']
    if config is None and what not in ('kernels', 'families'):
        parser.error(f'{what} needs a config')
    if whole and what != 'latency':
        parser.error(f'{what} has no --whole')
    if 'divisors' in given and not whole:
        parser.error('--divisors is for latency --whole')
    if given.get('repeat', 1) < 1:
        parser.error(f'--repeat must be 1 or more, got {given["repeat"]}')
    if min(given.get('size', [1])) < 1:
        parser.error(f'--size takes a height and a width of 1 or more, got {" ".join(map(str, given["size"]))}')

    from mmautodfp.utils.fileio import earlier_result, save_json

    place, repeated = WHOLE if whole else KINDS[what]
    module, function = place.split('.')
    measure = getattr(import_module(f'mmautodfp.experiments.{module}'), function)
    takes = set(signature(measure).parameters)
    if config and not takes & {'config', 'configs'}:
        parser.error(f'{what} takes no config')
    repeat = given.pop('repeat', None)
    for name in given:
        if name not in takes - {repeated}:
            parser.error(f'{what} has no {option_of(name)}')
    if repeat is not None:
        if repeated is None:
            parser.error(f'{what} has no --repeat')
        given[repeated] = repeat

    tell_aside = lambda line: print(line, file=sys.stderr)

    def keep(result: dict, line: str) -> None:
        tell_aside(line)
        if out:
            save_json(result, out)

    earlier = earlier_result(out)
    others = dict(config=config, configs=[config] if config else None, known=earlier, report=keep, tell=tell_aside)
    result = measure(**given, **{name: value for name, value in others.items() if name in takes})
    if whole or what == 'memory':  # several detectors share a file
        result = (earlier or {}) | {Path(config).stem: result}
    print(json.dumps(result, indent=2))
    if out:
        save_json(result, out)


if __name__ == '__main__':
    main()
