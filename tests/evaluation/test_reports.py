"""Reading generated reports: every way a file can be wrong gives one line."""

import json

import pytest

from amrg.data.labels import LABELS
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.evaluation.reports import Detail, Sentence, Unsure, read_generated_reports

BLANK = dict.fromkeys(LABELS)
STUDIES = [Study(f"s{i}", f"p{i}", "test", f"Report {i}.", BLANK) for i in (2, 0, 1)]
LINES = [{"key": f"s{i}", "generated": f"Text {i}."} for i in range(3)]

SENTENCE = {
    "text": "There is a small left pleural effusion.",
    "labels": ["Pleural Effusion"],
    "row": 12,
    "regions": [{"row": 37, "weight": 0.6}, {"row": 21, "weight": 0.1}],
    "box": [1, 9, 8, 14, 14],
    "probabilities": {"Pleural Effusion": 0.83},
    "details": [
        {"finding": "Pleural Effusion", "attribute": "side", "value": "left", "probability": 0.93},
        {"finding": "Pleural Effusion", "attribute": "severity", "value": "mild", "probability": None},
    ],
}
NORMAL = {"text": "No pneumothorax.", "labels": ["No Finding"], "row": 0, "regions": [], "box": None,
          "probabilities": {}, "details": []}  # fmt: skip


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_order_is_that_of_the_studies_and_empty_texts_are_kept(tmp_path):
    memory = {"visual": [{"row": 3, "weight": 0.5}], "report": []}
    lines = [LINES[0], {"key": "s1", "generated": "", "memory": memory}, LINES[2]]
    found = read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert [r.text for r in found] == ["Text 2.", "Text 0.", ""]
    assert found[2].memory == memory
    assert read_generated_reports(tmp_path, STUDIES) == found


@pytest.mark.parametrize(
    "change", [lambda d: d + b"\n", lambda d: d + b"\r\n \n", lambda d: b"\xef\xbb\xbf" + d, bytes.rstrip]
)
def test_empty_last_lines_and_a_bom_change_nothing(tmp_path, change):
    path = write(tmp_path / "reports.jsonl", LINES)
    before = read_generated_reports(path, STUDIES)
    path.write_bytes(change(path.read_bytes()))
    assert read_generated_reports(path, STUDIES) == before


def test_sentences_keep_what_they_stand_on(tmp_path):
    lines = [LINES[0], LINES[1] | {"sentences": [SENTENCE, NORMAL]}, LINES[2] | {"sentences": []}]
    found = {r.key: r.sentences for r in read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)}
    details = (Detail("Pleural Effusion", "side", "left", 0.93), Detail("Pleural Effusion", "severity", "mild", None))
    probabilities = SENTENCE["probabilities"]
    effusion = Sentence(
        SENTENCE["text"], ("Pleural Effusion",), 12, SENTENCE["regions"], (1, 9, 8, 14, 14), probabilities, details
    )
    assert found == {"s0": (), "s1": (effusion, Sentence("No pneumothorax.", ("No Finding",), 0)), "s2": ()}


def test_what_was_left_out_is_read(tmp_path):
    entry = {"text": "Small effusion.", "labels": ["Pleural Effusion"], "probability": 0.4}
    lines = [LINES[0] | {"unsure": [entry]}, *LINES[1:]]
    found = read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert [r.unsure for r in found] == [(), (Unsure("Small effusion.", ("Pleural Effusion",), 0.4),), ()]
    for wrong in ({"probability": None}, {"probability": 1.2}, {"labels": []}, {"labels": ["No Finding"]}, {"text": 1}):
        with pytest.raises(UserError, match="line 1 is not a report"):
            read_generated_reports(
                write(tmp_path / "reports.jsonl", [LINES[0] | {"unsure": [entry | wrong]}, *lines[1:]]), STUDIES
            )


def test_a_map_that_is_zero_everywhere_has_no_region(tmp_path):
    lines = [line | {"sentences": [SENTENCE | {"box": [0, 0, 0, 0, 0]}]} for line in LINES]
    found = read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert [r.sentences[0].box for r in found] == [None] * 3


@pytest.mark.parametrize(
    "changed",
    [
        {"text": None},
        {"labels": []},
        {"labels": ["Gout"]},
        {"labels": 3},
        {"row": -1},
        {"row": "12"},
        {"regions": [{"row": 1}]},
        {"regions": [{"row": 1.5, "weight": 0.1}]},
        {"regions": [{"row": 1, "weight": None}]},
        {"regions": {"row": 1}},
        {"box": [9, 8, 14, 14]},
        {"box": [0, 9, 8, 4, 14]},
        {"box": [0, -1, 8, 4, 14]},
        {"box": [0, 0.5, 8, 4, 14]},
        {"box": 7},
        {"probabilities": {"Pleural Effusion": 1.2}},
        {"probabilities": {"Pleural Effusion": float("nan")}},
        {"probabilities": {"Pleural Effusion": "high"}},
        {"probabilities": {"Edema": 0.5}},
        {"probabilities": 0.5},
        {"details": [{"finding": "Edema", "attribute": "side", "value": "left"}]},
        {"details": [{"finding": "Gout", "attribute": "side", "value": "left", "probability": 1}]},
        {"details": [{"finding": "Edema", "attribute": "side", "value": 1, "probability": 1}]},
        {"details": [{"finding": "Edema", "attribute": "side", "value": "\ud800", "probability": 1}]},
        {"details": None},
    ],
)
def test_a_malformed_sentence_is_no_report(tmp_path, changed):
    lines = [LINES[0], LINES[1] | {"sentences": [NORMAL, SENTENCE | changed]}, LINES[2]]
    with pytest.raises(UserError, match="line 2 is not a report") as error:
        read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert "\n" not in str(error.value)
    assert SENTENCE["text"] not in str(error.value)


@pytest.mark.parametrize("missing", list(SENTENCE))
def test_a_sentence_has_every_entry(tmp_path, missing):
    short = {name: value for name, value in SENTENCE.items() if name != missing}
    lines = [line | {"sentences": [short]} for line in LINES]
    with pytest.raises(UserError, match="line 1 is not a report"):
        read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)


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
        read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)
    assert "\n" not in str(error.value)


def test_line_ends_inside_a_text_end_no_line(tmp_path):
    """``splitlines`` would cut at U+2028 and friends, which JSON may hold as they are."""
    lines = [json.dumps(line | {"generated": "a\u2028b\x85c"}, ensure_ascii=False) for line in LINES]
    file = tmp_path / "reports.jsonl"
    file.write_bytes("\r\n".join(lines).encode())
    assert [r.text for r in read_generated_reports(file, STUDIES)] == ["a\u2028b\x85c"] * 3


def test_missing_or_binary_file(tmp_path):
    with pytest.raises(UserError, match="make it with `amrg generate`"):
        read_generated_reports(tmp_path / "none.jsonl", STUDIES)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_generated_reports(tmp_path / "binary.jsonl", STUDIES)


EDGE = {"head": "Edema", "relation": "co_occurs_with", "tail": "Cardiomegaly", "count": 24, "expected": 4.4}


def test_edges_of_the_graph_are_read_as_texts(tmp_path):
    curated = {"head": "Edema", "relation": "excludes", "tail": "Fracture", "weight": 1.5, "left_out": True}
    lines = [LINES[0], LINES[1] | {"graph": [EDGE], "implausible": [curated]}, LINES[2]]
    found = {r.key: r for r in read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)}
    assert found["s0"].graph == found["s0"].implausible == ()
    assert found["s1"].graph == ("Edema co occurs with Cardiomegaly (24 train studies, 4.4 by chance)",)
    assert found["s1"].implausible == ("Edema excludes Fracture (curated, weight 1.5; left out)",)


@pytest.mark.parametrize("change", [{"count": "many"}, {"head": None}, {"expected": None}])
def test_a_wrong_edge_is_one_line(tmp_path, change):
    lines = [LINES[0] | {"graph": [EDGE | change]}, *LINES[1:]]
    with pytest.raises(UserError, match="line 1 is not a report"):
        read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)


def test_sections_are_read_and_lines_of_former_versions_have_none(tmp_path):
    apart = {"findings": "Text 0.", "impression": ""}
    lines = [LINES[0] | {"sections": apart, "reference_sections": apart}, *LINES[1:]]
    found = {r.key: r for r in read_generated_reports(write(tmp_path / "reports.jsonl", lines), STUDIES)}
    assert (found["s0"].sections, found["s0"].reference_sections) == (apart, apart)
    assert (found["s1"].sections, found["s1"].reference_sections) == ({}, {})
    for wrong in ({"findings": "Text."}, {"findings": "Text.", "impression": None}, "text"):
        with pytest.raises(UserError, match="line 1 is not a report"):
            read_generated_reports(
                write(tmp_path / "reports.jsonl", [LINES[0] | {"sections": wrong}, *LINES[1:]]), STUDIES
            )
