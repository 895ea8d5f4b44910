"""Export a pruned model as ONNX, check it against torch and time it beside the dense one.

Of a detector, backbone and neck go into one file; a single-stage detector as a whole, up to what its head says of each
level, into another. Batch and size are dynamic; the input is what the model's data preprocessor makes of images.

Example:
    python tools/export_onnx.py work_dirs/faster_rcnn_autodfp/pruned.py
"""

from mmautodfp.utils.command_line import add_cfg_options, add_trust, new_parser, read_arguments, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='the pruned.py that tools/prune.py wrote')
    parser.add_argument('checkpoint', nargs='?', help="its weights, file or URL (default: the config's load_from)")
    parser.add_argument('--work-dir', help='where the files go (default: onnx beside the config)')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width to check and time at (default: those that the run counted FLOPs with)',
    )
    parser.add_argument('--batch', type=int, default=1, help='images to check and time with (default: 1)')
    parser.add_argument('--opset', type=int, default=17, help="version of ONNX's operators (default: 17)")
    parser.add_argument('--repeat', type=int, default=20, help='measurements of each latency (default: 20)')
    add_trust(parser)
    add_cfg_options(parser)
    parser.set_defaults(device='cpu')  # torch and onnxruntime are timed side by side
    arguments = read_arguments(parser, argv)

    from mmautodfp.deploy.onnx import export_onnx

    export_onnx(**arguments)


if __name__ == '__main__':
    main()
