"""Evaluate a detector or classifier, dense or pruned.

Example:
    python tools/test.py work_dirs/faster_rcnn_autodfp/pruned.py work_dirs/faster_rcnn_autodfp/pruned.pth
"""

from mmautodfp.utils.command_line import add_common_arguments, new_parser, read_arguments, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='its config, such as the pruned.py that tools/prune.py wrote')
    parser.add_argument('checkpoint', help='its weights, file or URL')
    add_common_arguments(parser)
    arguments = read_arguments(parser, argv)

    from mmautodfp.runs import evaluate

    evaluate(**arguments)


if __name__ == '__main__':
    main()
