"""Make the report of a finished run again: report.html and its PNGs, from what is in the run's work dir.

Example:
    python tools/report.py work_dirs/faster_rcnn_autodfp
"""

from mmautodfp.utils.command_line import add_device, add_trust, new_parser, read_arguments, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('work_dir', help='what tools/prune.py left behind')
    parser.add_argument(
        '--again',
        action='store_true',
        help='measure, compare channels and look at the images again (default: only if the run did not)',
    )
    add_trust(parser)
    add_device(parser)
    arguments = read_arguments(parser, argv)

    from mmautodfp.runs.report import remake_report

    print(f'{remake_report(**arguments)} is the report, its pictures are in the folder report beside it')


if __name__ == '__main__':
    main()
