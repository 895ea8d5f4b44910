"""Evaluate a detector or classifier, dense or pruned.

Example:
    python tools/test.py work_dirs/faster_rcnn_autodfp/pruned.py work_dirs/faster_rcnn_autodfp/pruned.pth
"""

from _cli import add_common_arguments, main, new_parser


def parse_args():
    parser = new_parser(__doc__)
    parser.add_argument('config', help='its config, such as the pruned.py that tools/prune.py wrote')
    parser.add_argument('checkpoint', help='its weights, file or URL')
    add_common_arguments(parser)
    return parser.parse_args()


if __name__ == '__main__':
    main('evaluate', parse_args())
