"""Bad clips: known everywhere once found, never a part of the plan, listed where the user can use the list."""

import csv
import json
from types import SimpleNamespace

import pytest

from vidtune.contracts import MediaRef, UserError
from vidtune.data.bad_media import BadMedia, read_known_bad
from vidtune.training.callbacks import BadMediaLedger

REF = MediaRef("/v/a.mp4")


def test_what_one_worker_finds_no_other_tries_again(tmp_path):
    log = tmp_path / "log.jsonl"
    first, second = BadMedia(log_file=log), BadMedia(log_file=log)
    assert second.reason(REF) == ""
    first.note(REF, "truncated")
    first.note(MediaRef("/v/b.mp4", start_s=1.0, end_s=2.0), "gone")
    assert second.reason(REF) == "truncated"
    assert second.reason(MediaRef("/v/b.mp4", start_s=1.0, end_s=2.0, tiled=False)) == "gone"
    assert second.reason(MediaRef("/v/b.mp4")) == ""
    assert BadMedia(log_file=log).reason(REF) == "truncated"  # a resumed run


def test_a_failed_decode_is_no_part_of_the_plan(tmp_path):
    bad = BadMedia({"/v/c.mp4": "listed"})
    bad.note(REF, "truncated")
    assert not bad.headers and bad.listed_reason(REF) == ""
    assert bad.listed_reason(MediaRef("/v/c.mp4", start_s=3.0)) == "listed"


def test_a_ledger_and_a_check_report_are_both_read(tmp_path):
    ledger, report = tmp_path / "bad_media.csv", tmp_path / "check.json"
    BadMediaLedger(ledger, 10, 1.0).note((("/v/a, b.mp4", 'so "bad"'),))
    report.write_text(json.dumps({"bad_media": [{"file": "/v/a, b.mp4", "reason": 'so "bad"', "rows_hit": 1}]}))
    assert read_known_bad(ledger) == read_known_bad(report) == {"/v/a, b.mp4": 'so "bad"'}
    for wrong, text in (("x.csv", "a,b\n"), ("x.json", "{}"), ("y.json", "no")):
        (tmp_path / wrong).write_text(text)
        with pytest.raises(UserError, match=r"media\.known_bad"):
            read_known_bad(tmp_path / wrong)
    with pytest.raises(UserError, match="no such file"):
        read_known_bad(tmp_path / "none.csv")


def rank(ledger: BadMediaLedger, number: int) -> BadMediaLedger:
    ledger.setup(SimpleNamespace(global_rank=number), None, "fit")
    return ledger


def test_processes_share_one_ledger_and_one_bound(tmp_path):
    file = tmp_path / "bad_media.csv"
    zero, one = (rank(BadMediaLedger(file, 10, 0.15), number) for number in (0, 1))
    one.note((("a", "broken"), ("a", "broken")))
    with pytest.raises(UserError, match="2 of 10 media"):
        zero.note((("b", "gone"),))
    with file.open() as handle:
        assert list(csv.reader(handle)) == [["file", "reason", "rows_hit"], ["b", "gone", "1"], ["a", "broken", "2"]]
    assert zero.counts() == {"bad_media": 2, "bad_media_rows": 3}
    # The checkpoint holds what all have found; a resumed run counts nothing twice.
    state = zero.state_dict()
    again, other = (rank(BadMediaLedger(file, 10, 1.0), number) for number in (0, 1))
    again.load_state_dict(state)
    other.load_state_dict(state)
    assert again.counts() == {"bad_media": 2, "bad_media_rows": 3}
