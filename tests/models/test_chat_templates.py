"""Chat templates of instruction models around the prompt, with tiny models of their structures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.config import Config, DecoderConfig, GenerateConfig
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier
from amrg.models.decoder import build_decoder
from amrg.models.prompt import Prompt, stream_faults
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.pipeline import _stage2_settings
from benchmarks.architectures import make_folder, make_tokenizer
from tests.models.test_report_generator import MEMORY, VISION, banks, inputs

SYSTEM = "You are a radiologist."
ASK = "<Img>{image}</Img> Write a report."

# In the form in which the models are published, shortened to what a question of one turn needs.
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}'
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}'
    '{{- system_message }}{{- "<|eot_id|>" }}'
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- elif message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}"
    "{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}"
    "{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
PHI4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Chat:
    """A family, its template, special tokens (those of the turns last), and the prompt as it must be read."""

    family: str
    template: str
    special: dict[str, str]
    more: list[str]
    expected: str
    end: str
    changes: dict[str, Any]


CHATS = {
    "Llama 3": Chat(
        "llama", LLAMA3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n" + SYSTEM
        + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n" + ASK
        + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
        }},
    ),
    "Qwen 3": Chat(
        "qwen3", QWEN3, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ["<|im_start|>", "<think>", "</think>"],
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
        "<|im_end|>", {},
    ),
    "Gemma 3": Chat(
        "gemma3_text", GEMMA3, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ["<start_of_turn>", "<end_of_turn>"],
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{ASK}<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", {},
    ),
    "Phi 4": Chat(
        "phi3", PHI4, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy_85|>"},
        ["<|im_start|>", "<|im_sep|>"],
        f"<|im_start|>system<|im_sep|>{SYSTEM}<|im_end|><|im_start|>user<|im_sep|>{ASK}<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
        "<|im_end|>", {},
    ),
    "Mistral": Chat(
        "mistral", MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}, ["[INST]", "[/INST]"],
        f"<s>[INST] {SYSTEM}\n\n{ASK} [/INST]", "</s>", {},
    ),
}  # fmt: skip


def make(chat: Chat, folder: Path) -> DecoderConfig:
    """A tiny model of the family with the tokenizer and the template; settings that use them."""
    make_folder(chat.family, folder, **chat.changes)
    tokenizer = make_tokenizer(**chat.special)
    tokenizer.add_special_tokens({"additional_special_tokens": chat.more})
    tokenizer.chat_template = chat.template
    tokenizer.save_pretrained(folder)
    return DecoderConfig(
        model=str(folder), tuning="lora", lora_rank=2, max_visual_tokens=4, chat_template="auto", system_prompt=SYSTEM,
        prompt=f"Human: {ASK}\nAssistant:",
    )  # fmt: skip


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_the_prompt_is_read_inside_the_template(chat: Chat, tmp_path: Path) -> None:
    """Token for token what the family's format says; trained to end its turn; written until any end."""
    settings = make(chat, tmp_path)
    torch.manual_seed(0)
    classifier = DiseaseClassifier(VISION, pretrained=False).requires_grad_(False).eval()
    model = ReportGenerator(classifier, *build_decoder(settings, [], 0), banks(), MEMORY, settings).eval()
    before, after = chat.expected.split("{image}")
    for ids, text in ((model.prompt.before, before), (model.prompt.after, after)):
        assert ids == model.tokenizer(text, add_special_tokens=False).input_ids
    end = model.tokenizer.convert_tokens_to_ids(chat.end)
    assert model.report_encoder(50)("Clear.")[-1] == end == model.prompt.stops[0]
    assert model.tokenizer.eos_token_id in model.prompt.stops
    vision, groups, report_BT = inputs(model)
    assert (report_BT[report_BT != IGNORE_INDEX] == end).sum() == 3
    model(vision, groups, report_BT).loss_B.sum().backward()
    assert len(model.generate(vision, groups, GenerateConfig(num_beams=1, max_new_tokens=4))) == 3


@pytest.fixture
def gemma(tmp_path: Path) -> tuple[DecoderConfig, Any]:
    settings = make(CHATS["Gemma 3"], tmp_path)
    return settings, build_decoder(settings, [], 0)[1]


def test_text_stops_at_the_end_of_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always writes ``A<end_of_turn>B``: only A remains."""
    settings = make(CHATS["Gemma 3"], tmp_path)
    classifier = DiseaseClassifier(VISION, pretrained=False).requires_grad_(False).eval()
    model = ReportGenerator(classifier, *build_decoder(settings, [], 0), banks(), MEMORY, settings).eval()
    a, b = (model.tokenizer(text, add_special_tokens=False).input_ids[0] for text in "AB")
    script = [a, model.prompt.stops[0], b, b]
    base = model.decoder.get_base_model()
    forward, calls = type(base).forward, []

    def scripted(self: Any, *args: Any, **given: Any) -> Any:
        out = forward(self, *args, **given)
        out.logits[:] = -1.0
        out.logits[..., script[len(calls)]] = 1.0
        calls.append(1)
        return out

    monkeypatch.setattr(type(base), "forward", scripted)
    vision, groups, _ = inputs(model)
    assert model.generate(vision, groups, GenerateConfig(num_beams=1, max_new_tokens=4)) == ["A"] * 3
    assert len(calls) == 2


def test_without_a_template_or_a_wish_for_one_the_prompt_is_alone(gemma: tuple[DecoderConfig, Any]) -> None:
    settings, tokenizer = gemma
    plain = replace(settings, chat_template="none", system_prompt="")
    expected = Prompt.from_settings(plain, tokenizer, [1, 7])
    assert expected.before[0] == tokenizer.bos_token_id
    assert expected.stops == (tokenizer.eos_token_id,)
    assert tokenizer.decode(expected.before[1:]) == "Human: <Img>"
    tokenizer.chat_template = None
    assert Prompt.from_settings(replace(settings, system_prompt=""), tokenizer) == expected
    with pytest.raises(UserError, match=r"system_prompt: the tokenizer of .* has no chat template"):
        Prompt.from_settings(settings, tokenizer)
    assert stream_faults(replace(plain, system_prompt=SYSTEM)) == [
        "decoder.system_prompt belongs to a chat template: say decoder.chat_template auto too"
    ]


def test_a_template_that_wants_parts_and_one_that_refuses(gemma: tuple[DecoderConfig, Any]) -> None:
    settings, tokenizer = gemma
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<start_of_turn>' + message['role'] + ' ' + message['content'][0]['text'] "
        "+ '<end_of_turn>' }}{% endfor %}"
    )
    found = Prompt.from_settings(settings, tokenizer)
    assert tokenizer.decode(found.before) == f"<start_of_turn>system {SYSTEM}<end_of_turn><start_of_turn>user <Img>"
    for template in ("{{ raise_exception('not today') }}", "nothing of it"):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=r"the template of .* does not hold the prompt"):
            Prompt.from_settings(settings, tokenizer)


def test_retrieved_text_lies_inside_the_turn(gemma: tuple[DecoderConfig, Any]) -> None:
    settings, tokenizer = gemma
    settings = replace(settings, prompt="{image} Similar: {retrieved} Write.", use_retrieved_text=True)
    found = Prompt.from_settings(settings, tokenizer)
    assert tokenizer.decode(found.between) == " Similar: "
    assert tokenizer.decode(found.after) == " Write.<end_of_turn>\n<start_of_turn>model\n"


def test_settings_of_runs_without_a_template_are_as_they_were() -> None:
    settings = _stage2_settings(Config())["decoder"]
    assert not settings.keys() & {"chat_template", "system_prompt"}
    templated = replace(Config(), decoder=replace(Config().decoder, chat_template="auto", system_prompt=SYSTEM))
    assert _stage2_settings(templated)["decoder"]["system_prompt"] == SYSTEM
