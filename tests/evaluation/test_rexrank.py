"""ReXrank's format: what its own evaluation script reads is there, and nothing is lost or mixed up."""

import json

import pytest

from amrg.artifacts import Recipe, build_artifact, open_artifact
from amrg.commands.export import main
from amrg.errors import UserError
from amrg.evaluation.reports import GeneratedReport
from amrg.evaluation.rexrank import fill_test_set, rexrank_submission


@pytest.fixture
def reports(tmp_path):
    """A reports artefact over three studies, made from data whose reports are findings."""
    made = {}
    for kind, config in (("data", {"sections": "findings"}), ("reports", {})):
        recipe = Recipe(kind, 1, config, dict(made), 0)
        with build_artifact(tmp_path, recipe) as folder:
            rows = [
                {
                    "key": f"s{i}",
                    "group": f"p{i}",
                    "reference": f"Reference {i}, «ü».",
                    "generated": f"Text {i}." * (i != 1),
                }
                for i in (2, 0, 1)
            ]
            (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[kind] = open_artifact(recipe.path(tmp_path), kind)
    return made["reports"].path


def test_with_our_references(reports, tmp_path):
    main([str(reports), str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(written) == ["s0", "s1", "s2"]
    assert written["s2"] == {
        "section_findings": "Reference 2, «ü».",
        "section_impression": None,
        "report": "Reference 2, «ü».",
        "model_prediction": "Text 2.",
    }
    assert written["s1"]["model_prediction"] == ""
    with pytest.raises(UserError, match="exists"):
        main([str(reports), str(tmp_path / "out.json")])


def test_sections_that_are_told_apart_are_both_there():
    apart = {"findings": "F.", "impression": "I."}
    reports = [
        GeneratedReport("a", "G. H.", reference="F. I.", sections={"findings": "G.", "impression": "H."},
                        reference_sections=apart),
        GeneratedReport("b", "G.", reference="F.", sections={"findings": "G.", "impression": ""},
                        reference_sections={"findings": "F.", "impression": ""}),
    ]  # fmt: skip
    written = rexrank_submission(reports, "separate")
    assert written["a"] == {
        "section_findings": "F.",
        "section_impression": "I.",
        "report": "F. I.",
        "model_prediction": "G. H.",
        "model_prediction_findings": "G.",
        "model_prediction_impression": "H.",
    }
    assert written["b"]["section_impression"] is None
    filled = fill_test_set({"a": {"context": "x"}, "b": {}}, reports)
    assert filled["a"] == {"context": "x"} | {key: text for key, text in written["a"].items() if "prediction" in key}


def test_onto_their_test_set(reports, tmp_path):
    """Their ids have no ``s``; what else they say of a study (NaN for a missing section, too) stays."""
    theirs = '{"1": {"context": "x", "section_impression": NaN}, "0": {"section_findings": "F"}, "2": {}}'
    (tmp_path / "theirs.json").write_text(theirs)
    main([str(reports), str(tmp_path / "out.json"), "--onto", str(tmp_path / "theirs.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert [study["model_prediction"] for study in written.values()] == ["", "Text 0.", "Text 2."]
    assert list(written) == ["1", "0", "2"]
    assert written["0"]["section_findings"] == "F"
    assert written["1"]["section_impression"] != written["1"]["section_impression"]  # NaN


def export_onto(tmp_path, ours, theirs):
    """Predictions by their keys; the text of each of our studies is its key."""
    reports = [GeneratedReport(key, key, group="p", reference="Reference.") for key in ours]
    filled = fill_test_set({key: {"split": "test"} for key in theirs}, reports)
    assert all(study["split"] == "test" for study in filled.values())
    return {key: study["model_prediction"] for key, study in filled.items()}


UID = "1.2.826.0.1.3680043.8.498."


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("valid-patient64540-study1", "valid-patient64541-study12"), ("patient64540_study1", "patient64541_study12")),
        (("train-patient00001-study1", "train-patient00001-study11"), ("patient00001_study1", "patient00001_study11")),
        (("s50000014", "s50000104"), ("50000014", "50000104")),
        (("CXR1_IM-0001-4001", "CXR11_IM-0067"), ("CXR1_IM-0001-4001", "CXR11_IM-0067")),
        (("CXR1", "CXR11"), ("CXR1_IM-0001-4001", "CXR11_IM-0067")),
        (("1", "11"), ("CXR1_IM-0001-4001", "CXR11_IM-0067")),
        (("iu_xray-CXR1_IM-0001-4001", "iu_xray-CXR11_IM-0067"), ("CXR1_IM-0001-4001", "CXR11_IM-0067")),
        ((f"{UID}17", f"{UID}18"), (f"pGRDN1_aGRDN2_s{UID}17", f"pGRDN1_aGRDN3_s{UID}18")),
        ((f"pGRDN1_aGRDN2_s{UID}17".replace(".", "-"),), (f"pGRDN1_aGRDN2_s{UID}17",)),
        (("hospital-7-b", "hospital-8-b"), ("hospital_7_b", "hospital 8.b")),
    ],
)
def test_keys_of_every_test_set(tmp_path, ours, theirs):
    expected = dict(zip(theirs, ours, strict=True))
    assert export_onto(tmp_path, ours, theirs) == expected
    assert list(export_onto(tmp_path, ours[::-1], theirs).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (("s50000014",), ("patient64540_study1",), r"1 of the 1 .* \(such as 'patient64540_study1'\).*'s50000014'"),
        # one name for two studies is none
        (("train-patient1-study1", "valid-patient1-study1"), ("patient1_study1",), "'patient1_study1'.*2 reports"),
        (("CXR1",), ("CXR1_IM-0001", "CXR1_IM-0002"), "2 of the 2 .*'CXR1_IM-0001'.*'CXR1'"),
        (("s1", "s2"), ("2", "3"), r"1 of the 2 .*\(such as '3'\), and 1 .*\(such as 's1'\)"),
    ],
)
def test_other_keys_are_shown(tmp_path, ours, theirs, message):
    with pytest.raises(UserError, match=message):
        export_onto(tmp_path, ours, theirs)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ('{"0": {}, "1": {}}', "0 of the 2 studies of the test set have no report, and 1 reports are of other"),
        ('{"0": {}, "1": {}, "2": {}, "3": {}}', "1 of the 4 studies"),
        ("[]", "is not a ReXrank test set"),
        ("{}", "is not a ReXrank test set"),
        ('{"0": 1}', "is not a ReXrank test set"),
        ("\x00", "is not a ReXrank test set"),
    ],
)
def test_what_does_not_fit_is_refused(reports, tmp_path, theirs, message):
    (tmp_path / "theirs.json").write_text(theirs)
    with pytest.raises(UserError, match=message):
        main([str(reports), str(tmp_path / "out.json"), "--onto", str(tmp_path / "theirs.json")])
    assert not (tmp_path / "out.json").exists()


def test_data_outside_the_run_is_not_opened(reports, tmp_path):
    manifest = reports / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"path": "data-', '"path": "../data-'))
    with pytest.raises(UserError, match="an input outside the folder of its run"):
        main([str(reports), str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_where_it_cannot_be_written(reports, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        main([str(reports), str(tmp_path / "no" / "out.json")])
    with pytest.raises(UserError, match="no reports artefact"):
        main([str(tmp_path / "none"), str(tmp_path / "out.json")])
