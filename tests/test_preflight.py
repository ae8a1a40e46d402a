"""What is missing or wrong is told in the first seconds, all at once, before anything is made."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from amrg import cli, model_files, pipeline, preflight
from amrg.config_files import config_from_dict, config_to_dict, load_config
from amrg.errors import UserError
from amrg.preflight import Machine
from benchmarks.architectures import make_tokenizer
from tests.data.dataset_fixtures import make_mimic

GB = 10**9
Damage = Callable[[Path], object]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that a run on MIMIC-CXR needs, as small as it can be; the current one. The hub is forbidden."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make_mimic(tmp_path / "mimic")
    save_file({"weight": torch.zeros(8)}, tmp_path / "swin.safetensors")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 16}))
    (encoder / "vocab.txt").write_text("[PAD]\n")
    save_file({"weight": torch.zeros(8)}, encoder / "model.safetensors")
    sizes = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    decoder = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    decoder.save_pretrained(tmp_path / "decoder", max_shard_size="50KB")
    make_tokenizer().save_pretrained(tmp_path / "decoder")
    content = {
        "name": "site",
        "data": {"source": "mimic_cxr", "path": "mimic"},
        "vision": {"encoder": "swin_tiny_patch4_window7_224", "weights": "swin.safetensors"},
        "banks": {"reports": {"encoder": "encoder"}},
        "decoder": {"model": "decoder", "tuning": "lora"},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `amrg` refuses with; nothing is made."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments[:1], "site.yaml", *arguments[1:]])
    assert stop.value.code == 2
    assert not Path("runs").is_dir()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("amrg: ") for line in lines)
    return [line.removeprefix("amrg: ") for line in lines]


def nothing(site: Path) -> None:
    pass


def without(name: str) -> Damage:
    return lambda site: next(site.glob(name)).rename(site / "away")


def cut(name: str) -> Damage:
    def damage(site: Path) -> None:
        path = sorted(site.glob(name))[-1]
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def written(name: str, content: Any) -> Damage:
    return lambda site: (site / name).write_text(json.dumps(content))


CASES: dict[str, tuple[Damage, str, str]] = {
    "data folder": (nothing, "--data.path nowhere", "data.path nowhere is not a folder"),
    "data source": (nothing, "--data.source mimic", "unknown data source `mimic`"),
    "table": (without("mimic/*metadata*"), "", "mimic has no mimic-cxr-2.0.0-metadata.csv.gz"),
    "labels": (without("mimic/*chexpert*"), "", "mimic has no mimic-cxr-2.0.0-chexpert.csv.gz .*labels"),
    "reports": (cut("mimic/*.zip"), "", "mimic-cxr-reports.zip is not a readable archive"),
    "films": (without("mimic/files"), "", "mimic has no files .the films"),
    "vision weights": (without("swin.safetensors"), "", "vision.weights: swin.safetensors is not a safetensors file"),
    "whole vision weights": (cut("swin.safetensors"), "", "swin.safetensors has .* bytes where its header tells of"),
    "no such encoder": (nothing, "--vision.encoder swim_tiny", "there is no timm model `swim_tiny`"),
    "size of films": (
        nothing, "--vision.encoder deit_tiny_patch16_224 --vision.image-size 440", "is 440: .* needs a multiple of 16",
    ),
    "encoder's folder": (
        nothing, "--vision.encoder ./encoder --vision.weights None", "encoder lacks preprocessor_config.json",
    ),
    "vision on the hub": (nothing, "--vision.weights None", "not in the local cache .HF_HUB_OFFLINE"),
    "BERT of the Q-Former": (nothing, "--vision.qformer-init nowhere", "vision.qformer_init: nowhere is no folder"),
    "its sizes": (nothing, "--vision.qformer-init encoder", "encoder/config.json .* does not describe a BERT"),
    "text encoder": (nothing, "--banks.reports.encoder nowhere", "no text encoder at nowhere"),
    "its tokenizer": (without("encoder/vocab.txt"), "", "banks.reports.encoder: encoder has no tokenizer"),
    "its weights": (cut("encoder/model.safetensors"), "", "encoder/model.safetensors has .* bytes where"),
    "map": (nothing, "--banks.mining.method mapp", "there is no activation map `mapp`"),
    "decoder": (nothing, "--decoder.model nowhere/nowhere", "decoder.model nowhere/nowhere: .*HF_HUB_OFFLINE"),
    "its configuration": (without("decoder/config.json"), "", "decoder/config.json is missing"),
    "its tokenizer too": (without("decoder/tokenizer.json"), "", "decoder.model: decoder has no tokenizer"),
    "a part of its weights": (without("decoder/*00002-of*"), "", "decoder lacks 1 of the . weight files"),
    "a whole part": (cut("decoder/*-of-*.safetensors"), "", "decoder/model.* bytes where its header tells of"),
    "a causal LM": (written("decoder/config.json", {"model_type": "vit"}), "", "is of type vit, which is no causal LM"),
    "the image in the prompt": (nothing, "--decoder.prompt Findings:", "decoder.prompt must contain {image} once"),
    "sentences to recall": (
        nothing, "--decoder.predict_outline --generate.outline_source retrieved --banks.reports.granularity report",
        "whole reports: build it",
    ),
    "an outline": (nothing, "--generate.outline_source classifier", "which this decoder does not learn"),
    "probabilities": (nothing, "--generate.abstain 0.5", "abstain 0.5 needs a probability of each finding"),
    "a GPU for float16": (nothing, "--stage2.dtype float16", "stage2.dtype float16 needs a GPU"),
    "a batch that divides": (
        written("micro.json", {"train_micro_batch_size_per_gpu": 5}), "--stage1.ds-config micro.json",
        "micro.json: train_micro_batch_size_per_gpu 5 × .* but stage1.batch_size is 32",
    ),
    "rates that a scheduler takes": (
        written("mine.json", {"scheduler": {"type": "WarmupLR", "params": {}}}),
        "--stage2.ds-config mine.json --stage2.decoder-lr 1e-4", "mine.json brings a scheduler, .* stage2.decoder_lr",
    ),
    "a batch of studies": (nothing, "--data.train-studies 20", "stage1.batch_size 32 is above the 20 train studies"),
    "DeepSpeed's file": (nothing, "--stage1.ds-config zero9.json", "no configuration file zero9.json"),
    "weights to split": (nothing, "--generate.ds-config zero1.json", "zero1.json is of ZeRO stage 1: only stage 3"),
    "weights in full": (
        nothing, "--decoder.tuning full --decoder.base-dtype bfloat16", "base_dtype bfloat16 is for weights that are",
    ),
    "positions": (
        nothing, "--stage2.max-report-tokens 2000", r"tokens 2000 and the \d+ .* more than the 2048 positions",
    ),
    "positions in writing": (nothing, "--generate.max-new-tokens 2000", "max_new_tokens 2000 and the .* the 2048"),
    "git-lfs": (
        lambda site: sorted(site.glob("decoder/*-of-*.safetensors"))[0].write_text("version https://git-lfs.github.com"),
        "", "is a git-lfs pointer, not the file itself .1 in all.: run `git lfs pull` there",
    ),
    "held-out rows": (nothing, "--banks.splits train test", "banks.splits holds rows of test studies"),
    "a GPU to compile for": (nothing, "--generate.compile --generate.num-beams 1", "generate.compile needs a GPU: say"),
    "beams that are compiled": (nothing, "--generate.compile", "without beams, and generate.num_beams is 3"),
    "lengths": (nothing, "--generate.min-new-tokens 200", "generate.min_new_tokens 200 is above max_new_tokens 100"),
    "a folder for runs": (lambda site: (site / "runs").write_text(""), "", "cannot write to .*runs"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "arguments", "line"), CASES.values(), ids=CASES)
def test_each_thing_is_named_in_a_line_of_its_own(
    site: Path, capsys: pytest.CaptureFixture[str], damage: Damage, arguments: str, line: str
) -> None:
    damage(site)
    lines = told(capsys, "run", *arguments.split())
    named = [one for one in lines if re.search(line, one)]
    assert len(named) == 1, lines
    assert len(lines) <= 2, lines  # a batch may be too large for both stages


ROOM = Machine(disk=100 * GB, memory=100 * GB, gpu=None)


@pytest.mark.parametrize(
    ("machine", "lines"),
    [
        (replace(ROOM, disk=10**6), [r"^runs: some .* GB will be written .* has 0.0 GB free"]),
        (replace(ROOM, memory=GB // 2), ["^stage1 holds at least 0.7 GB .*has 0.5 GB of memory"]),
        (replace(ROOM, gpu=GB * 2 // 5), ["^stage1 holds at least 0.5 GB on each GPU"]),
        (replace(ROOM, disk=10**6, memory=GB // 2), ["^stage1 holds at least", "^runs: some"]),
    ],
    ids=["disk", "memory", "GPU", "both"],
)
def test_a_machine_that_is_too_small(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, machine: Machine, lines: list[str]
) -> None:
    monkeypatch.setattr(pipeline, "describe_machine", lambda folder: machine)
    found = told(capsys, "run")
    assert len(found) == len(lines)
    assert all(map(re.search, lines, found)), found


def test_what_is_held_is_counted_as_by_hand() -> None:
    """The demo's stage 2 on one rank: 4 bytes of a weight, 8 of its moments, 12 of their copies; three checkpoints."""
    config, machine = load_config("demo"), ROOM
    need = dict(preflight._needs(["stage2"], preflight.Run(config, None, 1, machine), machine))["stage2"]
    weights = need.kept / 4
    assert need.memory >= 24 * weights
    cached = 2 * (9 * 256 + 14 * 256 + 14 + 14 * 256 + 14 * 16 + 14 + 14 * 5 + 256) * (2 * 1000 + 150 + 300)
    assert need.passing == 3 * 12 * weights + 4 * weights + cached


def test_all_is_told_at_once_by_a_dry_run_too(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut("decoder/*-of-*.safetensors")(site)
    without("encoder/vocab.txt")(site)
    wrong = ["--data.path", "nowhere", "--stage2.dtype", "float16", "--generate.min-new-tokens", "200"]
    expected = [
        "data.path nowhere is not a folder", "encoder has no tokenizer", "header tells of", "float16 needs a GPU",
        "min_new_tokens 200",
    ]  # fmt: skip
    for dry in ([], ["--dry-run"]):
        lines = told(capsys, "run", *wrong, *dry)
        assert len(lines) == len(expected), lines
        assert all(text in line for text, line in zip(expected, lines, strict=True)), lines


def test_a_step_is_told_of_its_own_lacks_and_of_its_inputs(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without("encoder")(site)
    assert len(told(capsys, "prepare", "--data.path", "nowhere")) == 1
    (lines,) = told(capsys, "evaluate")
    assert "no data artefact" in lines
    inputs, encoder = told(capsys, "banks")
    assert "no data artefact" in inputs
    assert "no text encoder" in encoder


def test_where_all_is_there_nothing_is_said(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "site.yaml", "--dry-run"])
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == 6
    assert not Path("runs").exists()


def test_what_is_made_needs_nothing_of_what_only_it_needed(
    artefacts: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, classifier and banks are there: their sources may be gone."""
    monkeypatch.setitem(preflight._CHECKS, "prepare", lambda run: pytest.fail("data are there"))
    monkeypatch.setattr("amrg.models.vision._wheel_file", lambda: pytest.fail("the classifier is there"))
    monkeypatch.setattr("amrg.models.text_encoder.WHEELS", {})  # the report bank is there
    pipeline.check_before_start(tuple(pipeline.STEPS), artefacts.config)
    content = {**config_to_dict(artefacts.config), "runs": "elsewhere"}
    with pytest.raises(UserError, match="no text encoder at minilm"):
        pipeline.check_before_start(["banks"], config_from_dict(content, "here"))


def test_a_context_that_no_train_study_has_is_refused_where_the_data_are_made(artefacts: Any) -> None:
    config = artefacts.config
    asking = replace(
        config,
        decoder=replace(config.decoder, predict_outline=True, context=("age",)),
        generate=replace(config.generate, outline_source="retrieved", recall_context=("comparison",)),
    )
    with pytest.raises(UserError) as refused:
        pipeline.check_before_start(["stage2", "generate"], asking)
    for setting in ("decoder.context age", "generate.recall_context comparison"):
        assert f"{setting}: no train study has it" in str(refused.value)


def test_no_java_is_a_warning(site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(pipeline, "print_on_rank_0", lambda line: warned.append(line))
    warned: list[str] = []
    cli.main(["run", "site.yaml", "--dry-run"])
    assert warned == ["METEOR will be unavailable: no Java on this machine"]
    cli.main(["run", "site.yaml", "--dry-run", "--evaluate.no-meteor"])
    assert len(warned) == 1


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A hub that takes calls and never answers; how many came."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept())
                except OSError:
                    return
                calls.append(1)

        threading.Thread(target=take, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(model_files, "_silent", [])
        monkeypatch.setattr(model_files, "HUB_SECONDS", 0.5)
        yield calls
        server.shutdown(socket.SHUT_RDWR)
        for connection, _ in held:
            connection.close()


def test_a_silent_hub_is_asked_once(site: Path, capsys: pytest.CaptureFixture[str], silent_hub: list[int]) -> None:
    lines = told(capsys, "run", "--vision.weights", "None", "--decoder.model", "nobody/nothing")
    assert len(lines) == 2
    assert all("the hub does not answer" in line for line in lines)
    assert silent_hub == [1]


def test_offline_it_is_not_asked(
    site: Path, capsys: pytest.CaptureFixture[str], silent_hub: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lines = told(capsys, "run", "--vision.weights", "None", "--decoder.model", "nobody/nothing")
    assert all("HF_HUB_OFFLINE" in line for line in lines)
    assert silent_hub == []


@pytest.mark.parametrize(
    ("capability", "compiled", "native", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90", "compute_90"], True, []),
        ((8, 9), ["sm_80", "sm_90"], True, []),
        ((7, 0), ["sm_75", "sm_80"], False, ["this torch has no code for the GPU (sm_70)", "stage2.dtype bfloat16"]),
        ((7, 5), ["sm_75", "sm_80"], False, ["stage2.dtype bfloat16"]),
    ],
)
def test_what_an_old_gpu_cannot_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], compiled: list[str], native: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    config = config_from_dict({"stage2": {"dtype": "bfloat16"}}, "here")
    warnings = preflight._gpu_warnings(["stage2"], config)
    assert [warning[: len(start)] for warning, start in zip(warnings, expected, strict=True)] == expected
