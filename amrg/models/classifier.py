"""Stage 1's model: vision encoder, Q-Former with 14 learned disease queries, and two 14-way multi-label heads.

With ``vision.view_embeddings`` an embedding of the film's view (``VIEW_KINDS``) is added to its tokens before the
Q-Former reads them. With ``vision.film_fusion attention`` the features of a study are not the mean over its films but a
sum with weights that are learned for each label, a simple form of the attention pooling of Ilse et al. 2018,
arXiv:1802.04712, equation 8:

    a_mk = softmax over the study's films m of ⟨w_k, LayerNorm(q_mk)⟩

with the query q_mk of the label on the film. They begin as the mean (w = 0). The weight of a film's tokens is the mean
of a_mk over the labels. A study of one film is that film, bit for bit.

Shape legend: B batch, M films, N visual tokens, D query width, Q = K = 14 labels, H W grid rows and columns,
C channels, V kinds of views.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from amrg.config import VisionConfig
from amrg.config_files import config_to_dict, read_config_section
from amrg.data.film_checks import VIEW_KINDS
from amrg.data.labels import FINDINGS, LABELS
from amrg.errors import UserError
from amrg.models.encoder_base import VisionFeatures
from amrg.models.encoder_files import EncoderDescription
from amrg.models.graph_attention import GraphAttention
from amrg.models.profiling import QFORMER, VISION, profile_region
from amrg.models.qformer import build_qformer
from amrg.models.regions import PLACES
from amrg.models.vision import build_encoder

#: Share of the films whose view is taken for unknown in training, so that it may lack later.
UNKNOWN_VIEWS = 0.1


class Stage1Output(NamedTuple):
    """Stage 1's output for a batch; a tuple, as ZeRO-3 looks for tensors in tuples to know when backward begins.

    Attributes:
        tokens_BND: the coarse grid, row by row, projected to the queries' width.
        queries_BQD: the Q-Former's output for each disease query, after the messages along the knowledge graph, if any.
        logits_BK: label i from query i.
        cam_logits_BK: the same labels from the fine grid, pooled; class activation maps explain these.
        fine_BHWC: the fine grid, normalised: what the pooled head reads.
        projected_BHWD: the fine grid, projected to the queries' width: what regions are made of (``models.regions``).
        pooled_BD: the mean of ``tokens_BND`` without the view's embedding, one vector for a film.
        film_scores_BK: ⟨w_k, LayerNorm(q_k)⟩ of the film; None: the films of a study are averaged.
    """

    tokens_BND: Tensor
    queries_BQD: Tensor
    logits_BK: Tensor
    cam_logits_BK: Tensor
    fine_BHWC: Tensor
    projected_BHWD: Tensor
    pooled_BD: Tensor
    film_scores_BK: Tensor | None = None

    @property
    def scores_BK(self) -> Tensor:
        """Both heads together: the logit by which a film is judged."""
        return (self.logits_BK + self.cam_logits_BK) / 2

    def of_studies(self, values_M: Tensor, views: Sequence[int], by_label: bool = True) -> Tensor:
        """Features of films [M, K, …], study after study → of studies [B, K, …].

        Args:
            values_M: features of all films of this output; [M, …] unless ``by_label``.
            views: number of films of each study.
            by_label: the second axis is that of the labels.
        """
        if self.film_scores_BK is None:
            return mean_over_views(values_M, views)
        weights_MK = torch.cat([scores.softmax(0) for scores in self.film_scores_BK.split(list(views))])
        weights = weights_MK if by_label else weights_MK.mean(1)
        weighted_M = values_M * weights.to(values_M.dtype).view(*weights.shape, *[1] * (values_M.ndim - weights.ndim))
        return torch.stack([part.sum(0) for part in weighted_M.split(list(views))])


def mean_over_views(values_M: Tensor, views: Sequence[int]) -> Tensor:
    """Values of films [M, …], study after study → their means over the ``views`` films of each study [B, …]."""
    if len(values_M) == len(views):
        return values_M
    return torch.stack([part.mean(0) for part in values_M.split(list(views))])


def query_cosines(queries_BQD: Tensor) -> Tensor:
    """Cosine between the queries of each two different findings, float32 [B, 78].

    They are not centered: a direction that all queries share is what makes them one vector.
    """
    unit_BFD = F.normalize(queries_BQD[:, : len(FINDINGS)].float(), dim=-1)
    first, second = torch.triu_indices(len(FINDINGS), len(FINDINGS), offset=1)
    return (unit_BFD[:, first] * unit_BFD[:, second]).sum(-1)


class LogSumExpHead(nn.Module):
    """One linear score per cell and class, pooled by log-sum-exp over the cells.

    Between the mean (blind to small lesions) and the maximum (trains one cell at a time): Pinheiro & Collobert 2015,
    arXiv:1411.6228, here with r = 1; the mean form keeps the logit's size independent of the number of cells.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, len(LABELS))

    def forward(self, fine_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] → logits [B, K]."""
        scores_BPK = self.linear(fine_BHWC).flatten(1, 2).float()
        return torch.logsumexp(scores_BPK, dim=1) - torch.tensor(scores_BPK.shape[1]).log()


class DiseaseClassifier(nn.Module):
    """Encoder, Q-Former and heads; see ``Stage1Output``.

    The Q-Former's cross-attention reads both grids: the coarse tokens carry context, the fine ones small lesions.
    """

    def __init__(
        self,
        config: VisionConfig,
        pretrained: bool | None = None,
        description: EncoderDescription | None = None,
        strengths_KK: Tensor | None = None,
    ) -> None:
        """Build from ``config``.

        Args:
            config: of encoder and Q-Former.
            pretrained: overrides ``config.pretrained``; False when all weights are loaded afterwards: then
                ``config.qformer_init`` is not read, either.
            description: of an encoder in a folder; None: read it there.
            strengths_KK: of the knowledge graph along which the queries exchange messages (``graph.queries``); None: no
                messages.
        """
        super().__init__()
        if config.query_dim % config.qformer_heads:
            raise UserError(
                f"vision.query_dim {config.query_dim} must be a multiple of vision.qformer_heads {config.qformer_heads}"
            )
        if config.query_dim <= PLACES:
            raise UserError(
                f"vision.query_dim {config.query_dim} must exceed {PLACES}: so many numbers of a region tell its place"
            )
        dim = config.query_dim
        self.encoder = build_encoder(config, pretrained, description)
        self.image_size = self.encoder.image_size
        self.config = replace(config, image_size=self.image_size)
        self.fine_norm = nn.LayerNorm(self.encoder.fine_dim)
        self.coarse_norm = nn.LayerNorm(self.encoder.coarse_dim)
        self.fine_projection = nn.Linear(self.encoder.fine_dim, dim)
        self.coarse_projection = nn.Linear(self.encoder.coarse_dim, dim)
        self.disease_queries = nn.Parameter(torch.randn(len(LABELS), dim) * 0.02)
        self.qformer = build_qformer(config, pretrained is not False)
        self.query_weight_KD = nn.Parameter(torch.randn(len(LABELS), dim) * dim**-0.5)
        self.query_bias_K = nn.Parameter(torch.zeros(len(LABELS)))
        self.cam_head = LogSumExpHead(self.encoder.fine_dim)
        self.graph = None if strengths_KK is None else GraphAttention(dim, config.qformer_heads, strengths_KK)
        if config.view_embeddings:
            self.view_embeddings_VD = nn.Parameter(torch.zeros(len(VIEW_KINDS), dim))
        if config.film_fusion == "attention":
            self.film_norm = nn.LayerNorm(dim)
            self.film_weight_KD = nn.Parameter(torch.zeros(len(LABELS), dim))

    def forward(self, inputs: Tensor, cached: bool = False, kinds: Sequence[int] | None = None) -> Stage1Output:
        """Images [B, 3, H, W] in [0, 1] (``films_to_tensor``) → ``Stage1Output``.

        With ``cached``, ``inputs`` are what the encoder's frozen stem gave for the images. (It is an argument because
        ZeRO-3 gathers a module's parameters where its ``forward`` is called, and only there.)

        Args:
            inputs: images.
            cached: see above.
            kinds: place of each film's view in ``VIEW_KINDS``; None: unknown.
        """
        with profile_region(VISION):
            features = self.encoder.trunk(inputs if cached else self.encoder.stem(inputs))
            return self._from_features(features, [0] * len(inputs) if kinds is None else kinds)

    def from_stem(self, stem_out: Tensor, kinds: Sequence[int] | None = None) -> Stage1Output:
        """The same from the cached output of the encoder's frozen stem."""
        return self(stem_out, cached=True, kinds=kinds)

    def _view_embeddings(self, kinds: Sequence[int]) -> Tensor:
        """Return the embedding of each film's view [B, 1, D]; in training some views are taken for unknown."""
        kind_B = torch.tensor(kinds, device=self.view_embeddings_VD.device)
        if self.training:
            kind_B = kind_B * (torch.rand(len(kind_B), device=kind_B.device) >= UNKNOWN_VIEWS)
        return self.view_embeddings_VD[kind_B][:, None]

    def _from_features(self, features: VisionFeatures, kinds: Sequence[int]) -> Stage1Output:
        """Everything after the encoder."""
        fine_BHWC = self.fine_norm(features.fine_BHWC)
        tokens_BND = self.coarse_projection(self.coarse_norm(features.coarse_BHWC)).flatten(1, 2)
        projected_BHWD = self.fine_projection(fine_BHWC)
        keys_BMD, pooled_BD = torch.cat([tokens_BND, projected_BHWD.flatten(1, 2)], dim=1), tokens_BND.mean(dim=1)
        if self.config.view_embeddings:
            view_B1D = self._view_embeddings(kinds).to(keys_BMD.dtype)
            keys_BMD, tokens_BND = keys_BMD + view_B1D, tokens_BND + view_B1D
        with profile_region(QFORMER):
            queries_BQD = self.qformer(
                query_embeds=self.disease_queries.expand(len(keys_BMD), -1, -1), encoder_hidden_states=keys_BMD
            ).last_hidden_state
            if self.graph is not None:
                queries_BQD = self.graph(queries_BQD)
        return Stage1Output(
            tokens_BND=tokens_BND,
            queries_BQD=queries_BQD,
            logits_BK=((queries_BQD * self.query_weight_KD).sum(-1) + self.query_bias_K).float(),
            cam_logits_BK=self.cam_head(fine_BHWC),
            fine_BHWC=fine_BHWC,
            projected_BHWD=projected_BHWD,
            pooled_BD=pooled_BD,
            film_scores_BK=(self.film_norm(queries_BQD) * self.film_weight_KD).sum(-1).float()
            if self.config.film_fusion == "attention"
            else None,
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        vision = config_to_dict(
            replace(self.config, qformer_init=None)
        )  # what was learned does not depend on where it lay
        content: dict[str, Any] = {"model_type": "amrg_disease_classifier", "labels": LABELS, "vision": vision}
        if (description := self.encoder.description) is not None:
            content["encoder"] = description.to_dict()
        if self.graph is not None:
            content["graph_queries"] = True
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what ``save_pretrained`` wrote; UserError if the folder is something else."""
        try:
            content = json.loads((folder / "config.json").read_text())
            config, labels = read_config_section(VisionConfig, content["vision"], "vision"), content["labels"]
            description = EncoderDescription.from_dict(content["encoder"]) if "encoder" in content else None
            strengths_KK = torch.zeros(len(labels), len(labels)) if content.get("graph_queries") else None
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = type(error).__name__
            raise UserError(f"{folder} is not a saved disease classifier ({reason}): run `amrg stage1`") from None
        if tuple(labels) != LABELS:
            raise UserError(f"{folder} was trained for other labels: {', '.join(labels)}")
        model = cls(config, False, description, strengths_KK)
        try:
            model.load_state_dict(weights, strict=True)
        except RuntimeError:
            raise UserError(f"{folder}: the weights do not fit its config.json") from None
        return model.eval()
