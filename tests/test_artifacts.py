import json
import os
import stat
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from amrg import artifacts
from amrg.artifacts import (
    Artifact,
    Recipe,
    add_artifact_failure,
    add_artifact_warning,
    build_artifact,
    find_artifact,
    folder_content_hash,
    open_artifact,
)
from amrg.errors import UserError


def recipe(kind="data", inputs=None, **config):
    return Recipe(kind, 1, config, inputs or {}, seed=0)


def make(root, plan, text="content"):
    with build_artifact(root, plan) as folder:
        (folder / "file.txt").write_text(text)
        (folder / artifacts.LOGS).mkdir(exist_ok=True)
        (folder / artifacts.LOGS / "times").write_text(str(id(object())))
        (folder / "checkpoints").mkdir(exist_ok=True)
    return open_artifact(plan.path(root), plan.kind)


def test_identity_follows_everything_that_shapes_the_content(tmp_path):
    data = make(tmp_path, recipe())
    other = make(tmp_path, recipe(size=2), "other")
    plans = [
        recipe(),
        recipe(size=2),
        recipe("stage1"),
        recipe("stage1", {"data": data}),
        recipe("stage1", {"data": other}),
        Recipe("data", 2, {}, {}, 0),
        Recipe("data", 1, {}, {}, 1),
    ]
    assert len({plan.identity for plan in plans}) == len(plans)
    assert recipe(a=1, b=2).identity == recipe(b=2, a=1).identity


def test_a_finished_artefact_is_found_and_describes_itself(tmp_path):
    data = make(tmp_path, recipe())
    stage1 = make(tmp_path, recipe("stage1", {"data": data}, lr=0.1))
    assert find_artifact(tmp_path, recipe("stage1", {"data": data}, lr=0.1)) == stage1
    assert find_artifact(tmp_path, recipe("stage1", {"data": data}, lr=0.2)) is None
    assert stage1.manifest["inputs"]["data"] == {"kind": "data", "path": data.path.name, "hash": data.hash}
    assert stage1.manifest["config"] == {"lr": 0.1}
    assert not (stage1.path / "checkpoints").exists()
    assert not (stage1.path / artifacts.LOCK).exists()


def test_content_hash_ignores_logs_and_sees_names_and_bytes(tmp_path):
    first = make(tmp_path / "a", recipe())
    assert make(tmp_path / "b", recipe()).hash == first.hash
    assert make(tmp_path / "c", recipe(), "contenT").hash != first.hash
    (first.path / "file.txt").rename(first.path / "renamed.txt")
    assert folder_content_hash(first.path) != first.hash


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask_however_they_were_written(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with build_artifact(tmp_path, recipe()) as folder:
            (folder / "model").mkdir()
            save_file({"weights": torch.zeros(2)}, folder / "model/model.safetensors")
            (folder / "private").touch(0o600)
    finally:
        os.umask(before)
    files = [path for path in recipe().path(tmp_path).rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"model.safetensors", "private", "manifest.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


def test_interrupted_work_is_kept_and_never_looks_finished(tmp_path):
    plan = recipe()

    def interrupted():
        with build_artifact(tmp_path, plan) as folder:
            (folder / "half").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert find_artifact(tmp_path, plan) is None
    with build_artifact(tmp_path, plan) as folder:
        assert (folder / "half").read_text() == "1"
    assert find_artifact(tmp_path, plan) is not None


def test_two_writers_of_one_artefact_are_refused(tmp_path):
    with (
        build_artifact(tmp_path, recipe()),
        pytest.raises(UserError, match="another process"),
        build_artifact(tmp_path, recipe()),
    ):
        pass


def test_a_mark_is_inherited(tmp_path):
    with build_artifact(tmp_path, recipe("banks")) as folder:
        add_artifact_warning(folder, "bank holds test rows")
    banks = open_artifact(recipe("banks").path(tmp_path), "banks")
    stage2 = make(tmp_path, recipe("stage2", {"banks": banks}))
    scores = make(tmp_path, recipe("scores", {"stage2": stage2}))
    assert scores.warning == "bank holds test rows"


def test_failures_are_told_kept_and_inherited_once(tmp_path, capfd):
    with build_artifact(tmp_path, recipe("stage1")) as folder:
        for failure in ("at chance", "collapsed", "at chance"):
            add_artifact_failure(folder, failure)
    assert capfd.readouterr().err.splitlines()[:2] == ["WARNING: at chance", "WARNING: collapsed"]
    stage1 = open_artifact(recipe("stage1").path(tmp_path), "stage1")
    banks = make(tmp_path, recipe("banks", {"stage1": stage1}))
    with build_artifact(tmp_path, recipe("stage2", {"stage1": stage1, "banks": banks})) as folder:
        add_artifact_failure(folder, "one text")
    stage2 = open_artifact(next(tmp_path.glob("stage2-*")), "stage2")
    assert stage2.failures == ["at chance", "collapsed", "one text"]
    assert make(tmp_path, recipe("data")).failures == []


def test_a_failure_that_an_interrupted_run_has_recorded_leaves_the_same_bytes(tmp_path):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    with suppress(KeyboardInterrupt), build_artifact(disturbed, recipe("stage1")) as folder:
        add_artifact_failure(folder, "at chance")
        raise KeyboardInterrupt
    for root in (disturbed, undisturbed):
        with build_artifact(root, recipe("stage1")) as folder:
            add_artifact_failure(folder, "at chance")
    found, expected = (open_artifact(recipe("stage1").path(root), "stage1") for root in (disturbed, undisturbed))
    assert found.failures == ["at chance"]
    assert found.manifest["content_hash"] == expected.manifest["content_hash"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no data artefact at .*: make it with `amrg prepare"),
        ("", "is not an artefact"),
        ("{", "is not an artefact"),
        ('{"kind": "data"}', "is not an artefact"),
        (json.dumps({"kind": "banks", "content_hash": "", "inputs": {}, "config": {}}), "holds a banks artefact"),
    ],
)
def test_a_missing_or_foreign_folder_is_one_clear_line(tmp_path, content, message):
    folder = tmp_path / "data-0"
    if content is not None:
        folder.mkdir()
        (folder / artifacts.MANIFEST).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_artifact(folder, "data")
    assert "\n" not in str(caught.value)


def test_unwritable_root_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), build_artifact(tmp_path / "file", recipe()):
        pass


def test_artifact_kind_and_hash_come_from_the_manifest(tmp_path):
    artifact = Artifact(tmp_path, {"kind": "data", "content_hash": "ab"})
    assert (artifact.kind, artifact.hash, artifact.warning) == ("data", "ab", None)
