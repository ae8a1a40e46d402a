import json
import math

import pytest
import torch

from amrg.config import VisionConfig
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier, LogSumExpHead, query_cosines

CONFIG = VisionConfig(image_size=64, embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=2, qformer_heads=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DiseaseClassifier(CONFIG).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_shapes(model, images):
    out = model(images)
    assert out.tokens_BND.shape == (3, 4, 24)
    assert out.queries_BQD.shape == (3, 14, 24)
    assert out.logits_BK.shape == out.cam_logits_BK.shape == out.scores_BK.shape == (3, 14)
    assert out.fine_BHWC.shape == (3, 4, 4, 32)
    assert out.pooled_BD.shape == (3, 24)
    assert out.projected_BHWD.shape == (3, 4, 4, 24)
    assert torch.equal(model.fine_projection(out.fine_BHWC), out.projected_BHWD)


def test_a_film_is_judged_alone_and_the_stem_may_be_cached(model, images):
    with torch.no_grad():
        together, cached = model(images), model.from_stem(model.encoder.stem(images))
        assert torch.equal(together.logits_BK, cached.logits_BK)
        for b in range(3):
            alone = model(images[b : b + 1])
            for name in ("logits_BK", "cam_logits_BK", "queries_BQD", "tokens_BND"):
                torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[b], rtol=1e-4, atol=1e-5)


def test_label_i_comes_from_query_i(model, images):
    out = model(images)
    (gradient_BQD,) = torch.autograd.grad(out.logits_BK[:, 5].sum(), out.queries_BQD)
    assert gradient_BQD[:, 5].any()
    assert not gradient_BQD[:, :5].any()
    assert not gradient_BQD[:, 6:].any()


def test_both_heads_and_every_part_learn(model, images):
    model.zero_grad()
    out = model(images)
    (out.logits_BK.square().sum() + out.cam_logits_BK.square().sum()).backward()
    dead = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead
    model.zero_grad()


def test_pooled_head_by_hand():
    torch.manual_seed(0)
    head, fine_BHWC = LogSumExpHead(3), torch.randn(2, 2, 3, 3)
    logits_BK = head(fine_BHWC)
    for b in range(2):
        for k in range(14):
            cells = [
                (fine_BHWC[b, y, x] @ head.linear.weight[k] + head.linear.bias[k]).item()
                for y in range(2)
                for x in range(3)
            ]
            assert float(logits_BK[b, k]) == pytest.approx(math.log(sum(map(math.exp, cells)) / 6), abs=1e-5)


def test_saved_and_loaded_it_is_the_same(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = DiseaseClassifier.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(images).scores_BK, model(images).scores_BK)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_foreign_folder_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="not a saved disease classifier"):
        DiseaseClassifier.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for change, message in (({"labels": LABELS[::-1]}, "other labels"), ({"vision": {"embed_dim": 64}}, "do not fit")):
        changed = json.loads(json.dumps(content | {"vision": content["vision"] | change.pop("vision", {})} | change))
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            DiseaseClassifier.from_pretrained(tmp_path)


def test_heads_must_divide_the_query_width():
    with pytest.raises(UserError, match="qformer_heads 5"):
        DiseaseClassifier(VisionConfig(qformer_heads=5))


def test_a_query_must_have_room_for_a_place_and_what_is_there():
    with pytest.raises(UserError, match=r"vision\.query_dim 16 must exceed 16"):
        DiseaseClassifier(VisionConfig(query_dim=16, qformer_heads=2))


def test_cosines_of_queries_are_those_of_each_pair_of_findings():
    queries_BQD = torch.randn(3, 14, 6, generator=torch.Generator().manual_seed(0))
    for found_P, queries_QD in zip(query_cosines(queries_BQD), queries_BQD.double(), strict=True):
        pairs = [(i, j) for i in range(13) for j in range(i + 1, 13)]
        expected = [torch.cosine_similarity(queries_QD[i], queries_QD[j], dim=0) for i, j in pairs]
        assert found_P.tolist() == pytest.approx([float(cosine) for cosine in expected], abs=1e-6)
    same_BQD = queries_BQD[:, :1] * torch.arange(1, 15)[:, None]  # of different lengths; No Finding is no finding
    same_BQD[:, 13] *= -1
    assert query_cosines(same_BQD).flatten().tolist() == pytest.approx([1.0] * 3 * 78, abs=1e-6)
    assert not query_cosines(torch.eye(14)[None]).any()


def test_gradient_of_the_diversity_loss_moves_two_queries_apart():
    """d/da of cos²(a, b) for unit a: 2 cos (b − cos a), over the 78 pairs."""
    queries_BQD = torch.eye(14)[None].clone()
    queries_BQD[0, 1] = torch.tensor([0.6, 0.8] + [0.0] * 12)
    queries_BQD.requires_grad_(True)
    query_cosines(queries_BQD).square().mean().backward()
    expected = 2 * 0.6 * (queries_BQD[0, 1] - 0.6 * queries_BQD[0, 0]) / 78
    assert torch.allclose(queries_BQD.grad[0, 0], expected, atol=1e-7)
    assert not queries_BQD.grad[0, 13].any()
