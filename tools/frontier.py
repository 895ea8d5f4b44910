"""Measure what is left of a detector or classifier at 21 points from the dense model down, without a search.

Plans are nested, and each gets the full pass. tools/prune.py --from-frontier prunes a point of it.

Example:
    python tools/frontier.py configs/faster_rcnn_zero_data.py
    python tools/frontier.py my_detector.py my_detector.pth --no-data
"""

from mmautodfp.utils.command_line import add_common_arguments, add_images, new_parser, read_arguments, told


@told('points that were finished are kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='config file, or the name of one of ours, such as faster_rcnn_autodfp')
    parser.add_argument('checkpoint', nargs='?', help="trained weights, file or URL (default: the config's load_from)")
    parser.add_argument('--points', type=int, default=21, help='how many, the dense model included (default: 21)')
    parser.add_argument(
        '--no-data',
        action='store_true',
        help="open no data set: how alike the model's outputs stay on synthetic images",
    )
    add_images(parser)
    add_common_arguments(parser, 'work_dirs/<config name>_frontier')
    arguments = read_arguments(parser, argv)

    from mmautodfp.runs import frontier

    frontier(**arguments)


if __name__ == '__main__':
    main()
