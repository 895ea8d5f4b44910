"""Print tables of docs/measurements.md and docs/reproduction.md from the measured figures, or draw README's picture.

Example:
    python tools/tables.py configs/demo/results/least_squares
    python tools/tables.py configs/demo/results/least_squares --picture .github/no_data.png
    python tools/tables.py configs/classification/results
"""

from pathlib import Path

from mmautodfp.utils.command_line import new_parser, told


def tables(folder: Path) -> str:
    """All tables of a folder of results, as they are in the docs.

    Raises:
        AutoDFPError: The folder holds no such results.
    """
    from mmautodfp.experiments.reproduce.report import compact
    from mmautodfp.experiments.sweep import markdown
    from mmautodfp.experiments.tables import NAMES, ablation_table, correlation_table, variant_table
    from mmautodfp.utils import AutoDFPError
    from mmautodfp.utils.fileio import load_json

    found = {path.stem: load_json(path, 'the figures') for path in sorted(folder.glob('*.json'))}
    # The rows of a whole_*.json are a dict.
    reproduced = [one for one in found.values() if isinstance(one, dict) and isinstance(one.get('rows'), list)]
    if reproduced:
        return compact(reproduced)
    results = {name: found[name] for name in NAMES if name in found}
    if not results:
        raise AutoDFPError(f'tables were to be made of {folder}, but it holds none of {", ".join(NAMES)} as .json')
    whole, allocated = 'full', 'full, allocated plan'
    parts = ['Uniform plans, no search, no data, after the full pass:', variant_table(results, whole)]
    parts += ['The same with allocated plans, which have no more parameters than the uniform ones:']
    parts += [variant_table(results, allocated)]
    for name, result in results.items():
        if set(result['variants']) - {whole, allocated}:
            parts += [f'Parts of the recipe, {NAMES[name]}:', ablation_table(result)]
    for name in NAMES:
        ranks = found.get(f'rank_{name}')
        if ranks:
            truth = f'{ranks["metric"]} on {ranks["images"]} images'
            parts += [f"Spearman's rank correlation with the {truth}, {NAMES[name]}:", correlation_table(ranks)]
    cells = [cell for name, content in found.items() if name.startswith('sweep_') for cell in content]
    if cells:
        parts += ['With a search on top, on images that it has not seen:', '\n'.join(markdown(cells))]
    return '\n\n'.join(parts)


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('folder', type=Path, help='where the JSON files are')
    parser.add_argument(
        '--picture', type=Path, help="PNG to draw instead, beside the figures of the parent folder's sweep.json"
    )
    args = parser.parse_args(argv)
    if args.picture is None:
        print(tables(args.folder))
        return

    from mmautodfp.experiments.tables import NAMES, draw_without_search
    from mmautodfp.utils.fileio import load_json

    results = {name: load_json(args.folder / f'{name}.json', 'the figures') for name in list(NAMES)[:4]}
    draw_without_search(args.picture, results, load_json(args.folder.parent / 'sweep.json', 'the sweep'))


if __name__ == '__main__':
    main()
