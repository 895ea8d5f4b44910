"""Make the digits data set that the demo configs read: about 20 seconds, 175 MB, nothing is downloaded.

Example:
    python tools/make_digits.py
"""

from mmautodfp.utils.command_line import new_parser, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('--out', default='data/digits', help='folder to make (default: data/digits)')
    args = parser.parse_args(argv)

    from mmautodfp.zoo import make_digits

    print(f'digits data set: {make_digits(args.out)}')


if __name__ == '__main__':
    main()
