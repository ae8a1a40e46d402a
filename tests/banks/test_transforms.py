"""Banks made of banks, against plain computations on all rows."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from amrg.banks import transforms
from amrg.banks.bank import MemoryBank
from amrg.banks.sampling import k_center_sample
from amrg.banks.transforms import RowSelection, merge_banks, write_bank_subset
from amrg.banks.writer import BankWriter
from amrg.errors import UserError

D = 6
NAMES = ("Edema", "Fracture", "Atelectasis")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "BLOCK", 7)


def make(folder, rows, seed=0, split="train", dtype=torch.float32, vectors=None, about=None) -> MemoryBank:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, D, generator=generator) if vectors is None else vectors
    with BankWriter(folder, D, dtype=dtype, chunk_rows=8, allow_split=(split,), encoder_info=about) as writer:
        writer.add(
            vectors,
            [
                {"key": f"k{seed}-{i}", "group": f"p{i % 5}", "split": split, "source": "region" if i % 2 else "report",
                 "findings": [NAMES[i % 3]] if i % 4 else []}
                for i in range(rows)
            ],
        )  # fmt: skip
    return MemoryBank.open(folder)


def keys(bank: MemoryBank) -> list[str]:
    return bank.provenance["key"].to_pylist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_merging_keeps_every_row_bit_by_bit(tmp_path, dtype) -> None:
    banks = [make(tmp_path / str(n), rows, n, dtype=dtype) for n, rows in enumerate((19, 3, 8))]
    merged = merge_banks(banks, tmp_path / "merged")
    merged.verify()
    assert merged.load().equal(torch.cat([bank.load() for bank in banks]))
    assert keys(merged) == [key for bank in banks for key in keys(bank)]
    assert merged.groups.equal(torch.cat([bank.groups for bank in banks]))
    assert merged.header["splits"] == {"train": 30}


def test_unlike_banks_do_not_merge(tmp_path) -> None:
    one = make(tmp_path / "one", 5, about={"encoder": "a"})
    with pytest.raises(UserError, match=r"two.*int8"):
        merge_banks([one, make(tmp_path / "two", 5, dtype=torch.int8)], tmp_path / "out")
    with pytest.raises(UserError, match="another encoder"):
        merge_banks([one, make(tmp_path / "three", 5, about={"encoder": "b"})], tmp_path / "out")
    with pytest.raises(UserError, match="is not empty"):
        merge_banks([one, one], tmp_path / "one")


def test_conditions_choose_rows_in_their_order(tmp_path) -> None:
    bank = make(tmp_path / "bank", 30)
    part = write_bank_subset(bank, RowSelection(findings=("Edema",), sources=("region",)), tmp_path / "part")
    part.verify()
    expected = [i for i in range(30) if i % 4 and i % 3 == 0 and i % 2]
    assert keys(part) == [f"k0-{i}" for i in expected]
    assert part.load().equal(bank.load()[expected])
    with pytest.raises(UserError, match="no row"):
        write_bank_subset(bank, RowSelection(splits=("test",)), tmp_path / "none")


def test_quantising_is_within_half_a_step(tmp_path) -> None:
    bank = make(tmp_path / "bank", 30)
    small = write_bank_subset(bank, RowSelection(), tmp_path / "small", torch.int8)
    step = small.scale(0, 30)
    assert step is not None
    assert bool(((small.dequantized(0, 30) - bank.load()).abs() <= step[:, None] * 0.5001).all())
    assert keys(small) == keys(bank)


def test_near_duplicates_go_and_the_first_stays(tmp_path) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(10, D, generator=generator)
    vectors = torch.cat([base, base[[2, 7]] * 1.5, base[[2]] + 1e-3, torch.randn(9, D, generator=generator)])
    bank = make(tmp_path / "bank", len(vectors), vectors=vectors)
    unit = torch.nn.functional.normalize(bank.load())
    expected: list[int] = []
    for i in range(len(unit)):
        if not any(float(unit[i] @ unit[j]) >= 0.999 for j in expected):
            expected.append(i)
    assert not {10, 11, 12} & set(expected)
    assert keys(write_bank_subset(bank, RowSelection(duplicate_cosine=0.999), tmp_path / "part")) == [
        f"k0-{i}" for i in expected
    ]


@pytest.mark.parametrize("sampling", ["proportional", "uniform", "stratified", "k-center"])
def test_samples_have_their_size_and_follow_the_seed(tmp_path, sampling) -> None:
    bank = make(tmp_path / "bank", 40)
    first, again, other = (
        write_bank_subset(bank, RowSelection(rows=11, sampling=sampling, seed=seed), tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert len(first) == 11
    assert keys(first) == keys(again) != keys(other)


def test_k_center_takes_the_farthest_each_time() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [4.0], [4.0]])
    seed = next(s for s in range(50) if np.random.default_rng(s).integers(6) == 0)
    for rows, expected in ((1, [0]), (2, [0, 3]), (3, [0, 3, 4]), (6, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])):
        assert k_center_sample(lambda: points.split(4), 6, rows, seed).tolist() == expected


def test_a_range_is_read_without_the_rest(tmp_path) -> None:
    """Half of the rows costs about half of the bytes."""
    rows = torch.randn(64, 2**15, generator=torch.Generator().manual_seed(0))
    with BankWriter(tmp_path / "bank", rows.shape[1], chunk_rows=8) as writer:
        writer.add(rows, [{"key": "k", "group": "p", "split": "train", "source": "region"}] * 64)
    program = (
        "import sys; from pathlib import Path; from amrg.banks.bank import MemoryBank; "
        "from benchmarks.sharded_bank import drop_page_cache, read_bytes; folder = Path(sys.argv[1]); "
        "bank = MemoryBank.open(folder); drop_page_cache(folder); before = read_bytes(); "
        "rows = bank.rows(int(sys.argv[2]), int(sys.argv[3])); print(read_bytes() - before)"
    )
    half, whole = (
        int(subprocess.run([sys.executable, "-c", program, str(tmp_path / "bank"), *span], text=True, check=True,
                           stdout=subprocess.PIPE).stdout)
        for span in (("32", "64"), ("0", "64"))
    )  # fmt: skip
    assert half <= 0.75 * whole + 2**20  # some read-ahead; a file system in memory reads nothing at all
