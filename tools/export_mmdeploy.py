"""Export a pruned detector as one ONNX file, decoding and NMS included, with mmdeploy, and hold it against torch.

mmdeploy is no dependency: pip install --no-deps mmdeploy==1.3.1 aenum. The comparison takes images of the test split.

Example:
    python tools/export_mmdeploy.py work_dirs/faster_rcnn_autodfp/pruned.py
"""

from mmautodfp.utils.command_line import add_cfg_options, add_trust, new_parser, read_arguments, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='the pruned.py that tools/prune.py wrote')
    parser.add_argument('checkpoint', nargs='?', help="its weights, file or URL (default: the config's load_from)")
    parser.add_argument('--work-dir', help='where the files go (default: mmdeploy beside the config)')
    parser.add_argument('--num-images', type=int, default=32, help='test images to compare on (default: 32)')
    parser.add_argument('--batch', type=int, default=1, help='images in one call (default: 1)')
    parser.add_argument('--opset', type=int, default=16, help="version of ONNX's operators (default: 16)")
    add_trust(parser)
    add_cfg_options(parser)
    parser.set_defaults(device='cpu')  # mmdeploy traces there, and onnxruntime is compared there
    arguments = read_arguments(parser, argv)

    from mmautodfp.deploy.mmdeploy import export_end2end

    export_end2end(**arguments)


if __name__ == '__main__':
    main()
