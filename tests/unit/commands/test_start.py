"""`vidtune start` looks before it trains; tests/families/internvideo25/test_quick_start.py follows it to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_recipes import qevd
from vidtune.commands import doctor
from vidtune.commands.main import main
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture
def words(shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The InternVideo2.5 guide's quick start on its tiny variant, two steps."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")  # read and put back: training sets it for the processes that it starts
    return [
        *("experiment=internvideo25_qevd_qlora", "model=internvideo25_tiny", "hardware=cpu", "data.num_workers=0"),
        *qevd(tmp_path / "qevd", sorted(shapes.rglob("*.mp4"))[:10]),  # clips that recur would harm
        *("global_batch_size=2", "trainer.max_steps=2", "trainer.val_samples=2", "run_name=run"),
        *(f"paths.runs_dir={tmp_path}", f"paths.cache_dir={cache_dir}"),
    ]


def test_nothing_trains_where_something_is_broken_or_would_harm(words, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "run_doctor", lambda: 1)
    assert main(["start", *words]) == 1
    monkeypatch.setattr(doctor, "run_doctor", lambda: 0)
    for clip in (tmp_path / "qevd").rglob("*.mp4"):
        clip.write_bytes(b"no video")
    assert main(["start", *words]) == 1
    assert "harm" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
