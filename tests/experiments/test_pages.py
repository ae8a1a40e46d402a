"""Words, table and plot of every experiment, from made-up scores."""

from dataclasses import replace

from amrg.config import Config
from amrg.experiments.registry import EXPERIMENTS
from tests.experiments.fake_results import write_results


def test_every_experiment_has_a_page(tmp_path):
    page = write_results(replace(Config(), runs=str(tmp_path)))
    text = page.read_text()
    assert len(EXPERIMENTS) == 18
    for experiment in EXPERIMENTS.values():
        assert experiment.title in text
        assert (page.parent / experiment.name / "index.html").is_file()
