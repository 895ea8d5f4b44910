"""Prune a trained detector or classifier without its training data.

Example:
    python tools/prune.py configs/faster_rcnn_autodfp.py --preserve-ratio 0.8
"""

from _cli import add_common_arguments, main, new_parser


def parse_args():
    parser = new_parser(__doc__)
    parser.add_argument('config', help='config with the search settings, such as configs/*_autodfp.py')
    parser.add_argument('checkpoint', nargs='?', help="trained weights, file or URL (default: the config's load_from)")
    parser.add_argument('--preserve-ratio', type=float, help='share of the parameters (or FLOPs) that stays, 0 to 1')
    parser.add_argument('--episodes', type=int, help='plans that the search tries')
    parser.add_argument('--seed', type=int, help='seed of the search')
    parser.add_argument('--resume', action='store_true', help='go on with the search in the work dir')
    add_common_arguments(parser)
    return parser.parse_args()


if __name__ == '__main__':
    main('prune', parse_args())
