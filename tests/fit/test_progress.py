"""The bar shows losses and score where a person looks, and disturbs nobody elsewhere."""

import sys
from types import ModuleType

import pytest

from polytask.fit import Bar, Log, Silent
from polytask.records import Point

POINT = Point(8, 1, 0.5, {}, {}, {}, 12.345)
NAMES = ("temperature [C]", "[/red]", "plain", "x", "y", "z")


def drawn(capsys: pytest.CaptureFixture[str]) -> str:
    with Bar("digits2 [equal]") as bar:
        bar.begin(16, 4)
        for step in range(5, 9):
            bar._drawn = 0.0  # as if a tenth of a second had passed
            bar.step(step, lambda: dict.fromkeys(NAMES, 0.25))
        bar.point(POINT)
    captured = capsys.readouterr()
    assert captured.out == "", "standard output is for results"
    return captured.err


def test_a_terminal_sees_losses_score_and_how_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "250")
    text = drawn(capsys)
    for part in ("digits2 [equal]", "8/16", "temperature [C] 0.25", "[/red] 0.25", "+2 tasks"):
        assert part in text
    assert "score 12.35" in text or "score 12.34" in text
    assert "\x1b[" in text


def test_no_terminal_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not sys.stderr.isatty()
    assert "\x1b[?25" not in drawn(capsys)


def test_losses_are_read_only_when_something_is_drawn() -> None:
    asked = []

    def losses() -> dict[str, float]:
        asked.append(1)
        return {"a": 1.0}

    bar = Bar("x")
    bar.begin(1000, 0)
    for step in range(1000):
        bar.step(step, losses)
    assert 0 < len(asked) < 500
    silent = Silent()
    silent.begin(3, 0)
    silent.step(1, losses)
    silent.point(POINT)


def test_a_resumed_run_says_how_much_is_done(tmp_path: object, tiny: ModuleType) -> None:
    folder = tmp_path / "run"
    with pytest.raises(tiny.Stopped):
        tiny.run(tiny.shared(), folder=folder, stop_after=5, checkpoint_seconds=0)
    _, watcher = tiny.run(tiny.shared(), folder=folder)
    # The callback stopped update 5 before its checkpoint; that of update 4 is taken up.
    assert watcher.begun_at == 4
    assert watcher.seen == list(range(5, 25))


def test_a_log_has_a_line_per_validation_and_not_too_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(every: float) -> list[str]:
        log = Log("digits2 equal", every)
        log.begin(24, 0)
        for epoch in (1, 2, 3):
            log.step(8 * epoch, dict)
            log.point(Point(8 * epoch, epoch, 0.5, {}, {}, {}, epoch / 3))
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    first, _, last = said(every=0.0)
    assert first.startswith("digits2 equal: update 8 of at most 24, epoch 1, score 0.3333, at most")
    assert "update 24 of at most 24" in last
    assert last.endswith("at most 0 s left")
    assert len(said(every=60.0)) == 1, "a run of a moment tells its end alone"
