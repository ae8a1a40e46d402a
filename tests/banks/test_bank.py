import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from amrg.banks.bank import PROVENANCE, MemoryBank, normalise_rows, patient_group_id
from amrg.banks.writer import BankWriter, concatenate_parts
from amrg.errors import UserError

D = 12


def vectors(rows, seed=0):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def origin(number, **more):
    return {"key": f"k{number}", "group": f"p{number % 4}", "split": "train", "source": "region"} | more


def write(folder, rows_ND=None, pieces=(5, 11, 7), **options):
    rows_ND = vectors(23) if rows_ND is None else rows_ND
    with BankWriter(folder, D, **{"chunk_rows": 8} | options) as writer:
        start = 0
        for piece in pieces:
            writer.add(rows_ND[start : start + piece], [origin(number) for number in range(start, start + piece)])
            start += piece
    return MemoryBank.open(folder)


def layer_norm(rows):
    """The definition, in float64."""
    rows = rows.double()
    variance = rows.var(1, unbiased=False, keepdim=True)
    return (rows - rows.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
def test_rows_come_back_normalised_in_any_range(tmp_path, dtype, tolerance):
    bank = write(tmp_path, dtype=dtype)
    expected = layer_norm(vectors(23))
    assert bank.load().dtype == dtype
    assert len(bank) == 23
    for start in range(24):
        for stop in range(start, 24):
            part = bank.rows(start, stop)
            assert part.shape == (stop - start, D)
            torch.testing.assert_close(part.double(), expected[start:stop], atol=tolerance, rtol=tolerance)


def test_bytes_do_not_depend_on_how_rows_were_added(tmp_path):
    write(tmp_path / "a", pieces=(5, 11, 7))
    write(tmp_path / "b", pieces=(23,))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "rows-00009.safetensors").write_text("left by an interrupted writer")
    write(tmp_path / "c", pieces=(8, 8, 7))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"]
    assert contents[0] == contents[1] == contents[2]
    assert sorted(contents[0]) == [
        "bank.json",
        "provenance.parquet",
        "rows-00000.safetensors",
        "rows-00001.safetensors",
        "rows-00002.safetensors",
    ]


def test_provenance_says_where_each_row_came_from(tmp_path):
    full = origin(0, findings=["Edema", "Fracture"], box=[1, 2, 3, 4], text="a", score=0.5)
    token = {"key": "", "group": "", "split": "train", "source": "disease_token", "findings": ["Edema"]}
    with BankWriter(tmp_path, D, encoder_info={"encoder": "e"}) as writer:
        writer.add(vectors(3), [full, token, origin(2)])
    bank = MemoryBank.open(tmp_path)
    table = bank.provenance.to_pylist()
    assert {name: table[0][name] for name in full} == full
    assert {name: table[1][name] for name in token} == token
    assert [row["row"] for row in table] == [0, 1, 2]
    assert [row["group_id"] for row in table] == [patient_group_id("p0"), -1, patient_group_id("p2")]
    assert table[2]["findings"] is None
    assert bank.groups.tolist() == [patient_group_id("p0"), -1, patient_group_id("p2")]
    assert bank.groups.dtype == torch.int64
    assert bank.header["splits"] == {"train": 3}
    assert bank.header["about"] == {"encoder": "e"}


def test_group_ids_are_stable_distinct_and_never_the_reserved_one():
    ids = [patient_group_id(f"patient {number}") for number in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 0
    assert max(ids) < 2**63
    assert patient_group_id("") == -1


@pytest.mark.parametrize(("position", "value"), [(3, float("nan")), (6, float("inf")), (22, -float("inf"))])
def test_a_row_that_is_not_finite_is_named_and_leaves_no_bank(tmp_path, position, value):
    rows = vectors(23)
    rows[position, 3] = value
    with pytest.raises(UserError, match=f"row {position} is not finite"):
        write(tmp_path, rows)
    with pytest.raises(UserError, match="not a memory bank"):
        MemoryBank.open(tmp_path)


def test_another_length_and_an_empty_bank_are_refused(tmp_path):
    with pytest.raises(UserError, match="have 13 numbers, the bank 12"), BankWriter(tmp_path, D) as writer:
        writer.add(torch.randn(2, 13), [origin(0), origin(1)])
    with pytest.raises(UserError, match="no rows"), BankWriter(tmp_path, D):
        pass


def test_held_out_rows_are_refused_unless_allowed_and_then_counted(tmp_path):
    rows = [origin(0), origin(1, split="test")]
    with pytest.raises(UserError, match="row 1 comes from the split `test`"), BankWriter(tmp_path, D) as writer:
        writer.add(vectors(2), rows)
    with BankWriter(tmp_path, D, allow_split=("train", "test")) as writer:
        writer.add(vectors(2), rows)
    assert MemoryBank.open(tmp_path).header["splits"] == {"test": 1, "train": 1}


def test_a_constant_row_stays_finite():
    assert normalise_rows(torch.full((2, D), 7.0)).abs().max() == 0


def cut_chunk(folder):
    path = folder / "rows-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def other_shape(folder):
    save_file({"rows": torch.zeros(8, D + 1)}, folder / "rows-00001.safetensors")


def lose_chunk(folder):
    (folder / "rows-00001.safetensors").unlink()


def lose_row(folder):
    table = pq.read_table(folder / "provenance.parquet")
    pq.write_table(pa.concat_tables([table.slice(0, 3), table.slice(4)]), folder / "provenance.parquet")


def swap_chunks(folder):
    first, second, spare = (folder / f"{name}.safetensors" for name in ("rows-00000", "rows-00001", "spare"))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def cut_table(folder):
    path = folder / "provenance.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def wrong_count(folder):
    header = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps(header | {"rows": 24}))


def no_header(folder):
    (folder / "bank.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_chunk, r"rows-00001\.safetensors: rows 8 to 15 are missing or unreadable"),
        (other_shape, r"rows-00001\.safetensors: rows 8 to 15 have shape \[8, 13\], not \[8, 12\]"),
        (lose_chunk, r"rows-00001\.safetensors: rows 8 to 15 are missing or unreadable"),
        (lose_row, r"provenance\.parquet: 22 rows, the bank 23: row 3 is missing"),
        (cut_table, r"provenance\.parquet: missing or unreadable"),
        (wrong_count, r"bank\.json: its chunks have 23 rows, the bank 24"),
        (swap_chunks, r"rows-00000\.safetensors: holds the rows from 8 on where rows 0 to 7 belong"),
        (no_header, r"not a memory bank"),
    ],
)
def test_a_damaged_bank_is_one_line_that_names_the_file(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        MemoryBank.open(tmp_path)
    assert "\n" not in str(caught.value)


def flip_byte(folder):
    path = folder / "rows-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the last row of the chunk
    path.write_bytes(content)


def put_nan(folder):
    path = folder / "rows-00001.safetensors"
    rows = load_file(path)["rows"]
    rows[2, 5] = float("nan")
    save_file({"rows": rows}, path, {"first": "8"})


def swap_contents(folder):
    """Chunks that claim each other's place."""
    first, second = (folder / f"rows-{number:05d}.safetensors" for number in (0, 1))
    rows = load_file(first)["rows"], load_file(second)["rows"]
    save_file({"rows": rows[1]}, first, {"first": "0"})
    save_file({"rows": rows[0]}, second, {"first": "8"})


def rewrite_origin(folder):
    table = pq.read_table(folder / "provenance.parquet").to_pylist()
    table[4]["key"] = "somebody"
    pq.write_table(pa.Table.from_pylist(table, schema=PROVENANCE), folder / "provenance.parquet")


def double_row(folder):
    table = pq.read_table(folder / "provenance.parquet")
    doubled = pa.concat_tables([table.slice(0, 3), table.slice(2, 1), table.slice(4)])
    pq.write_table(doubled, folder / "provenance.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_byte, r"rows-00001\.safetensors: row 15 was changed"),
        (put_nan, r"rows-00001\.safetensors: row 10 is not finite"),
        (swap_contents, r"rows-00000\.safetensors: row 0 was changed"),
        (rewrite_origin, r"provenance\.parquet: row 4 says something else"),
        (double_row, r"provenance\.parquet: row 3 is missing: row 2 stands in its place"),
    ],
)
def test_verification_names_the_file_and_the_row(tmp_path, damage, message):
    write(tmp_path).verify()
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        MemoryBank.open(tmp_path).verify()


def test_int8_rows_carry_their_scale(tmp_path):
    bank = write(tmp_path, dtype=torch.int8)
    bank.verify()
    expected = layer_norm(vectors(23))
    assert bank.rows(3, 9).dtype == torch.int8
    torch.testing.assert_close(bank.dequantized(3, 9).double(), expected[3:9], atol=0.012, rtol=0)
    assert (bank.rows(0, 23).int().abs().amax(1) == 127).all()


def test_parts_written_side_by_side_join_to_the_same_bank(tmp_path):
    whole = write(tmp_path / "whole")
    for name, (start, stop) in {"a": (0, 8), "b": (8, 9), "c": (9, 23)}.items():
        with BankWriter(tmp_path / name, D, chunk_rows=8) as writer:
            writer.add(vectors(23)[start:stop], [origin(number) for number in range(start, stop)])
    joined = concatenate_parts([tmp_path / name for name in "abc"], tmp_path / "joined")
    joined.verify()
    assert joined.content_hash == whole.content_hash
    assert joined.load().equal(whole.load())
    assert joined.provenance.equals(whole.provenance)


def test_chunks_are_plain_safetensors(tmp_path):
    bank = write(tmp_path)
    chunks = [load_file(path)["rows"] for path in sorted(tmp_path.glob("rows-*"))]
    assert [len(chunk) for chunk in chunks] == [8, 8, 7]
    np.testing.assert_array_equal(torch.cat(chunks).numpy(), bank.load().numpy())
