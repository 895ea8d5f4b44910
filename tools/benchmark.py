"""Measure the tool itself; each figure is a ratio within one run.

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
search      random search, CMA-ES and SAC on the same task, over five seeds, beside the plans that need no search; what
            --out holds already is kept
objectives  one search for many preferences against weighted searches, random plans and the frontier: hypervolumes
            over five seeds
fine_tuning a pruned detector trained for a short while: from ours, from uniform pruning and from random weights of its
            shape, over three seeds; figures that --out holds already are kept
robustness  the dense and the pruned detectors on blurred, noisy, darker and compressed test images; the same of --out
families    which of MMDetection's detectors can be pruned as a whole: one config of each family, or the one named
"""

import json
import sys
from argparse import SUPPRESS
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, option_of, read_options, told

#: What can be measured, and the options that it takes beside --out.
KINDS = dict(
    kernels=('repeat',),
    latency=('repeat', 'size', 'whole', 'divisors'),
    memory=('size',),
    overhead=('repeat',),
    search=('repeat', 'episodes', 'only', 'finalists', 'cfg_options'),
    reward=('repeat',),
    racing=('repeat',),
    precision=('repeat',),
    ranks=('repeat',),
    families=(),
    objectives=('repeat', 'episodes', 'cfg_options'),
    fine_tuning=('repeat', 'share', 'epochs', 'lr_factors', 'cfg_options'),
    robustness=('share', 'cfg_options'),
)
#: What --repeat is to those that do not call it so.
REPEATED = dict.fromkeys(('racing', 'search', 'objectives', 'fine_tuning'), 'seeds') | dict(
    precision='plans', overhead='episodes', ranks='episodes'
)


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.argument_default = SUPPRESS  # what is not given is left to the function that measures
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
    given = vars(parser.parse_args(argv))
    what, config, out = (given.pop(name) for name in ('what', 'config', 'out'))
    if not given['cfg_options']:
        del given['cfg_options']
    if config is None and what not in ('kernels', 'families'):
        parser.error(f'{what} needs a config')
    for name in given:
        if name not in KINDS[what]:
            parser.error(f'{what} has no {option_of(name)}')
    whole = given.pop('whole', False)
    if 'divisors' in given and not whole:
        parser.error('--divisors is for latency --whole')
    if 'cfg_options' in given:
        given['cfg_options'] = read_options(given['cfg_options'])
    if 'repeat' in given:
        if given['repeat'] < 1:
            parser.error(f'--repeat must be 1 or more, got {given["repeat"]}')
        given[REPEATED.get(what, 'repeat')] = given.pop('repeat')

    from mmautodfp.experiments import benchmark_episodes as episodes
    from mmautodfp.experiments.benchmark_fine_tuning import benchmark_fine_tuning
    from mmautodfp.experiments.benchmark_kernels import benchmark_kernels
    from mmautodfp.experiments.benchmark_latency import benchmark_latency, benchmark_whole
    from mmautodfp.experiments.benchmark_memory import benchmark_memory
    from mmautodfp.experiments.benchmark_objectives import benchmark_objectives
    from mmautodfp.experiments.benchmark_robustness import benchmark_robustness
    from mmautodfp.experiments.benchmark_search import benchmark_search
    from mmautodfp.experiments.families import measure_families
    from mmautodfp.utils.fileio import load_json, save_json

    tell_aside = lambda line: print(line, file=sys.stderr)

    def keep(result: dict, line: str) -> None:
        tell_aside(line)
        if out:
            save_json(result, out)

    measure_latency = benchmark_whole if whole else benchmark_latency
    known = load_json(out, 'the earlier result') if out and out.exists() else None
    going_on = dict(known=known, report=keep)  # with what the earlier result has
    calls = dict(
        kernels=lambda: benchmark_kernels(**given),
        latency=lambda: measure_latency(config, **given),
        memory=lambda: benchmark_memory(config, **given),
        overhead=lambda: episodes.benchmark_overhead(config, **given),
        reward=lambda: episodes.benchmark_reward(config, **given),
        racing=lambda: episodes.benchmark_racing(config, **given),
        precision=lambda: episodes.benchmark_precision(config, **given),
        ranks=lambda: episodes.benchmark_ranks(config, **given),
        search=lambda: benchmark_search(config, **given, **going_on),
        objectives=lambda: benchmark_objectives(config, **given, tell=tell_aside),
        fine_tuning=lambda: benchmark_fine_tuning(config, **given, **going_on),
        robustness=lambda: benchmark_robustness(config, **given, **going_on),
        families=lambda: measure_families([config] if config else None, tell=tell_aside),
    )
    result = calls[what]()
    if whole or what == 'memory':  # several detectors share a file
        result = (known or {}) | {Path(config).stem: result}
    print(json.dumps(result, indent=2))
    if out:
        save_json(result, out)


if __name__ == '__main__':
    main()
