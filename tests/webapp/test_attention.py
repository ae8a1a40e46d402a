"""The attention that is told, against transformers' own in one pass, and the shares against a hand-made sum."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from amrg.webapp.attention import Association, record_attention


def test_shares_are_attention_times_association():
    found = Association(torch.tensor([[0.6, 0.4], [0.9, 0.1]]), torch.tensor([[7, 3], [3, 7]]))
    alpha = torch.tensor([0.25, 0.75])
    # row 7: 0.25 * 0.6 + 0.75 * 0.1; row 3: 0.25 * 0.4 + 0.75 * 0.9
    expected = [{"row": 3, "weight": pytest.approx(0.775)}, {"row": 7, "weight": pytest.approx(0.225)}]
    assert found.top_rows(alpha, 5) == expected
    assert found.top_rows(alpha, 1) == expected[:1]


def test_absent_rows_have_no_share():
    found = Association(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[4, -1, -1]]))
    assert found.top_rows(torch.ones(1), 5) == [{"row": 4, "weight": 1.0}]


def test_each_step_tells_the_attention_of_its_last_position():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2)
    ).eval()  # fmt: skip
    model.set_attn_implementation("eager")
    prefix = torch.randn(1, 5, 12)
    with record_attention(model) as steps:
        ids = model.generate(inputs_embeds=prefix, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert [len(step) for step in steps] == [5, 6, 7, 8]
    whole = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
    layers = model(inputs_embeds=whole, output_attentions=True).attentions
    mean = torch.stack(layers).mean((0, 2))[0].detach()
    for position, step in enumerate(steps, start=4):
        torch.testing.assert_close(step, mean[position, : position + 1], rtol=1e-4, atol=1e-5)
    model(inputs_embeds=prefix)
    assert len(steps) == 4  # not watched any more
