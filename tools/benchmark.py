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
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, read_options, told

KINDS = (
    *('kernels', 'latency', 'memory', 'overhead', 'search', 'reward', 'racing', 'precision', 'ranks'),
    *('families', 'objectives', 'fine_tuning', 'robustness'),
)
#: By option, the kinds that it is for.
KINDS_OF = dict(
    repeat=set(KINDS) - {'families', 'memory', 'robustness'},
    cfg_options=('search', 'objectives', 'fine_tuning', 'robustness'),
    size=('latency', 'memory'),
    whole=('latency',),
    divisors=('latency',),
    episodes=('search', 'objectives'),
    only=('search',),
    finalists=('search',),
    share=('fine_tuning', 'robustness'),
    epochs=('fine_tuning',),
    lr_factors=('fine_tuning',),
)


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('what', choices=KINDS, help='what to measure, see above')
    parser.add_argument(
        'config',
        nargs='?',
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
    parser.add_argument(
        '--divisors', type=int, nargs='+', default=[8], help='widths are multiples of it, for --whole (default: 8)'
    )
    parser.add_argument('--episodes', type=int, default=100, help='for search and objectives (default: 100)')
    parser.add_argument('--only', default='', help='regular expression that the names of searches must match')
    parser.add_argument(
        '--finalists', type=int, default=0, help='plans of each search that are judged, for search (default: 0)'
    )
    parser.add_argument(
        '--share',
        type=float,
        default=0.5,
        help="of the backbone's parameters that stays, for fine_tuning and robustness (default: 0.5)",
    )
    parser.add_argument('--epochs', type=int, default=5, help='of each training, for fine_tuning (default: 5)')
    parser.add_argument(
        '--lr-factors',
        type=float,
        nargs='+',
        default=[1.0, 0.3, 0.1, 0.03],
        help='shares of the learning rate, of which val chooses, for fine_tuning (default: 1 0.3 0.1 0.03)',
    )
    add_cfg_options(parser)
    parser.add_argument('--out', type=Path, help='JSON file to write as well')
    args = parser.parse_args(argv)

    if args.config is None and args.what not in ('kernels', 'families'):
        parser.error(f'{args.what} needs a config')
    for name, kinds in KINDS_OF.items():
        if args.what not in kinds and getattr(args, name) != parser.get_default(name):
            parser.error(f'{args.what} has no --{name.replace("_", "-")}')
    if args.divisors != parser.get_default('divisors') and not args.whole:
        parser.error('--divisors is for latency --whole')

    from mmautodfp.experiments import benchmark, benchmark_kernels
    from mmautodfp.experiments.benchmark_fine_tuning import benchmark_fine_tuning
    from mmautodfp.experiments.benchmark_memory import benchmark_memory
    from mmautodfp.experiments.benchmark_objectives import benchmark_objectives
    from mmautodfp.experiments.benchmark_robustness import benchmark_robustness
    from mmautodfp.experiments.benchmark_search import benchmark_search
    from mmautodfp.experiments.benchmark_whole import benchmark_whole
    from mmautodfp.experiments.families import measure_families
    from mmautodfp.utils.fileio import load_json, save_json

    detector = Path(args.config or '').stem
    tell_aside = lambda line: print(line, file=sys.stderr)

    def keep(result: dict, line: str) -> None:
        tell_aside(line)
        if args.out:
            save_json(result, args.out)

    known = load_json(args.out, 'the earlier result') if args.out and args.out.exists() else None
    options = read_options(args.cfg_options)
    going_on = dict(cfg_options=options, known=known, report=keep)  # with what the earlier result has
    calls = dict(
        kernels=lambda n=15: benchmark_kernels.benchmark_kernels(repeat=n),
        latency=lambda n=10: benchmark_kernels.benchmark_latency(args.config, n, size=args.size),
        memory=lambda: {detector: benchmark_memory(args.config, size=args.size)},
        overhead=lambda n=24: benchmark_kernels.benchmark_overhead(args.config, n),
        reward=lambda n=5: benchmark.benchmark_reward(args.config, n),
        racing=lambda n=5: benchmark.benchmark_racing(args.config, range(n)),
        precision=lambda n=100: benchmark.benchmark_precision(args.config, n),
        ranks=lambda n=24: benchmark.benchmark_ranks(args.config, n),
        search=lambda n=5: benchmark_search(args.config, args.episodes, n, args.only, args.finalists, **going_on),
        objectives=lambda n=5: benchmark_objectives(
            args.config, args.episodes, n, cfg_options=options, tell=tell_aside
        ),
        fine_tuning=lambda n=3: benchmark_fine_tuning(
            args.config, args.share, args.epochs, args.lr_factors, seeds=n, **going_on
        ),
        robustness=lambda: benchmark_robustness(args.config, args.share, **going_on),
        families=lambda: measure_families([args.config] if args.config else None, tell=tell_aside),
    )
    if args.whole:
        calls['latency'] = lambda n=5: {detector: benchmark_whole(args.config, n, 0.5, args.divisors, args.size)}
    call = calls[args.what]
    result = call() if args.repeat is None else call(args.repeat)
    if args.whole or args.what == 'memory':  # several detectors share a file
        result = (known or {}) | result
    print(json.dumps(result, indent=2))
    if args.out:
        save_json(result, args.out)


if __name__ == '__main__':
    main()
