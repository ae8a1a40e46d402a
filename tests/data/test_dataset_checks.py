"""The doctor finds each fault that was put in, and nothing in a copy that is whole."""

import csv
import gzip
import io
import json
import zipfile

import pytest

from amrg.cli import _dispatch
from amrg.data.dataset_checks import check_dataset
from amrg.errors import UserError
from tests.data.dataset_fixtures import make_chexpert, make_iu_xray, make_mimic


def rows_of(path):
    return list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))


def rewrite(root, name, change):
    """Change the rows of a published table."""
    path = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
    rows = change(rows_of(path))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()))


def repack(root, change):
    """Change the reports of the archive, a dict of name → bytes."""
    path = root / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path) as file:
        reports = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in change(reports).items():
            file.writestr(name, data)


def film(root):
    return next(iter(sorted(root.glob("files/*/*/*/*.jpg"))))


def set_first(column, value):
    return lambda rows: [rows[0] | {column: value}, *rows[1:]]


FAULTS = {
    "no split table": (lambda r: (r / "mimic-cxr-2.0.0-split.csv.gz").unlink(), "table split"),
    "column lost": (
        lambda r: rewrite(r, "chexpert", lambda rows: [{k: v for k, v in row.items() if k != "Edema"} for row in rows]),
        "table chexpert",
    ),
    "table cut": (
        lambda r: (r / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(
            (r / "mimic-cxr-2.0.0-metadata.csv.gz").read_bytes()[:40]
        ),
        "table metadata",
    ),
    "no reports": (lambda r: (r / "mimic-cxr-reports.zip").write_bytes(b"PK"), "reports"),
    "a report lost": (lambda r: repack(r, lambda t: dict(list(t.items())[1:])), "studies without a report"),
    "a report too many": (lambda r: repack(r, lambda t: t | {"files/p10/p1/s9.txt": b"x"}), "reports without a film"),
    "not UTF-8": (lambda r: repack(r, lambda t: dict.fromkeys(t, b"\xff\xfe")), "reports that cannot be read"),
    "labels of nobody": (lambda r: rewrite(r, "chexpert", set_first("study_id", "1")), "labels without a study"),
    "label out of range": (lambda r: rewrite(r, "chexpert", set_first("Edema", "3.0")), "values of labels"),
    "unknown split": (lambda r: rewrite(r, "split", set_first("split", "holdout")), "names of splits"),
    "patient in two splits": (lambda r: rewrite(r, "split", set_first("split", "test")), "patients in two splits"),
    "film cut": (lambda r: film(r).write_bytes(film(r).read_bytes()[:200]), "films"),
    "film lost": (lambda r: film(r).unlink(), "films"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_mimic_copy_is_named(tmp_path, fault) -> None:
    root = make_mimic(tmp_path / "copy")
    damage, what = FAULTS[fault]
    damage(root)
    source, checks = check_dataset(root)
    assert source == "mimic_cxr"
    wrong = {check.what: check for check in checks if not check.ok}
    assert what in wrong
    assert wrong[what].remedy
    told = " ".join(check.result for check in checks)
    assert "10000032" not in told
    assert "50414267" not in told


@pytest.mark.parametrize("make", [make_mimic, make_chexpert, make_iu_xray])
def test_a_whole_copy_is_fine(tmp_path, make, capsys) -> None:
    root = make(tmp_path / "copy")
    _, checks = check_dataset(root)
    harmless = {"films without findings and impression"}
    assert [check for check in checks if not check.ok and check.what not in harmless] == []
    _dispatch(["doctor", str(root)])
    assert "all is fine" in capsys.readouterr().out


def test_faults_of_the_other_data_sets(tmp_path) -> None:
    chexpert = make_chexpert(tmp_path / "chexpert")
    next(iter(sorted(chexpert.glob("PNG/train/*/*/*.png")))).write_bytes(b"")
    labels = chexpert / "chexbert_labels" / "findings_fixed.json"
    labels.write_text(labels.read_text() + json.dumps({"path_to_image": "strange.jpg", "Edema": 7}) + "\n")
    wrong = {check.what for check in check_dataset(chexpert)[1] if not check.ok}
    assert wrong == {"values of findings_fixed.json", "findings_fixed.json without a film", "films"}
    iu = make_iu_xray(tmp_path / "iu")
    content = json.loads((iu / "annotation.json").read_text())
    content["test"].append(content["train"][0] | {"report": " "})
    (iu / "annotation.json").write_text(json.dumps(content))
    next(iter(sorted(iu.glob("images/*/*.png")))).unlink()
    wrong = {check.what for check in check_dataset(iu)[1] if not check.ok}
    assert wrong == {"names of studies twice", "empty reports", "patients in two splits", "films that are not there"}


def test_exit_codes(tmp_path, capsys) -> None:
    root = make_mimic(tmp_path / "copy")
    film(root).unlink()
    with pytest.raises(SystemExit) as stop:
        _dispatch(["doctor", str(root)])
    assert stop.value.code == 1
    assert "not there" in capsys.readouterr().out
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "no data set that is known")):
        with pytest.raises(UserError, match=message):
            check_dataset(path)


def test_what_is_without_a_section_and_the_headings_that_no_rule_names(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    repack(root, lambda reports: dict.fromkeys(reports, b"SCOUT: Clear.\n\nDR DOE: Told.\n\nIMPRESSION: Well."))
    results = {check.what: check.result for check in check_dataset(root)[1] if check.ok}
    assert results["reports without findings, of a sample"] == (
        "5 of 5 (100%; with labels: stage 1 alone; headings not recognized: SCOUT (5))"
    )
    assert results["reports without impression, of a sample"] == "0 of 5"
    results = {check.what: check.result for check in check_dataset(make_chexpert(tmp_path / "chexpert"))[1]}
    assert results["films without findings"] == "1 of 61 (2%; with labels: stage 1 alone)"
