"""Any folder of a run leads to the same artefacts; what is missing, changed or elsewhere is refused."""

import json
import os
import shutil

import pytest

from amrg.errors import UserError
from amrg.inference.run_artifacts import find_run_artifacts


@pytest.mark.parametrize("kind", ["scores", "reports", "stage2"])
def test_each_artefact_leads_to_the_chain(run, kind):
    chain = find_run_artifacts(run[kind].path)
    for name in ("data", "stage1", "banks", "stage2"):
        assert getattr(chain, name).hash == run[name].hash
    assert (chain.reports is None) == (kind == "stage2")
    assert chain.config.generate.num_beams == (1 if kind == "stage2" else 2)
    assert chain.config.memory.heads == 2
    assert chain.config.banks.mining.threshold == 0.01
    assert (chain.name, chain.config.data.source, chain.warnings) == ("tiny", "openi_drr", [])
    assert chain.config.stage2.dtype == "bfloat16"


def test_a_folder_leads_to_its_newest_scores(run, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    newer = shutil.copytree(next(copy.glob("scores-*")), copy / "scores-newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    del manifest["inputs"]["reports"]
    (newer / "manifest.json").write_text(json.dumps(manifest))
    os.utime(newer / "manifest.json", ns=(2**62, 2**62))
    assert find_run_artifacts(copy).reports is None
    shutil.rmtree(newer)
    assert find_run_artifacts(copy).reports is not None
    for path in [*copy.glob("scores-*"), *copy.glob("reports-*")]:
        shutil.rmtree(path)
    assert find_run_artifacts(copy).stage2.hash == run["stage2"].hash


@pytest.mark.parametrize("kind", ["scores", "reports"])
def test_of_several_the_newest_that_is_no_control_is_used_and_named(folder, tmp_path, capfd, kind):
    copy = shutil.copytree(folder, tmp_path / "run")
    if kind == "reports":
        shutil.rmtree(next(copy.glob("scores-*")))
    usual = next(copy.glob("reports-*"))
    control = shutil.copytree(usual, copy / "reports-control")
    manifest = json.loads((control / "manifest.json").read_text())
    manifest["config"]["memory"] = "shuffled"
    (control / "manifest.json").write_text(json.dumps(manifest))
    if kind == "scores":
        newer = shutil.copytree(next(copy.glob("scores-*")), copy / "scores-control")
        manifest = json.loads((newer / "manifest.json").read_text())
        manifest["inputs"]["reports"]["path"] = "reports-control"
        (newer / "manifest.json").write_text(json.dumps(manifest))
    os.utime(copy / f"{kind}-control/manifest.json", ns=(2**62, 2**62))
    chain = find_run_artifacts(copy)
    assert chain.reports.path.name == usual.name
    output = " ".join(capfd.readouterr().err.split())
    used = next(path.name for path in copy.glob(f"{kind}-*") if "control" not in path.name)
    assert f"has 2 {kind} artefacts: {used} is used" in output
    shutil.rmtree(usual)
    if kind == "reports":
        assert find_run_artifacts(copy).reports.path.name == "reports-control"


def test_what_is_no_whole_run_is_refused(run, folder, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        find_run_artifacts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no report generator"):
        find_run_artifacts(tmp_path)
    with pytest.raises(UserError, match="holds a data artefact: give one of scores, reports, stage2"):
        find_run_artifacts(run["data"].path)
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(next(copy.glob("banks-*")))
    with pytest.raises(UserError, match="make it with `amrg banks"):
        find_run_artifacts(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../elsewhere/data-0"}, "outside the folder of its run"),
        ({"hash": "0" * 64}, "is no longer what .* was made from"),
    ],
)
def test_inputs_elsewhere_or_changed_are_not_opened(folder, tmp_path, changes, message):
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(next(copy.glob("data-*")), tmp_path / "elsewhere/data-0")
    path = next(copy.glob("scores-*")) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["data"] |= changes
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        find_run_artifacts(copy)


def test_a_link_out_of_the_run_is_not_followed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    data = next(copy.glob("data-*"))
    shutil.move(data, tmp_path / "away")
    data.symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="outside the folder of its run"):
        find_run_artifacts(copy)
