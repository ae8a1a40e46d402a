"""``amrg write`` with an earlier study."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from amrg.cli import main
from tests.conftest import report
from tests.made_films import chest_film

SECRET = "effusion after a visit to Ruritania"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    for name in ("film", "earlier"):
        Image.fromarray(chest_film(len(name))).save(tmp_path / f"{name}.png")
    return tmp_path / "film.png"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_report_depends_on_the_earlier_study(
    comparing: Path, film: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run has learned one report for an earlier study with report and films, and another without one."""
    before = film.with_name("before.txt")
    before.write_text(f"FINDINGS: {report(2)}\nIMPRESSION: {SECRET}.\n")
    earlier = ["--prior", str(film.with_name("earlier.png")), "--prior-days", "30"]
    for options, number, read in (
        ([], 1, False),
        ([*earlier, "--prior-report", report(2)], 0, True),
        ([*earlier, "--prior-report", str(before)], 0, True),
    ):
        main(["write", str(comparing), str(film), "--json", *options])
        told = capfd.readouterr()
        (line,) = lines(told.out)
        assert (line["generated"], line["prior"]) == (report(number), read)
        assert SECRET not in told.out + told.err


def test_a_table_has_an_earlier_study_for_each_study(
    comparing: Path, film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(
        f"study,film,prior_report,prior,prior_days\na,film.png,{report(2)},earlier.png,30\nb,film.png,,,\n"
    )
    main(["write", str(comparing), str(tmp_path / "list.csv"), "--json"])
    assert [(line["prior"], line["generated"]) for line in lines(capfd.readouterr().out)] == [
        (True, report(0)),
        (False, report(1)),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior-days", SECRET, "--prior-report", "Clear."], "--prior-days must be a whole number of days"),
        (["--prior-days", "3"], "--prior-days: no report or film of an earlier study is given"),
        (["--prior-report", f"{SECRET}.txt"], "--prior-report: the .txt cannot be read (FileNotFoundError)"),
    ],
)
def test_what_is_wrong_is_told_without_the_text(
    comparing: Path, film: Path, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["write", str(comparing), str(film), *options])
    told = capfd.readouterr()
    assert end.value.code == 2
    assert message in told.err
    assert SECRET not in told.out + told.err


def test_one_earlier_study_is_of_one_study(comparing: Path, film: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["write", str(comparing), str(film), str(film.with_name("earlier.png")), "--prior-report", SECRET])
    assert "are of one study, and there are 2" in capfd.readouterr().err


def test_a_run_that_reads_none_says_so(folder: Path, film: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["write", str(folder), str(film), "--json", "--prior-report", SECRET])
    told = capfd.readouterr()
    assert "this run does not read an earlier study, which is left out" in told.err
    assert "prior" not in lines(told.out)[0]
    assert SECRET not in told.out + told.err
