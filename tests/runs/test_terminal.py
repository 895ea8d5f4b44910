"""What a user sees of a run."""

from mmautodfp.runs import build_runner, load_config


def test_what_mmengine_logs_while_a_runner_is_built_is_in_the_file_alone(tmp_path, capsys):
    runner = build_runner(load_config('configs/demo/vgg_digits_autodfp.py', str(tmp_path)))
    runner.logger.info('what follows')
    (file,) = tmp_path.glob('*/*.log')
    shown, kept = capsys.readouterr().out, file.read_text()
    for text in ('System environment:', 'Config:', 'Hooks will be executed'):
        assert text in kept
        assert text not in shown
    assert 'what follows' in kept
    assert 'what follows' in shown
