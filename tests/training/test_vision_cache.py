"""What frozen vision sees: each study once, whoever looks at it, and wherever it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.data.stream import iter_split_samples
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision import films_to_tensor
from amrg.training import feature_cache, vision_cache
from amrg.training.stage2 import build_generator
from amrg.training.vision_cache import VisionCache


@pytest.fixture
def model(artefacts: Any, monkeypatch: pytest.MonkeyPatch) -> ReportGenerator:
    monkeypatch.setattr(feature_cache, "ROWS_PER_PART", 6)  # of 16 studies: three parts, the last one of four
    monkeypatch.setattr(vision_cache, "_BATCH", 4)
    return build_generator(artefacts.config, artefacts.data, artefacts.stage1, artefacts.banks)


def expected(artefacts: Any, model: ReportGenerator) -> list[torch.Tensor]:
    """Of the train studies, looked at one by one."""
    found = []
    with torch.no_grad():
        for sample in iter_split_samples(artefacts.data, "train"):
            sight = model.eval().encode_images(
                films_to_tensor(sample.views, model.stage1.config.image_size), [len(sample.views)]
            )
            found.append(sight)
    return [torch.cat(values) for values in zip(*found, strict=True)]


def check(cache: VisionCache, truth: list[torch.Tensor]) -> None:
    rows = torch.randperm(len(cache), generator=torch.Generator().manual_seed(0))
    for value, wanted in zip(cache[rows], truth, strict=True):
        torch.testing.assert_close(value, wanted[rows], rtol=1e-2, atol=1e-2)  # kept as bfloat16


def test_each_study_is_seen(artefacts: Any, model: ReportGenerator, tmp_path: Path) -> None:
    check(VisionCache(model, artefacts.data, "train", tmp_path, "float32"), expected(artefacts, model))


def test_what_was_stopped_goes_on_on_another_number_of_ranks(
    artefacts: Any, model: ReportGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two ranks finishes its part; alone, one is stopped in its first part; then it does the rest."""
    looked: list[int] = []
    look = vision_cache.encode_study_films

    def counted(model: Any, films: Any) -> Any:
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(len(films.views))
        return look(model, films)

    monkeypatch.setattr(vision_cache, "encode_study_films", counted)
    with monkeypatch.context() as second:
        second.setattr(feature_cache, "global_rank", lambda: 1)
        second.setattr(feature_cache, "world_size", lambda: 2)
        second.setattr(feature_cache, "barrier", lambda: None)
        VisionCache(model, artefacts.data, "train", tmp_path, "float32")
    assert looked == [4, 2]
    with pytest.raises(KeyboardInterrupt):
        VisionCache(model, artefacts.data, "train", tmp_path, "float32")
    looked.clear()
    cache = VisionCache(model, artefacts.data, "train", tmp_path, "float32")
    assert looked == [2, 4]  # the rest of the first part, and the third
    monkeypatch.setattr(vision_cache, "encode_study_films", look)
    check(cache, expected(artefacts, model))
