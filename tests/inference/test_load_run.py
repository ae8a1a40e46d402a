"""``amrg.load_run``: the reports of `amrg write`, from Python."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import amrg
from amrg.cli import main
from amrg.data.stream import iter_split_samples
from amrg.errors import UserError

IMPORTS = """
import sys
def refuse(*names): assert not (found := sys.modules.keys() & set(names)), found
import amrg
refuse("torch")
import amrg.commands.export, amrg.commands.serve, amrg.commands.view, amrg.commands.write
import amrg.cluster.pipeline
refuse("torchvision", "transformers", "timm", "peft", "scipy.optimize")
from amrg import load_run
refuse("peft", "bitsandbytes")
"""


def test_what_takes_a_second_to_import_is_imported_where_it_is_used():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        amrg.load_runs  # noqa: B018


def test_reports_are_those_of_amrg_write(run, folder, tmp_path, capfd):
    studies = [sample.views for sample in iter_split_samples(run["data"].path, "test")]
    assert len({len(views) for views in studies}) > 1  # studies with one film and with several
    paths = []
    for number, views in enumerate(studies):
        paths.append([tmp_path / f"{number}" / f"{view}.png" for view in range(len(views))])
        paths[-1][0].parent.mkdir()
        for path, view in zip(paths[-1], views, strict=True):
            Image.fromarray(view).save(path)
    main(["write", str(folder), *(str(films[0].parent) for films in paths)])
    written = [line.partition(": ")[2] for line in capfd.readouterr().out.splitlines()]

    loaded = amrg.load_run(str(folder))
    assert loaded.generate([list(views) for views in studies]) == written
    assert loaded.generate([[str(path) for path in films] for films in paths]) == written
    single = next(number for number, films in enumerate(paths) if len(films) == 1)
    assert loaded.generate([studies[single][0]]) == [written[single]]
    assert loaded.generate([paths[single][0]]) == [written[single]]
    assert loaded.generate([]) == []

    (tmp_path / "text.png").write_text("no film")
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for film, message in (
        (tmp_path / "text.png", "text.png: not a readable image"),
        (tmp_path / "missing.png", "missing.png: No such file"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 array \[H, W\], not uint8 \[8, 8, 3\]"),
        (np.zeros((8, 8)), "not float64"),
        ([], "without films"),
        (tmp_path / "noise.png", "noise.png: noise or text, no radiograph"),
        (noise, "^noise or text, no radiograph"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.generate([film])
    capfd.readouterr()
    (text,) = loaded.generate([noise], force=True)
    assert text
    assert capfd.readouterr().err == "forced: noise or text, no radiograph\n"
