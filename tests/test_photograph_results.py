"""The figures of docs/measurements.md, docs/results.md and README.md on photographs are those of the recorded files."""

import re
import statistics

from conftest import REPO
from doc_figures import row_of, story_of, text_of

from mmautodfp.experiments.benchmark_search import FINISHED
from mmautodfp.experiments.reproduce import detectors
from mmautodfp.experiments.shares import MERGING, OURS, UNIFORM
from mmautodfp.utils.fileio import load_json

RESULTS = REPO / 'configs/demo/results'
COST_STEPS = ('moments', 'ranking', 'allocation', 'full')
PAGE, STORY = text_of('docs/measurements.md'), story_of('docs/measurements.md')
NAMES = dict(FasterRCNN='Faster R-CNN', CascadeRCNN='Cascade R-CNN', RTMDet='RTMDet-tiny')


def recorded(name: str):
    return load_json(REPO / f'configs/bccd/results/{name}.json', 'the figures')


def name_of(detector: dict) -> str:
    return NAMES.get(detector['model'], detector['model'])


def of_dense(detector: dict, share: str) -> float:
    """What our plan for a share of the whole detector's FLOPs keeps of the dense metric."""
    return detector['rows']['model'][share][OURS]['metric'] / detector['dense']


def test_the_rows_of_worse_photographs_are_those_of_their_file():
    for detector, name in (('faster_rcnn', 'Faster R-CNN'), ('retinanet', 'RetinaNet')):
        found = recorded(f'robustness_{detector}')
        dense, *pruned = found['rows'].values()
        for condition, metric in dense.items():
            cells = [f'{row[condition]:.3f} ({row[condition] / metric:.1%})' for row in pruned]
            assert row_of(condition, f'{metric:.3f}', *cells) in PAGE
        ours, whole = pruned[2:]
        gaps = [ours[condition] - metric for condition, metric in dense.items() if condition != 'clean']
        verb = 'the mAP of Faster R-CNN is' if detector == 'faster_rcnn' else 'that of RetinaNet'
        assert f"{verb} between {-min(gaps):.3f} below the dense one's and {max(gaps):.3f} above it" in STORY
        least = min(whole[condition] / metric for condition, metric in dense.items())
        assert f'{least:.1%} of {name} ({whole["clean"] / dense["clean"]:.1%} on clean ones)' in STORY


def test_what_distillation_on_photographs_brings_is_told_as_it_was_measured():
    (found,) = recorded('distilled_pictures')
    (dense,) = (one['dense'] for one in recorded('whole') if one['config'] == found['config'])
    assert found['dense'] == dense
    rows = [found['rows']['model'][share] for share in ('0.5', '0.35')]
    ours, uniform = ([f'{row[method]["metric"] / dense:.1%}' for row in rows] for method in (OURS, 'ours, uniform'))
    told = 'RTMDet keeps {} at half of the FLOPs and {} at 35% ('
    assert told.format(*ours) in STORY
    assert 'The uniform plans then keep more, {} and {}: '.format(*uniform) in STORY
    assert f'on your own pictures, {ours[0]} of RTMDet-tiny' in story_of('docs/results.md')


def test_what_searches_of_whole_detectors_bring_is_told_as_it_was_measured():
    told, gains, unmoved = {}, [], []
    for whole in recorded('whole'):
        distilled = next(one for one in recorded('distilled') if one['model'] == whole['model'])
        for share, rows in whole['rows']['model'].items():
            if row := rows.get(detectors.SEARCHED):
                assert len(row['metrics']) == 5
                assert row['metric'] < distilled['rows']['model'][share][OURS]['metric']
                gains.append(100 * (row['metric'] - rows[OURS]['metric']))
                if row['metrics'].count(rows[OURS]['metric']) == 4:
                    unmoved.append(whole['model'])
                told[whole['model'], share] = [
                    f'{row["metric"] / whole["dense"]:.1%}',
                    f'{of_dense(whole, share):.1%}',
                    f'{of_dense(distilled, share):.1%}',
                ]
    cases = ('FasterRCNN', '0.5'), ('RTMDet', '0.5'), ('FCOS', '0.5'), ('RetinaNet', '0.35'), ('FCOS', '0.35')
    faster, rtmdet, fcos, retinanet, narrow = (told.pop(case) for case in cases)
    assert f'keep {faster[0]} of Faster R-CNN ({faster[1]}), {rtmdet[0]} of RTMDet ({rtmdet[1]}) and' in STORY
    assert f'and {fcos[0]} of FCOS ({fcos[1]}) at half' in STORY
    assert f'and {retinanet[0]} of RetinaNet ({retinanet[1]}) and {narrow[0]} of FCOS ({narrow[1]}) at 35%.' in STORY
    distilled = f'{faster[2]}, {rtmdet[2]}, {fcos[2]}, {retinanet[2]} and {narrow[2]}.'
    assert f'the allocated plans keep more in each case: {distilled}' in STORY
    assert not told
    assert unmoved == ['FasterRCNN']
    assert 'Four of the five searches of Faster R-CNN end at the allocated plan' in STORY
    assert f'bring between {min(gains):.1f} and {max(gains):.1f} points, less than' in story_of('docs/results.md')


def test_the_tables_of_blood_cells_are_those_of_their_file():
    found, whole, readme = recorded('table5'), recorded('whole'), text_of('README.md')
    lines = detectors.markdown(found) + detectors.markdown(whole)
    for model, name in NAMES.items():
        lines = re.sub(rf'^\| {model}\b', f'| {name}', lines, flags=re.MULTILINE)
    rows = [line for line in lines.splitlines() if line.startswith('|') and '---' not in line]
    assert len(rows) > 40
    assert [row for row in rows if row not in PAGE] == []
    lost, ahead = {}, {}
    for one in found:
        for share, rows in one['rows']['backbone'].items():
            if row := rows.get(detectors.AUTODFP):
                assert len(row['metrics']) == 5
                if row['metric'] > rows[OURS]['metric']:
                    ahead[one['model'], share] = f'{row["metric"] - rows[OURS]["metric"]:.3f}'
                lost[one['model'], share] = f'{100 * (1 - row["metric"] / one["dense"]):.1f}'
    assert ahead == {('FCOS', '0.9'): '0.002', ('RTMDet', '0.35'): '0.006'}
    told = '*AutoDFP* in all cases but FCOS at 90% and RTMDet with 35%, where it is ahead by 0.002 and 0.006.'
    assert told in STORY
    of_tiny = [lost.pop(('RTMDet', share)) for share in ('0.9', '0.7', '0.5', '0.35')]
    assert 'RTMDet loses {}% at 90%, {}% with 70%, {}% with half and {}% with 35%'.format(*of_tiny) in STORY
    at_90, at_half = ([lost[key] for key in lost if key[1] == share] for share in ('0.9', '0.5'))
    order = 'Here Faster R-CNN, Cascade R-CNN, RetinaNet and FCOS lose, in this order:'
    assert order + ' - {}, {}, {} and {}% at 90%.'.format(*at_90) in STORY
    assert ' - {}, {}, {} and nothing with half.'.format(*at_half[:3]) in STORY
    assert float(at_half[3]) < 0
    at_70, at_35 = ([lost[key] for key in lost if key[1] == share] for share in ('0.7', '0.35'))
    assert ' - {}, {}, {} and {}% with 70%, more than with half.'.format(*at_70) in STORY
    assert ' - {}, {}, {} and {}% with 35%.'.format(*at_35) in STORY
    half = {one['config']: one['rows']['model']['0.5'][OURS]['metric'] for one in whole}
    for one in found:
        kept = one['rows']['backbone']['0.5']
        cells = [f'{figure:.3f}' for figure in (one['dense'], kept[UNIFORM]['metric'], kept[MERGING]['metric'])]
        cells.append(f'**{kept[OURS]["metric"]:.3f}**')
        cells.append(f'**{half[one["config"]]:.3f}**' if one['config'] in half else '-')
        assert row_of(name_of(one), *cells) in readme
        assert 0.905 < kept[OURS]['flops'] < 0.945  # as the README says below
        assert 0.795 < kept[UNIFORM]['flops'] < 0.815
    told = [f'{name_of(one)} {of_dense(one, "0.5"):.1%}' for one in whole]
    (wide,) = recorded('full_width')
    told.insert(1, f'of full width {of_dense(wide, "0.5"):.1%}')
    assert f'keep, of their dense mAP: {", ".join(told)}.' in STORY


def test_the_rows_learned_from_photographs_are_those_of_their_file():
    drawn, read = recorded('whole'), {one['config']: one for one in recorded('pictures')}
    at = {'0.7': 'of the dense mAP at 70% of the FLOPs,', '0.5': 'at half,', '0.35': 'at 35%.'}
    for share in at:
        gains = [of_dense(read[one['config']], share) - of_dense(one, share) for one in drawn]
        ends = f'between {abs(min(gains)):.1%} {"less" if min(gains) < 0 else "more"} and {max(gains):.1%} more'
        assert f'{ends} {at[share]}' in STORY
    for one in drawn:
        dense, other = one['dense'], read[one['config']]
        assert other['dense'] == dense
        for method in ('ours, uniform', OURS):
            kept = [
                of['rows']['model'][share][method]['metric'] for of in (one, other) for share in ('0.7', '0.5', '0.35')
            ]
            cells = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
            assert row_of(f'{name_of(one)} ({dense:.3f})', method, *cells) in PAGE
    kept = [f'{of_dense(one, "0.5"):.1%} of {name_of(one)}' for one in recorded('pictures_unseen')]
    assert f'keep {", ".join(kept[:-1])} and {kept[-1]}: ' in STORY
    page = story_of('docs/results.md').replace('drawn images: ', '')
    for one in drawn:
        of_read, of_drawn = of_dense(read[one['config']], '0.5'), of_dense(one, '0.5')
        assert f'{of_read:.1%} of {name_of(one)} ({of_drawn:.1%})' in page


def test_the_rows_of_distilled_detectors_are_those_of_their_file():
    full_pass, distilled = recorded('whole'), recorded('distilled')
    shares, gains = ('0.5', '0.35'), {}
    for one, other in zip(full_pass, distilled, strict=True):
        dense = one['dense']
        assert (other['config'], other['dense']) == (one['config'], dense)
        for method in ('ours, uniform', OURS):
            kept = [of['rows']['model'][share][method]['metric'] for of in (one, other) for share in shares]
            cells = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
            assert row_of(f'{name_of(one)} ({dense:.3f})', method, *cells) in PAGE
        for share in shares:
            gains.setdefault(share, []).append(of_dense(other, share) - of_dense(one, share))
    ends = [end(gains[share]) for share in shares for end in (min, max)]
    told = 'from {:.1%} to {:.1%} of the dense mAP at half of the FLOPs and from {:.1%} to {:.1%} at 35%'
    assert told.format(*ends) in STORY
    least = {one['model']: of_dense(one, '0.5') for one in distilled}
    assert [model for model in least if least[model] < 0.97] == ['RTMDet']
    kept = [f'{one["rows"]["model"]["0.5"][OURS]["metric"]:.3f} ({name_of(one)})' for one in distilled]
    assert f'half of all FLOPs keep {", ".join(kept[:-1])} and {kept[-1]}.' in story_of('README.md')
    story = story_of('docs/results.md')
    for one, other in zip(full_pass, distilled, strict=True):
        assert f'{of_dense(other, "0.5"):.1%} of {name_of(one)} ({of_dense(one, "0.5"):.1%})' in story


def test_what_more_steps_of_distillation_bring_rtmdet_is_told_as_it_was_measured():
    long = recorded('distilled_long_rtmdet')
    assert long['reconstructor']['distillation'] == dict(steps=4000)
    ours = 'rtmdet_tiny_bccd_autodfp'
    (short,), (without,) = ([one for one in recorded(k) if one['config'] == ours] for k in ('distilled', 'whole'))
    kept = []
    for share in ('0.5', '0.35'):
        kept.append(long['rows'][share][OURS]['metric'] / long['dense'])
        kept += [of_dense(short, share), of_dense(without, share)]
    told = 'RTMDet keeps {:.1%} of its mAP at half of the FLOPs (400 steps {:.1%}, none {:.1%}) '
    told += 'and {:.1%} at 35% ({:.1%}, {:.1%}); at 70%, {:.1%} (none {:.1%}).'
    kept += [long['rows']['0.7'][OURS]['metric'] / long['dense'], of_dense(without, '0.7')]
    assert told.format(*kept) in STORY
    assert f'RTMDet-tiny keeps {kept[0]:.1%}, and FCOS' in story_of('docs/results.md')
    metric = long['rows']['0.5'][OURS]['metric']
    assert f'With ten times as many steps, RTMDet-tiny keeps {metric:.3f}.' in story_of('README.md')


def test_the_rows_of_the_detector_of_full_width_are_those_of_its_file():
    (found,) = recorded('full_width')
    record = load_json(REPO / 'configs/bccd/faster_rcnn_r50_bccd.json', 'the record')
    assert round(found['dense'], 3) == record['test']['coco/bbox_mAP']
    lines = detectors.markdown([found]).replace('| FasterRCNN (', '| Faster R-CNN, full width (').splitlines()
    rows = [line for line in lines if line.startswith('| Faster R-CNN')]
    assert len(rows) == 13
    assert [row for row in rows if row not in PAGE] == []
    dense, half, whole = found['dense'], found['rows']['backbone']['0.5'], found['rows']['model']
    kept = [half[name]['metric'] for name in (UNIFORM, MERGING, OURS)]
    kept += [whole[share][OURS]['metric'] for share in ('0.5', '0.7', '0.35')]
    short = [f'{metric:.3f}' for metric in (dense, *kept[:4])]
    short[3:] = [f'**{cell}**' for cell in short[3:]]
    told = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
    told = [short[0], *told[:2], f'**{told[2]}**', told[4], told[3], told[5]]
    for page, cells in (('README.md', short), ('docs/results.md', told)):
        assert row_of('Faster R-CNN, full width', *cells) in text_of(page)


def test_the_page_for_practitioners_tells_the_figures_of_the_files():
    page, story = text_of('docs/results.md'), story_of('docs/results.md')
    for one, all_of_it in zip(recorded('table5'), recorded('whole'), strict=True):
        dense, half, shares = one['dense'], one['rows']['backbone']['0.5'], all_of_it['rows']['model']
        kept = [half[name]['metric'] for name in (UNIFORM, MERGING, OURS)]
        kept += [shares[share][OURS]['metric'] for share in ('0.7', '0.5', '0.35')]
        cells = [f'{metric:.3f} ({metric / dense:.1%})' for metric in kept]
        cells[2] = f'**{cells[2]}**'
        assert row_of(name_of(one), f'{dense:.3f}', *cells) in page
        at_90 = one['rows']['backbone']['0.9']
        if searched := at_90.get(detectors.AUTODFP):
            changes = [searched['metric'] / dense, at_90[OURS]['metric'] / dense]
            if one['model'] in detectors.PAPER:
                paper_dense, paper = detectors.PAPER[one['model']]
                changes.insert(0, paper / paper_dense)
            cells = [f'{ratio - 1:+.1%}'.replace('+0.0', '0.0').replace('-0.0', '0.0') for ratio in changes]
            assert row_of(name_of(one), *['-'] * (3 - len(cells)), *cells) in page
    digits = []
    for name in ('faster_rcnn', 'mask_rcnn', 'retinanet', 'fcos'):
        table = load_json(RESULTS / f'whole_{name}.json', 'a whole detector')
        digits.append(f'{table["rows"]["0.5"][OURS]["metric"] / table["dense"]:.1%}')
    assert 'Faster R-CNN keeps {}, Mask R-CNN {}, RetinaNet {} and FCOS {}.'.format(*digits) in story
    for one in load_json(RESULTS / 'latency_whole.json', 'latencies').values():
        model = one['models']['whole, divisor 8']
        cells = [
            f'{model[threads][engine].get("sum", model[threads][engine])["ratio"]:.0%}'
            for engine in ('torch', 'onnxruntime')
            for threads in ('threads_1', 'threads_2')
        ]
        assert row_of(*cells) in page
    gains = []
    for name in ('35_weights', '25'):
        found = load_json(RESULTS / f'least_squares/searches_retinanet_whole_{name}.json', 'the searches')
        gains.append(100 * (found['searches']['CMA-ES']['finished_mean'] - found['plans']['allocated'][FINISHED]))
    assert f'{gains[1]:.1f} points of mAP on a RetinaNet with 25% of its FLOPs' in story_of('README.md')
    assert (
        'CMA-ES bring RetinaNet of the digits {:.1f} points of mAP at 35% of its FLOPs and {:.1f} at 25%;'.format(
            *gains
        )
        in story
    )
    cost = load_json(RESULTS / 'least_squares/cost_whole.json', 'the costs')['seconds']
    assert sum(cost[name] for name in COST_STEPS) < 7 * 60
    assert 'less than seven for the whole detector.' in story
    uniform = recorded('fine_tuning_faster_rcnn')['chosen'][UNIFORM]
    assert f'uniform pruning from {uniform["before"]:.3f} to {uniform["mean"]:.3f}' in story


def test_the_rows_of_fine_tuning_are_those_of_their_file():
    found = recorded('fine_tuning_faster_rcnn')
    assert f'The dense detector has {found["dense"]:.3f}.' in STORY
    for name, chosen in found['chosen'].items():
        rows, left = found['rows'][name], found['left'][name]
        best = max(rows, key=lambda factor: rows[factor]['0']['val'])  # val chose, not test
        after = [row['test'] for row in rows[best].values()]
        assert len(after) == 3
        assert chosen['lr_factor'] == float(best)
        cells = [f'{left["params"]:.0%}', f'{left["flops"]:.0%}', best, f'{chosen["before"]:.3f}']
        cells += [f'{statistics.mean(after):.3f} ± {statistics.stdev(after):.3f}']
        assert f'{name.replace(OURS, f"**{OURS}**")} {row_of(*cells)}' in PAGE
    ours, uniform, random = found['chosen'].values()
    assert f'the detector has {ours["before"]:.3f} at once' in STORY
    assert f'from {uniform["before"]:.3f} to {uniform["mean"]:.3f} and random' in STORY
    assert f'same shape to {random["mean"]:.3f}.' in STORY
    assert f'after two epochs ours has {ours["mean"]:.3f}.' in STORY
