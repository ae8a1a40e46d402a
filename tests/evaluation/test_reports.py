"""Reading generated reports: every way a file can be wrong gives one line."""

import json

import pytest

from amrg.data.labels import LABELS
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.evaluation.reports import read_reports

BLANK = dict.fromkeys(LABELS)
STUDIES = [Study(f"s{i}", f"p{i}", "test", f"Report {i}.", BLANK) for i in (2, 0, 1)]
LINES = [{"key": f"s{i}", "generated": f"Text {i}."} for i in range(3)]


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_order_is_that_of_the_studies_and_empty_texts_are_kept(tmp_path):
    memory = {"visual": [{"row": 3, "weight": 0.5}], "report": []}
    lines = [LINES[0], {"key": "s1", "generated": "", "memory": memory}, LINES[2]]
    found = read_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert [r.text for r in found] == ["Text 2.", "Text 0.", ""]
    assert found[2].memory == memory
    assert read_reports(tmp_path, STUDIES) == found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES, LINES[1]], "line 4 repeats the study of line 2"),
        (LINES[:2], "lacks 1 of 3 studies and has 0"),
        ([*LINES[:2], {"key": "x", "generated": ""}], "lacks 1 of 3 studies and has 1"),
        (["{", *LINES], "line 1 is not a report"),
        (["7", *LINES], "line 1 is not a report"),
        ([LINES[0], {"key": "s1"}], "line 2 is not a report"),
        ([{"key": "s0", "generated": None}], "line 1 is not a report"),
        ([{"key": "s0", "generated": "", "memory": [1]}], "line 1 is not a report"),
        ([{"key": "s0", "generated": "", "memory": {"visual": [{"row": "a", "weight": 1}]}}], "line 1 is not"),
        ([], "lacks 3 of 3"),
        (['{"key": "s0", "generated": "\\ud800"}'], "line 1 is not a report"),
        (["[" * 100_000], "line 1 is not a report"),
        ([LINES[0], "", LINES[1]], "line 2 is not a report"),
        ([LINES[0] | {"key": 0}], "line 1 is not a report"),
        ([LINES[0] | {"reference": 3}], "line 1 is not a report"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message) as error:
        read_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert "\n" not in str(error.value)


def test_line_ends_inside_a_text_end_no_line(tmp_path):
    """``splitlines`` would cut at U+2028 and friends, which JSON may hold as they are."""
    lines = [json.dumps(line | {"generated": "a\u2028b\x85c"}, ensure_ascii=False) for line in LINES]
    file = tmp_path / "reports.jsonl"
    file.write_bytes("\r\n".join(lines).encode())
    assert [r.text for r in read_reports(file, STUDIES)] == ["a\u2028b\x85c"] * 3


def test_missing_or_binary_file(tmp_path):
    with pytest.raises(UserError, match="make it with `amrg generate`"):
        read_reports(tmp_path / "none.jsonl", STUDIES)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_reports(tmp_path / "binary.jsonl", STUDIES)
