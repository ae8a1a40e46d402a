"""What libraries would say between our lines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from amrg.config import DecoderConfig
from amrg.models.decoder import build_decoder
from amrg.models.decoder_loading import load_pretrained
from tests.conftest import report


def save_base(folder: Path) -> None:
    """A tiny Llama with what Llama-2-chat's own file says of writing."""
    small = DecoderConfig(hidden_size=32, layers=1, heads=2, vocab_size=200)
    for part in build_decoder(small, [report(number) for number in range(6)], 0):
        part.save_pretrained(folder)
    told = {"max_length": 4096, "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(told))


def test_how_to_write_is_not_said_by_the_base_model(tmp_path: Path) -> None:
    save_base(tmp_path)
    model, tokenizer = load_pretrained(str(tmp_path))
    told = model.generation_config
    assert (told.max_length, told.temperature, told.top_p, told.do_sample) == (None, None, None, None)
    assert told.eos_token_id == tokenizer.eos_token_id


def test_what_deepspeed_prints_when_it_is_imported_is_on_neither_stream() -> None:
    """Where there is a GPU and no CUDA toolkit, it prints to both, by Python and by the linker."""
    script = (
        "import os; from amrg.training.deepspeed_internals import _silent_linker\n"
        "with _silent_linker(): print('no CUDA_HOME'); os.write(1, b'no -laio'); os.write(2, b'no -laio')\n"
        "print('here')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("here\n", "")


def test_no_library_warns_between_our_lines(artefacts: Any, tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    command = [sys.executable, "-m", "tests.training.quiet_worker", artefacts.data.parent.parent, tmp_path / "base"]
    done = subprocess.run([*map(str, command), str(tmp_path / "made")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "writing reports: " in said
    for noise in ("Warning", "[transformers]", "seem to have been set", "repetition_penalty"):
        assert noise not in said, said
