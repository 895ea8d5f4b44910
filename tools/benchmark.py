"""Measure the tool itself; each figure is a ratio within one process.

Example:
    python tools/benchmark.py reward configs/demo/faster_rcnn_digits_autodfp.py --out reward.json
"""

import json
from pathlib import Path

from _cli import new_parser


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument('what', choices=['reward'], help="'reward': an episode against MMDetection's runner.val()")
    parser.add_argument('config', help='config of a detector with the search settings')
    parser.add_argument('--repeat', type=int, default=5, help='measurements, of which the median counts (default: 5)')
    parser.add_argument('--out', type=Path, help='JSON file to write as well')
    args = parser.parse_args()

    from mmautodfp.benchmark import benchmark_reward

    text = json.dumps(benchmark_reward(args.config, args.repeat), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
