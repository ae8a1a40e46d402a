"""What is found without numbers equals what is found with them."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BertConfig

from amrg.config import Config
from amrg.kernels import hopfield_retrieve
from amrg.models.classifier import DiseaseClassifier
from amrg.models.report_generator import ReportGenerator
from amrg.planning.architectures import PUBLISHED
from amrg.planning.devices import DEVICES
from amrg.planning.meta_models import MetaModel, dummy_vision_output, stage1_skeleton, stage2_skeleton
from amrg.planning.stage_estimate import Assumptions, estimate_stage
from amrg.planning.trace import _UNCOUNTED, Tracer
from amrg.precision import autocast
from amrg.training.stage2 import build_generator
from tests.conftest import Artefacts


def changed(config: Config, section: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


@pytest.fixture(scope="module")
def config(artefacts: Artefacts) -> Config:
    folder = artefacts.data.parent.parent / "narrow"
    BertConfig(hidden_size=384).save_pretrained(folder)
    reports = dataclasses.replace(artefacts.config.banks.reports, encoder=str(folder))
    return changed(artefacts.config, "banks", reports=reports)


@pytest.fixture(scope="module")
def generator(config: Config, artefacts: Artefacts) -> ReportGenerator:
    return build_generator(config, artefacts.data, artefacts.stage1, artefacts.banks)


def kept(skeleton: MetaModel, model: Any, samples: int, dtype: str) -> int:
    """Bytes that autograd keeps for the backward of a real forward, parameters and banks not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor  # keeps it alive: an address is not used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(dtype):
        skeleton.loss(model, skeleton.inputs(model, samples))
    return sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_of_stage1(config: Config, dtype: str) -> None:
    skeleton = stage1_skeleton(config)
    tracer = Tracer(skeleton, dtype)
    predicted = tracer.trace(2).extrapolate(tracer.trace(3), 5).saved
    model = DiseaseClassifier(config.vision, pretrained=False).train()
    assert predicted == pytest.approx(kept(skeleton, model, 5, dtype), rel=0.02)


@pytest.mark.parametrize(("dtype", "checkpointing"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_activations_of_stage2(config: Config, generator: Any, dtype: str, checkpointing: bool) -> None:
    skeleton = stage2_skeleton(config, tokenizer=generator.tokenizer)
    tracer = Tracer(skeleton, dtype, checkpointing)
    predicted = tracer.trace(2).extrapolate(tracer.trace(3), 5).saved
    if checkpointing:
        generator.decoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    measured = kept(skeleton, generator.train(), 5, dtype)
    if checkpointing:
        generator.decoder.activation_checkpointing_disable()
    # The CPU's retrieval keeps its associations, float32, with 16 rows of each bank; a GPU's does not.
    associations = 2 * 5 * 14 * config.memory.heads * 16 * 4
    assert predicted == pytest.approx(measured - associations, rel=0.02)


def test_cache_is_exactly_what_generation_holds(config: Config, generator: Any) -> None:
    ours = config.generate
    given = Assumptions(1, DEVICES["h100"], 80e9)
    planned = estimate_stage(changed(config, "stage2", dtype="float32"), "stage2", given, generator.tokenizer).kv_cache
    studies = ours.batch_size
    generator.eval()
    with torch.no_grad():
        streams = generator.embed_streams(dummy_vision_output(generator, studies), torch.zeros(studies).long())
        prefix, mask = generator.prompt.embed(generator.decoder.get_input_embeddings(), streams)
        cache = generator.decoder.generate(
            inputs_embeds=prefix,
            attention_mask=mask,
            num_beams=ours.num_beams,
            min_new_tokens=ours.max_new_tokens,
            max_new_tokens=ours.max_new_tokens,
            do_sample=False,
            pad_token_id=generator.tokenizer.pad_token_id,
            return_dict_in_generate=True,
        ).past_key_values
    assert planned == (sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers), studies * ours.num_beams)


#: As the model cards and safetensors' indices of these models say.
NUMBERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "qwen1.5-0.5b": 463_987_712,
}


def test_published_dimensions_give_the_published_numbers_of_weights() -> None:
    with torch.device("meta"):
        models = {name: AutoModelForCausalLM.from_config(make()) for name, make in PUBLISHED.items()}
    assert {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()} == NUMBERS


def test_operations_of_a_retrieval_by_hand() -> None:
    queries, memory = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        retrieved = hopfield_retrieve(queries, memory).retrieved_MD
        assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 4)
        retrieved.sum().backward()
    assert counter.get_total_flops() == (2 + 3) * (2 * 3 * 5 * 4)
