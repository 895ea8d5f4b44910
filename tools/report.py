"""Make the report of a finished run again: report.html and its PNGs, from what is in the run's work dir.

Example:
    python tools/report.py work_dirs/faster_rcnn_autodfp
"""

from _cli import add_device, add_trust, main, new_parser


def parse_args():
    parser = new_parser(__doc__)
    parser.add_argument('work_dir', help='what tools/prune.py left behind')
    parser.add_argument(
        '--again',
        action='store_true',
        help='measure, compare channels and look at the images again (default: only if the run did not)',
    )
    add_trust(parser)
    add_device(parser)
    return parser.parse_args()


if __name__ == '__main__':
    main('report', parse_args())
