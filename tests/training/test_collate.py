import dataclasses
import pickle

import numpy as np
import pytest
import torch

from amrg.banks.bank import patient_group_id
from amrg.config import Stage1Config
from amrg.data.labels import LABELS
from amrg.data.shards import hash_study_key
from amrg.data.stream import Sample, Stream, group_by_length, iter_split_samples
from amrg.data.studies import Study
from amrg.models.classifier import DiseaseClassifier, mean_over_views
from amrg.models.tokenizer import IGNORE_INDEX, ReportTokenizer, train_tokenizer
from amrg.models.vision import films_to_tensor
from amrg.training.collate import ImageBatch, ReportCollator, Stage1Collator, Stage2Collator, collate_images
from amrg.training.engine import split_global_batch
from amrg.training.stage1 import _CachedFilms

TEXTS = ["The lungs are clear.", "Small effusion.", "The heart is enlarged. No effusion. The lungs are clear."]


def samples():
    generator = np.random.default_rng(0)
    return [
        Sample(
            Study(f"s{n}", f"p{n}", "train", TEXTS[n], {label: float(n == 1) for label in LABELS}),
            [generator.integers(0, 256, (30 + n, 20), np.uint8) for _ in range(views)],
            {},
        )
        for n, views in enumerate((2, 1, 3))
    ]


def test_films_of_studies_are_cut_by_study_and_become_the_same_images():
    packed = collate_images(samples(), 16)
    assert (len(packed), packed.values_M.shape, packed.views) == (3, (6, 16, 16), (2, 1, 3))
    expected = films_to_tensor([view for sample in samples() for view in sample.views], 16)
    torch.testing.assert_close(packed.images(torch.device("cpu")), expected)
    for part, views, rows in ((packed[:1], (2,), [0, 1]), (packed[1:3], (1, 3), [2, 3, 4, 5]), (packed[3:], (), [])):
        assert part.views == views
        assert torch.equal(part.values_M, packed.values_M[rows])
    assert [piece.views for piece in split_global_batch((ImageBatch(torch.zeros(4, 2), (3, 1)),), 2)[1]] == [(1,)]


def test_a_study_is_the_mean_of_its_films():
    values = torch.arange(12.0).reshape(6, 2)
    found = mean_over_views(values, (2, 1, 3))
    assert found.tolist() == [[1, 2], [4, 5], [8, 9]]
    assert mean_over_views(values, (1,) * 6) is values


def test_packers_travel_to_other_processes_and_give_padded_batches():
    tokenizer = train_tokenizer(TEXTS, 60)
    encode = ReportTokenizer(tokenizer, False, 9)
    pack = pickle.loads(pickle.dumps(Stage2Collator(16, ReportCollator(encode))))
    batch = pack(samples())
    lengths = [len(encode(text)) for text in TEXTS]
    assert len(set(lengths)) == 3
    for row, text, length in zip(batch["report"], TEXTS, lengths, strict=True):
        assert row[:length].tolist() == encode(text)
        assert (row[length:] == IGNORE_INDEX).all()
    assert batch["group"].tolist() == [patient_group_id(f"p{n}") for n in range(3)]
    first = Stage1Collator(16, Stage1Config())(samples())
    films, targets_BK = first["films"], first["targets"]
    assert first["study"] == batch["study"] == [hash_study_key(f"s{n}") for n in range(3)]
    assert films.views == (2, 1, 3)
    assert targets_BK.sum(1).tolist() == [0, 14, 0]


def test_an_impression_is_marked_and_reports_without_one_do_not_end():
    tokenizer = train_tokenizer(["none. Report: Heart is large. Lungs clear. Impression: Cardiomegaly."] * 2, 90)
    whole, heart = "Lungs clear. Heart is enlarged. Cardiomegaly.", "Cardiomegaly."
    encode, outlined = (ReportTokenizer(tokenizer, outline, 99, separate=True) for outline in (False, True))

    def text(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    assert text(encode(whole, heart)) == "Lungs clear. Heart is enlarged. Impression: Cardiomegaly."
    assert encode(whole, heart)[-1] == tokenizer.eos_token_id
    assert encode(whole) == ReportTokenizer(tokenizer, False, 99)(whole)[:-1]
    assert text(outlined(whole, heart)) == (
        "cardiomegaly. Report: Heart is enlarged. Lungs clear. Impression: Cardiomegaly."
    )
    assert ReportTokenizer(tokenizer, False, 5, separate=True)(whole, heart) == encode(whole, heart)[:5]


@pytest.mark.parametrize(("count", "size"), [(64 * 7 + 3, 7), (40, 8), (3, 4)])
def test_grouping_by_length_shuffles_whole_batches_of_like_length(count, size):
    generator = np.random.default_rng(0)
    order, lengths = generator.permutation(count), generator.integers(1, 100, count)
    found = group_by_length(order, lengths, size, [0, 5])
    assert sorted(found) == sorted(order)
    assert (found == group_by_length(order, lengths, size, [0, 5])).all()
    whole = count // size * size
    if count > 100:
        assert (found != group_by_length(order, lengths, size, [0, 6])).any()

        def padding(drawn):
            batches = lengths[drawn[:whole]].reshape(-1, size)
            return (batches.max(1, keepdims=True) - batches).sum()

        assert padding(found) < 0.2 * padding(order)
        means = lengths[found[:whole]].reshape(-1, size).mean(1)[:16]
        assert (np.diff(means) < 0).any()  # not simply sorted
    assert (found[whole:] == order[whole:]).all()


def test_a_stream_grouped_by_length_is_the_same_for_any_world(artefacts):
    lengths = [number % 5 for number in range(16)]

    def keys(rank, world, epoch, start=0):
        stream = Stream(artefacts.data, "train", 4, 0, rank, world, lengths=lengths, collate=_keys)
        return list(stream.epoch(epoch, start))

    for epoch in range(3):
        whole = keys(0, 1, epoch)
        joined = [a + b for a, b in zip(keys(0, 2, epoch), keys(1, 2, epoch), strict=True)]
        assert [sorted(batch) for batch in joined] == [sorted(batch) for batch in whole]
        assert keys(0, 1, epoch, 2) == whole[2:]
    assert keys(0, 1, 0) != keys(0, 1, 1)


def _keys(batch):
    return [sample.study.key for sample in batch]


def test_stage_1_judges_a_study_by_all_its_films(artefacts, tmp_path):
    ours = dataclasses.replace(artefacts.config.stage1, augmented_copies=1, dtype="float32")
    model = DiseaseClassifier.from_pretrained(artefacts.stage1 / "model")
    cached = _CachedFilms(dataclasses.replace(artefacts.config, stage1=ours), artefacts.data, tmp_path, model)
    packed = [collate_images([sample], 224) for sample in iter_split_samples(artefacts.data, "test")]
    assert sorted(films.views for films in packed) == [(1,), (1,), (1,), (2,), (2,)]
    with torch.no_grad():
        found = cached.scores(model, "test")
        alone = [model(films.images(torch.device("cpu"))).scores_BK.mean(0).sigmoid() for films in packed]
    assert found == pytest.approx(torch.stack(alone).numpy(), abs=2e-3)  # the cache holds bfloat16
    batch = next(cached.batches(0, 0))
    inputs = batch["films"]
    assert len(inputs) == len(batch["targets"]) == len(batch["study"]) == ours.batch_size
    assert sum(inputs.views) == len(inputs.values_M) > len(inputs)
