"""What the launches of each card need at most, and versions of Triton that are not to be had."""

from pathlib import Path

import pytest

from amrg.errors import UserError
from benchmarks.triton_versions import CardSummary, compile_all, summarize


def row(card: int, registers: int, spills: int, shared: int, violations: str = "") -> dict[str, str]:
    numbers = {"card": card, "width": 768, "registers": registers, "spills": spills, "shared": shared}
    return {"kernel": "forward", "storage": "half", "violations": violations} | {
        name: str(value) for name, value in numbers.items()
    }


def test_the_most_of_each_card_is_told() -> None:
    rows = [row(90, 168, 0, 2048), row(90, 255, 3, 1024, "registers spill"), row(120, 9, 0, 512), row(90, 20, 7, 0)]
    found = {one.card: one for one in summarize("3.8.0", rows)}
    assert list(found) == [80, 86, 89, 90, 100, 103, 120]
    assert found[90] == CardSummary("3.8.0", 90, 3, 255, 2048, 2, 7, ("forward half 768: registers spill",))
    assert found[90].cells() == ("3.8.0", 90, 3, 255, "2", "227", 2, 7, "forward half 768: registers spill")
    assert found[120].violations == ()
    assert found[80].launches == 0


def test_a_version_that_the_registry_does_not_have_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"^triton 3.5 cannot be installed: .*triton==3.5") as refused:
        compile_all("3.5", tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "3.5" / "package").exists()
