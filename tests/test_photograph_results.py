"""The figures of docs/measurements.md, docs/results.md and README.md on photographs are those of the recorded files."""

import re
import statistics

from conftest import REPO

from mmautodfp.experiments.benchmark_search import FINISHED
from mmautodfp.experiments.reproduce import detectors
from mmautodfp.experiments.shares import OURS
from mmautodfp.utils.fileio import load_json

RESULTS = REPO / 'configs/demo/results'
COST_STEPS = ('moments', 'ranking', 'allocation', 'full')


def test_the_rows_of_worse_photographs_are_those_of_their_file():
    text = (REPO / 'docs/measurements.md').read_text()
    told = ' '.join(text.split())
    for detector, name in (('faster_rcnn', 'Faster R-CNN'), ('retinanet', 'RetinaNet')):
        found = load_json(REPO / f'configs/bccd/results/robustness_{detector}.json', 'the robustness')
        dense, *pruned = found['rows'].values()
        for condition, metric in dense.items():
            cells = [f'{row[condition]:.3f} ({row[condition] / metric:.1%})' for row in pruned]
            assert f'| {condition} | {metric:.3f} | {" | ".join(cells)} |' in text
        ours, whole = pruned[2:]
        gaps = [ours[condition] - metric for condition, metric in dense.items() if condition != 'clean']
        verb = 'the mAP of Faster R-CNN is' if detector == 'faster_rcnn' else 'that of RetinaNet'
        assert f"{verb} between {-min(gaps):.3f} below the dense one's and {max(gaps):.3f} above it" in told
        least = min(whole[condition] / metric for condition, metric in dense.items())
        kept = f'{least:.1%} of {name} ({whole["clean"] / dense["clean"]:.1%} of clear ones)'
        assert kept.replace('% of', ' % of') in told


CELLS = dict(FasterRCNN='Faster R-CNN', CascadeRCNN='Cascade R-CNN', RTMDet='RTMDet-tiny')


def test_the_tables_of_blood_cells_are_those_of_their_file():
    text, readme = ((REPO / name).read_text() for name in ('docs/measurements.md', 'README.md'))
    found, whole = (load_json(REPO / f'configs/bccd/results/{name}.json', 'the table') for name in ('table5', 'whole'))
    lines = detectors.markdown(found) + detectors.markdown(whole)
    for model, name in CELLS.items():
        lines = re.sub(rf'^\| {model}\b', f'| {name}', lines, flags=re.MULTILINE)
    rows = [line for line in lines.splitlines() if line.startswith('|') and '---' not in line]
    assert len(rows) > 40
    assert [row for row in rows if row not in text] == []
    lost = {}
    for one in found:
        for share, rows in one['rows']['backbone'].items():
            if row := rows.get(detectors.AUTODFP):
                assert len(row['metrics']) == 5
                assert row['metric'] < rows[OURS]['metric']
                lost[one['model'], share] = f'{100 * (1 - row["metric"] / one["dense"]):.1f}'
    at_90, at_half = (f'{lost["FasterRCNN", share]} and {lost["RetinaNet", share]} %' for share in ('0.9', '0.5'))
    told = f'lose {at_90} of Faster R-CNN and RetinaNet at 90 %, and {at_half} with half of the parameters'
    assert told in ' '.join(text.split())
    half = {one['config']: one['rows']['model']['0.5'][OURS]['metric'] for one in whole}
    for one in found:
        kept = one['rows']['backbone']['0.5']
        figures = [one['dense'], *(kept[f'{name}, uniform']['metric'] for name in ('pruned only', 'Neuron Merging'))]
        cells = [f'{figure:.3f}' for figure in figures] + [f'**{kept[OURS]["metric"]:.3f}**']
        cells.append(f'**{half[one["config"]]:.3f}**' if one['config'] in half else '-')
        assert f'| {CELLS.get(one["model"], one["model"])} | {" | ".join(cells)} |' in readme
        assert 0.905 < kept[OURS]['flops'] < 0.945  # as the README says below
        assert 0.795 < kept['pruned only, uniform']['flops'] < 0.815
    told = [
        f'{CELLS.get(one["model"], one["model"])} {half[one["config"]] / one["dense"]:.1%}'.replace('%', ' %')
        for one in whole
    ]
    (wide,) = load_json(REPO / 'configs/bccd/results/full_width.json', 'the table')
    share = wide['rows']['model']['0.5'][OURS]['metric'] / wide['dense']
    told.insert(1, f'of full width {share:.1%}'.replace('%', ' %'))
    assert f'keep, of their dense mAP: {", ".join(told)}.' in ' '.join(text.split())


def test_the_rows_learned_from_photographs_are_those_of_their_file():
    text = (REPO / 'docs/measurements.md').read_text()
    drawn, read = (load_json(REPO / f'configs/bccd/results/{name}.json', 'the table') for name in ('whole', 'pictures'))
    read = {one['config']: one for one in read}
    gain = lambda one, share: (
        (read[one['config']]['rows']['model'][share][OURS]['metric'] - one['rows']['model'][share][OURS]['metric'])
        / one['dense']
    )
    for share in ('0.7', '0.5', '0.35'):
        least, most = (pick(gain(one, share) for one in drawn) for pick in (min, max))
        first = f'{abs(least):.1%}'.replace('%', ' %') + (' of the dense mAP' if share == '0.7' else '')
        told = f'from {first} {"less" if least < 0 else "more"} to {most:.1%} more'.replace('% more', ' % more')
        assert told.replace('  ', ' ') in ' '.join(text.split())
    for one in drawn:
        dense, other = one['dense'], read[one['config']]
        assert other['dense'] == dense
        for method in ('ours, uniform', OURS):
            kept = [
                of['rows']['model'][share][method]['metric'] for of in (one, other) for share in ('0.7', '0.5', '0.35')
            ]
            cells = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
            assert f'| {CELLS.get(one["model"], one["model"])} ({dense:.3f}) | {method} | {" | ".join(cells)} |' in text
    unseen = load_json(REPO / 'configs/bccd/results/pictures_unseen.json', 'the table')
    kept = [
        f'{one["rows"]["model"]["0.5"][OURS]["metric"] / one["dense"]:.1%} of {CELLS.get(one["model"], one["model"])}'
        for one in unseen
    ]
    told = f'keep {", ".join(kept[:-1])} and {kept[-1]}: '.replace('%', ' %')
    assert told in ' '.join(text.split())
    page = ' '.join((REPO / 'docs/results.md').read_text().split()).replace('drawn images: ', '')
    for one in drawn:
        kept = [of['rows']['model']['0.5'][OURS]['metric'] / of['dense'] for of in (read[one['config']], one)]
        of_read, of_drawn = (f'{share:.1%}'.replace('%', ' %') for share in kept)
        assert f'{of_read} of {CELLS.get(one["model"], one["model"])} ({of_drawn})' in page


def test_the_rows_of_the_detector_of_full_width_are_those_of_its_file():
    text = (REPO / 'docs/measurements.md').read_text()
    (found,) = load_json(REPO / 'configs/bccd/results/full_width.json', 'the table')
    record = load_json(REPO / 'configs/bccd/faster_rcnn_r50_bccd.json', 'the record')
    assert round(found['dense'], 3) == record['test']['coco/bbox_mAP']
    lines = detectors.markdown([found]).replace('| FasterRCNN (', '| Faster R-CNN, full width (').splitlines()
    rows = [line for line in lines if line.startswith('| Faster R-CNN')]
    assert len(rows) == 13
    assert [row for row in rows if row not in text] == []
    dense, half, whole = found['dense'], found['rows']['backbone']['0.5'], found['rows']['model']
    kept = [half[name]['metric'] for name in ('pruned only, uniform', 'Neuron Merging, uniform', OURS)]
    kept += [whole[share][OURS]['metric'] for share in ('0.5', '0.7', '0.35')]
    short = [f'{metric:.3f}' for metric in (dense, *kept[:4])]
    short[3:] = [f'**{cell}**' for cell in short[3:]]
    told = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
    told = [short[0], *told[:2], f'**{told[2]}**', told[4], told[3], told[5]]
    for page, cells in (('README.md', short), ('docs/results.md', told)):
        assert f'| Faster R-CNN, full width | {" | ".join(cells)} |' in (REPO / page).read_text()


def test_the_page_for_practitioners_tells_the_figures_of_the_files():
    page = (REPO / 'docs/results.md').read_text()
    text = ' '.join(page.split())
    found, whole = (load_json(REPO / f'configs/bccd/results/{name}.json', 'the table') for name in ('table5', 'whole'))
    for one, all_of_it in zip(found, whole, strict=True):
        dense, half, shares = one['dense'], one['rows']['backbone']['0.5'], all_of_it['rows']['model']
        kept = [half[name]['metric'] for name in ('pruned only, uniform', 'Neuron Merging, uniform', OURS)]
        kept += [shares[share][OURS]['metric'] for share in ('0.7', '0.5', '0.35')]
        cells = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
        cells[2] = f'**{cells[2]}**'
        assert f'| {CELLS.get(one["model"], one["model"])} | {dense:.3f} | {" | ".join(cells)} |' in page
        at_90 = one['rows']['backbone']['0.9']
        if searched := at_90.get(detectors.AUTODFP):
            paper_dense, paper = detectors.PAPER[one['model']]
            changes = (paper / paper_dense, searched['metric'] / dense, at_90[OURS]['metric'] / dense)
            cells = [f'{ratio - 1:+.1%}'.replace('+0.0', '0.0').replace('-0.0', '0.0') for ratio in changes]
            assert f'| {CELLS.get(one["model"], one["model"])} | {" | ".join(cells)} |' in page
    digits = {}
    for name in ('faster_rcnn', 'mask_rcnn', 'retinanet', 'fcos'):
        table = load_json(RESULTS / f'whole_{name}.json', 'a whole detector')
        digits[name] = f'{table["rows"]["0.5"][OURS]["metric"] / table["dense"]:.1%}'.replace('%', ' %')
    assert 'Faster R-CNN keeps {}, Mask R-CNN {}, RetinaNet {} and FCOS {}.'.format(*digits.values()) in text
    for one in load_json(RESULTS / 'latency_whole.json', 'latencies').values():
        model = one['models']['whole, divisor 8']
        cells = [
            f'{model[threads][engine].get("sum", model[threads][engine])["ratio"]:.0%}'
            for engine in ('torch', 'onnxruntime')
            for threads in ('threads_1', 'threads_2')
        ]
        assert f' | {" | ".join(cells)} |' in page
    searches = load_json(RESULTS / 'least_squares/searches_resnet56_30_weights.json', 'the searches')
    gain = statistics.mean(searches['searches']['SAC'][FINISHED]) - searches['plans']['allocated']['finished']
    assert f'they bring {100 * gain:.1f} points of top-1' in text
    cost = load_json(RESULTS / 'least_squares/cost_whole.json', 'the costs')['seconds']
    assert sum(cost[name] for name in COST_STEPS) < 7 * 60
    assert 'as a whole less than seven.' in text
    tuned = load_json(REPO / 'configs/bccd/results/fine_tuning_faster_rcnn.json', 'the fine-tuning')['chosen']
    uniform = tuned['pruned only, uniform']
    assert f'uniform pruning from {uniform["before"]:.3f} to {uniform["mean"]:.3f}' in text


def test_the_rows_of_fine_tuning_are_those_of_their_file():
    text = (REPO / 'docs/measurements.md').read_text()
    found = load_json(REPO / 'configs/bccd/results/fine_tuning_faster_rcnn.json', 'the fine-tuning')
    assert f'Dense it has {found["dense"]:.3f}.' in ' '.join(text.split())
    for name, chosen in found['chosen'].items():
        rows, left = found['rows'][name], found['left'][name]
        best = max(rows, key=lambda factor: rows[factor]['0']['val'])  # val chose, not test
        after = [row['test'] for row in rows[best].values()]
        assert len(after) == 3
        assert chosen['lr_factor'] == float(best)
        cells = [f'{left["params"]:.0%}', f'{left["flops"]:.0%}', best, f'{chosen["before"]:.3f}']
        cells += [f'{statistics.mean(after):.3f} ± {statistics.stdev(after):.3f}']
        assert f'{name.replace(OURS, f"**{OURS}**")} | {" | ".join(cells)} |' in text
    ours, uniform, random = found['chosen'].values()
    story = ' '.join(text.split())
    assert f'the detector has {ours["before"]:.3f} at once' in story
    assert f'from {uniform["before"]:.3f} to {uniform["mean"]:.3f} and random' in story
    assert f'same shape to {random["mean"]:.3f}.' in story
    assert f'after two epochs ours has {ours["mean"]:.3f}.' in story
