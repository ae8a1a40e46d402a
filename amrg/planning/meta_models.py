"""The models of both stages on the meta device: the classes that are trained, without values.

A plan counts their parameters one by one, so that no formula has to follow a change of the models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amrg.banks.bank import DTYPES
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.distributed import TensorGroups
from amrg.models.classifier import DiseaseClassifier
from amrg.models.decoder import build_meta_decoder
from amrg.models.decoder_files import SMALL_LLAMA
from amrg.models.memory_layer import LocalBank
from amrg.models.prior import PriorFilms, PriorInputs
from amrg.models.report_generator import ReportGenerator
from amrg.models.tensor_parallel import split_decoder
from amrg.models.vision_output import VisionOutput
from amrg.planning.architectures import encoder_width, language_model
from amrg.retrieval.communication_cost import BankShape
from amrg.training.deepspeed_json import tensor_parallel_size
from amrg.training.multilabel import multilabel_loss
from amrg.training.stage2 import freeze_for_stage2

#: ``decoder.base_dtype``
Base = Literal["float32", "bfloat16", "int8", "nf4"]


@dataclass(frozen=True)
class MetaModel:
    """A stage's model on the meta device, with its inputs and its loss.

    Attributes:
        section: ``stage1`` or ``stage2``.
        model: the trained model.
        inputs: ``inputs(model, samples)`` returns a batch of zeros.
        loss: ``loss(model, inputs)`` returns the training loss.
        banks: shapes of the banks; none in stage 1.
        assumed: descriptions of figures that are neither configured nor on this disk.
    """

    section: Literal["stage1", "stage2"]
    model: nn.Module
    inputs: Callable[[Any, int], Any]
    loss: Callable[[Any, Any], Tensor]
    banks: tuple[BankShape, ...] = ()
    assumed: tuple[str, ...] = ()


class DummyTokenizer:
    """A substitute for a tokenizer: one token per four characters."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __call__(self, text: str, add_special_tokens: bool = False) -> Any:
        """Return a token for every four characters."""
        return SimpleNamespace(input_ids=[0] * -(-len(text) // 4))


def _classifier(config: Config) -> DiseaseClassifier:
    strengths_KK = torch.zeros(len(LABELS), len(LABELS)) if config.graph.queries else None
    return DiseaseClassifier(config.vision, pretrained=False, strengths_KK=strengths_KK)


def stage1_skeleton(config: Config) -> MetaModel:
    """Build stage 1 as it is trained: on films, or on cached features of a frozen stem."""
    with torch.device("meta"):
        model = _classifier(config)

    def inputs(model: DiseaseClassifier, samples: int) -> Tensor:
        films = dummy_image_batch(model, samples)
        return model.encoder.stem(films) if model.encoder.frozen_stem else films

    def loss(model: DiseaseClassifier, given: Tensor) -> Tensor:
        out = model(given, cached=model.encoder.frozen_stem)
        targets_BK, weight_K = torch.zeros(len(given), len(LABELS)), torch.ones(len(LABELS))
        return sum(
            (multilabel_loss(logits, targets_BK, weight_K) for logits in (out.logits_BK, out.cam_logits_BK)),
            torch.zeros(()),
        )

    return MetaModel("stage1", model, inputs, loss)


def stage2_skeleton(config: Config, films: int = 1, tokenizer: Any = None) -> MetaModel:
    """Build stage 2 as it is trained.

    Args:
        config: decoder, banks and streams.
        films: films per study, used if vision is trained.
        tokenizer: the decoder's; None assumes one token per four characters of the prompt.

    Raises:
        UserError: the decoder's or the text encoder's sizes are not known, or ranks cannot share the decoder.
    """
    architecture, assumed = None, []
    if config.decoder.model != SMALL_LLAMA:
        architecture, origin = language_model(config.decoder.model)
        assumed.append(f"decoder: {origin}")
    if tokenizer is None:
        tokenizer = DummyTokenizer(config.decoder.vocab_size)
        assumed.append("prompt: a token every four characters")
    rows = bank_shapes(config)
    with torch.device("meta"):
        decoder = build_meta_decoder(config.decoder, architecture, tokenizer)
        if (size := tensor_parallel_size(config.stage2.ds_config)) > 1:
            split_decoder(decoder, TensorGroups(size))
        if config.decoder.base_dtype != "float32":  # quantised weights compute in bfloat16
            for parameter in decoder.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        classifier = freeze_for_stage2(_classifier(config), config.stage2.train_vision)
        banks = [_bank(bank) for bank in rows]
        model = ReportGenerator(classifier, decoder, tokenizer, banks, config.memory, config.decoder)
        if not config.stage2.association_loss_weight:
            model.freeze_visual_query()

    def inputs(model: ReportGenerator, samples: int) -> tuple[Any, Tensor, Tensor]:
        report_BT = torch.zeros(samples, config.stage2.max_report_tokens, dtype=torch.long)
        group_B = torch.zeros(samples, dtype=torch.long)
        if config.stage2.train_vision:
            return dummy_image_batch(model.stage1, samples * films), group_B, report_BT
        return dummy_vision_output(model, samples), group_B, report_BT

    def loss(model: ReportGenerator, given: tuple[Any, Tensor, Tensor]) -> Tensor:
        images, group_B, report_BT = given
        vision = images if isinstance(images, VisionOutput) else model.encode_images(images, [films] * len(group_B))
        text_BL = None
        if config.decoder.use_retrieved_text:
            text_BL = torch.zeros(len(group_B), config.decoder.retrieved_tokens, dtype=torch.long)
        context_BC = None
        if config.decoder.context:
            context_BC = torch.zeros(len(group_B), config.decoder.context_tokens, dtype=torch.long)
        prior = dummy_prior_inputs(model, vision)
        return model(vision, group_B, report_BT, retrieved_BL=text_BL, context_BC=context_BC, prior=prior).loss_B.mean()

    use = config.decoder
    used = (use.use_visual_memory or use.use_retrieved_text, use.use_report_memory)
    kept = tuple(bank for bank, use in zip(rows, used, strict=True) if use)
    return MetaModel("stage2", model, inputs, loss, kept, tuple(assumed))


def dummy_vision_output(model: ReportGenerator, samples: int) -> VisionOutput:
    """Stage 1's output for some studies, zeros."""
    return VisionOutput(*(torch.zeros(samples, *shape) for shape in model.vision_output_shapes))


def dummy_prior_inputs(model: ReportGenerator, vision: VisionOutput) -> PriorInputs:
    """Inputs of the earlier studies that a model reads, with the films of the studies themselves and zeros as text."""
    settings, studies = model.settings, len(vision.logits_BQ)
    text_BR = torch.zeros(studies, settings.prior_tokens, dtype=torch.long) if settings.prior else None
    given_B = torch.ones(studies, dtype=torch.bool)
    return PriorInputs(text_BR, PriorFilms(*vision[:3], given_B) if "films" in settings.prior else None)


def bank_shapes(config: Config) -> tuple[BankShape, BankShape]:
    """Shapes of the visual and the report bank with the most rows that the configuration allows."""
    element = DTYPES[config.banks.dtype].itemsize
    mining = config.banks.mining
    regions = len(FINDINGS) * mining.regions_per_finding + mining.normal_regions + len(LABELS)
    width = encoder_width(config.banks.reports.encoder)
    return (
        BankShape(regions, config.vision.query_dim, element),
        BankShape(config.banks.reports.rows, width, element),
    )


def _bank(rows: BankShape) -> LocalBank:
    dtype = {4: torch.float32, 2: torch.bfloat16, 1: torch.int8}[rows.element]
    scale = torch.zeros(rows.rows) if rows.element == 1 else None
    return LocalBank(torch.zeros(rows.rows, rows.dim, dtype=dtype), scale, torch.zeros(rows.rows, dtype=torch.long))


def dummy_image_batch(model: DiseaseClassifier, count: int) -> Tensor:
    """A batch of a classifier's input, zeros."""
    return torch.zeros(count, 3, *[model.image_size] * 2)
