"""Prune a trained detector or classifier without its training data.

A config without an `autodfp` entry, such as MMDetection's own, is pruned without any data and without a search.

Example:
    python tools/prune.py configs/faster_rcnn_autodfp.py --preserve-ratio 0.8
    python tools/prune.py my_detector.py my_detector.pth
    python tools/prune.py CONFIG --from-frontier work_dirs/CONFIG_frontier/frontier.json --max-flops 60%
"""

from mmautodfp.utils.command_line import add_common_arguments, add_images, new_parser, read_arguments, told

LIMITS = {
    '--max-params': '25M',
    '--max-flops': '120G or 60%%',
    '--max-latency': '40ms',
    '--max-memory': '500MB',
    '--min-metric': '0.37 or 97%%; alone, the cheapest point that meets it',
}


@told('if episodes were finished, they are kept and the same command with --resume goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='config file, or the name of one of ours, such as faster_rcnn_autodfp')
    parser.add_argument('checkpoint', nargs='?', help="trained weights, file or URL (default: the config's load_from)")
    parser.add_argument('--preserve-ratio', type=float, help='share of the parameters (or FLOPs) that stays, 0 to 1')
    parser.add_argument('--episodes', type=int, help='plans that the search tries')
    parser.add_argument('--seed', type=int, help='seed of the search')
    parser.add_argument('--resume', action='store_true', help='go on with the search in the work dir')
    parser.add_argument(
        '--search',
        action='store_true',
        help='of a config without an autodfp entry: a search rewarded on its val images',
    )
    add_images(parser)
    parser.add_argument(
        '--from-frontier',
        metavar='FILE',
        help='prune a point that tools/frontier.py measured, without a search: the best within these limits',
    )
    for option, example in LIMITS.items():
        parser.add_argument(option, help=f'limit of a point, of the whole model, such as {example}')
    add_common_arguments(parser)
    arguments = read_arguments(parser, argv)
    given = {name: arguments.pop(name) for name in (option[2:].replace('-', '_') for option in LIMITS)}
    arguments['limits'] = {name: limit for name, limit in given.items() if limit is not None}

    from mmautodfp.runs import prune

    prune(**arguments)


if __name__ == '__main__':
    main()
