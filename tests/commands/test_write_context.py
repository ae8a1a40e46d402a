"""``amrg write`` and ``amrg.load_run`` with clinical context."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amrg
from amrg.cli import main
from amrg.errors import UserError
from tests.conftest import report
from tests.data.test_image_io import dicom
from tests.made_films import chest_film

SECRET = "cough since a visit to Ruritania"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    Image.fromarray(chest_film(0)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_report_depends_on_the_indication(informed: Path, film: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run has learned one report for a cough, and another without context."""
    for options, number, read in (
        (["--indication", "XXXX-year-old with cough"], 0, ["indication"]),
        ([], 1, []),
        (["--technique", "PA"], 1, []),
    ):
        main(["write", str(informed), str(film), "--json", *options])
        told = capfd.readouterr()
        (line,) = lines(told.out)
        assert (line["generated"], line["context"]) == (report(number), read)
        assert ("this run does not read technique" in told.err) is ("--technique" in options)
    loaded = amrg.load_run(str(informed))
    pixels = np.asarray(Image.open(film))
    assert loaded.generate([pixels] * 2, contexts=[{"indication": "Cough"}, {}]) == [report(0), report(1)]
    assert loaded.context_fields == ("indication", "age", "sex")
    with pytest.raises(UserError, match="1 contexts for 2 studies"):
        loaded.generate([pixels] * 2, contexts=[{}])


def test_a_table_has_a_context_for_each_study_and_dicom_tells_the_rest(
    informed: Path, film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dicom(tmp_path / "tagged.dcm", chest_film(1), PatientAge="041Y", PatientSex="F")
    (tmp_path / "list.csv").write_text("study,film,indication,age\na,film.png,Cough,\nb,film.png,,\nc,tagged.dcm,,63\n")
    main(["write", str(informed), str(tmp_path / "list.csv"), "--json"])
    found = lines(capfd.readouterr().out)
    assert [line["context"] for line in found] == [["indication"], [], ["age", "sex"]]
    assert [line["generated"] for line in found[:2]] == [report(0), report(1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--age", SECRET], "--age must be whole years"),
        (["--sex", SECRET], "--sex must be female or male"),
        (["--indication", SECRET], "are of one study, and there are 2"),
    ],
)
def test_what_is_wrong_is_told_without_the_text(
    informed: Path, film: Path, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["write", str(informed), str(film), str(film), *options])
    told = capfd.readouterr()
    assert end.value.code == 2
    assert message in told.err
    assert SECRET not in told.out + told.err


def test_a_line_of_a_table_is_named_and_no_text_is_told(
    informed: Path, film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(f"study,film,age\na,film.png,63\nb,film.png,{SECRET}\n")
    with pytest.raises(SystemExit):
        main(["write", str(informed), str(tmp_path / "list.csv")])
    told = capfd.readouterr().err
    assert "line 3: age must be whole years" in told
    assert SECRET not in told
    main(["write", str(informed), str(film), "--json", "--indication", SECRET])
    told_all = capfd.readouterr()
    assert SECRET not in told_all.out + told_all.err


def test_a_run_without_context_says_that_it_reads_none(
    folder: Path, film: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["write", str(folder), str(film), "--json", "--indication", SECRET])
    told = capfd.readouterr()
    assert "this run does not read indication, which is left out" in told.err
    assert "context" not in lines(told.out)[0]
