"""Print the README's tables of "Beyond the paper" from the measured figures.

Example:
    python tools/tables.py configs/demo/results/least_squares
"""

from pathlib import Path

from _cli import new_parser, told


def tables(folder: Path) -> str:
    """All tables of a folder of results, as they stand in the README.

    Raises:
        AutoDFPError: The folder holds no such results.
    """
    from mmautodfp import AutoDFPError
    from mmautodfp.fileio import load_json
    from mmautodfp.report.tables import NAMES, ablation_table, correlation_table, uniform_table

    results = {
        name: load_json(folder / f'{name}.json', 'the figures') for name in NAMES if (folder / f'{name}.json').is_file()
    }
    if not results:
        raise AutoDFPError(f'tables were to be made of {folder}, but it holds none of {", ".join(NAMES)} as .json')
    parts = ['Uniform plans, no search, no data, after the full pass:', uniform_table(results, 'full')]
    for name, result in results.items():
        if len(result['variants']) > 1:
            parts += [f'Parts of the recipe, {NAMES[name]}:', ablation_table(result)]
    for name in NAMES:
        if (folder / f'rank_{name}.json').is_file():
            ranks = load_json(folder / f'rank_{name}.json', 'the figures')
            truth = f'{ranks["metric"]} on {ranks["images"]} images'
            parts += [f"Spearman's rank correlation with the {truth}, {NAMES[name]}:", correlation_table(ranks)]
    return '\n\n'.join(parts)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument('folder', type=Path, help='where the JSON files are')
    print(tables(parser.parse_args().folder))


if __name__ == '__main__':
    with told('tables'):
        main()
