from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import ModelError
from limbeck.formats.families.table import FAMILIES, config_from, config_to, family_of
from limbeck.formats.load import load_bundle
from limbeck.model.config import DecoderConfig, Llama3Scaling, Rope
from limbeck.model.patterns import Causal, Sliding
from tests.reference.checkpoints import edit_config, save
from tests.reference.twins import gpt2_config, llama_config

GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama", "vocab_size": 50, "max_position_embeddings": 16, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 12,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


def read(values, **over):
    return config_from({**values, **over}, "config.json")[1]


def refused(values, *words, **over):
    with pytest.raises(ModelError) as caught:
        read(values, **over)
    message = str(caught.value)
    assert "config.json" in message and "\n" not in message
    for word in words:
        assert word in message, message


def test_gpt2_defaults_are_those_of_the_paper():
    config = read(GPT2)
    assert (config.ffn_width, config.activation, config.tied, config.dropout) == (32, "gelu_tanh", True, 0.1)
    assert (config.norm, config.norm_eps, config.positions) == ("layer", 1e-5, "learned")


def test_old_gpt2_files_call_the_context_n_ctx():
    values = {key: value for key, value in GPT2.items() if key != "n_positions"}
    assert read(values, n_ctx=77).context == 77
    assert read(GPT2, n_ctx=77).context == 16


def test_llama_defaults_where_old_files_are_silent():
    config = read(LLAMA)
    assert (config.kv_heads, config.head_dim, config.norm_eps, config.rope.theta) == (2, 4, 1e-6, 10000.0)
    assert not (config.tied or config.qkv_bias or config.out_bias or config.ffn_bias)
    assert read(LLAMA, num_key_value_heads=None, head_dim=None) == config
    assert read(LLAMA, num_key_value_heads=1, head_dim=6).head_dim == 6


def test_both_spellings_of_llama3_scaling_are_one():
    stretched = {**LLAMA3, "original_max_position_embeddings": 8}
    old = read(LLAMA, rope_theta=5e5, rope_scaling=stretched)
    new = read(LLAMA, rope_parameters={"rope_theta": 5e5, **stretched})
    both = read(LLAMA, rope_theta=5e5, rope_scaling=stretched, rope_parameters={"rope_theta": 5e5, **stretched})
    assert old == new == both
    scaling = Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=8)
    assert old.rope == Rope(theta=5e5, scaling=scaling)
    assert read(LLAMA, rope_parameters=LLAMA3).rope.scaling.original_context == 16  # as transformers fills it


def test_spellings_that_disagree_are_refused():
    refused(LLAMA, "rope_theta", rope_theta=1e4, rope_parameters={"rope_theta": 5e5})
    refused(LLAMA, "factor", rope_scaling=LLAMA3, rope_parameters={**LLAMA3, "factor": 4})


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"model_type": "bloom"}, ["model_type 'bloom'", "gpt2", "llama", "mistral", "qwen2"]),
        ({"model_type": None}, ["no model_type"]),
        ({"model_type": 3}, ["model_type = 3"]),
        ({"activation_function": "quick_gelu"}, ["activation_function 'quick_gelu'", "gelu_new"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx = true"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights = false"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings = 'yes'"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ],
)
def test_unsupported_gpt2_settings(over, words):
    refused(GPT2, *words, **over)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"hidden_act": "relu2"}, ["hidden_act 'relu2'"]),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, ["rope_type 'su'", "llama3"]),
        ({"rope_parameters": {"rope_type": "proportional"}}, ["rope_type 'proportional'"]),
        ({"rope_parameters": {"rope_type": 7}}, ["rope_type = 7"]),
        ({"rope_parameters": [1]}, ["rope_parameters = [1]"]),
        ({"rope_scaling": {"rope_type": "llama3"}}, ["factor", "rope_scaling"]),
        ({"rope_scaling": {**LLAMA3, "factor": 0}}, ["factor"]),
        ({"rope_theta": 0}, ["theta"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"num_key_value_heads": 3}, ["3 key/value heads"]),
        ({"head_dim": 5}, ["even head_dim"]),
    ],
)
def test_unsupported_llama_settings(over, words):
    refused(LLAMA, *words, **over)


def test_windows_of_mistral():
    mistral = {**LLAMA, "model_type": "mistral"}
    assert read(mistral, sliding_window=None).pattern == Causal()
    assert read(mistral, sliding_window=7).pattern == Sliding(window=7)
    assert read(mistral).pattern == Sliding(window=4096)  # transformers' default where the key is absent


def test_windows_of_qwen2():
    qwen2 = {**LLAMA, "model_type": "qwen2"}
    assert read(qwen2, sliding_window=7).pattern == Causal()  # use_sliding_window is false by default
    assert read(qwen2).qkv_bias and not read(qwen2).out_bias
    windowed = {**qwen2, "use_sliding_window": True, "sliding_window": 7}
    assert read(windowed, max_window_layers=1).pattern == (Causal(), Sliding(window=7))
    assert read(windowed, max_window_layers=0).pattern == Sliding(window=7)
    assert read(windowed, sliding_window=None).pattern == Causal()
    kinds = ["sliding_attention", "full_attention"]
    assert read(windowed, layer_types=kinds).pattern == (Sliding(window=7), Causal())
    for wrong in (["full_attention"], ["chunked", "full_attention"], "ab", [[], {}]):
        refused(windowed, "layer_types", layer_types=wrong)


def test_family_of_names_the_family_or_what_none_can_say():
    assert family_of(gpt2_config()) == ("gpt2", "")
    assert family_of(llama_config()) == ("llama", "")
    assert family_of(llama_config(qkv_bias=True))[0] == "qwen2"
    assert family_of(llama_config(pattern=Sliding(window=4)))[0] == "mistral"
    mixed = llama_config(qkv_bias=True, pattern=(Causal(), Sliding(window=4)))
    assert family_of(mixed)[0] == "qwen2"
    assert family_of(llama_config(pattern=(Causal(), Sliding(window=4))))[0] == "mistral"  # with layer_types
    for config, word in [
        (gpt2_config(norm="rms"), "rms norm"),
        (gpt2_config(kv_heads=2), "key/value"),
        (gpt2_config(head_dim=4), "head width"),
        (gpt2_config(ffn_bias=False), "biases"),
        (gpt2_config(pattern=Sliding(window=4)), "patterns"),
        (llama_config(gated=False), "gated=False"),
        (llama_config(positions="learned"), "learned"),
        (llama_config(out_bias=True), "bias"),
        (llama_config(pattern=Sliding(window=4, sinks=1)), "patterns"),
        (llama_config(pattern=(Sliding(window=3), Sliding(window=4))), "patterns"),
        (llama_config(pattern=Sliding(window=4), qkv_bias=True, out_bias=True), "patterns"),
    ]:
        family, why = family_of(config)
        assert family is None and word in why, why


ROPES = st.builds(
    Rope,
    theta=st.sampled_from([1e4, 5e5]),
    scaling=st.none() | st.just(Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=32)),
)
PATTERNS = st.sampled_from([Causal(), Sliding(window=5), (Causal(), Sliding(window=5))])


@st.composite
def configs(draw) -> DecoderConfig:
    common = {"tied": draw(st.booleans()), "dropout": draw(st.sampled_from([0.0, 0.1]))}
    if draw(st.booleans()):
        activation = draw(st.sampled_from(["gelu_tanh", "gelu", "silu", "relu"]))
        return gpt2_config(activation=activation, ffn_width=draw(st.sampled_from([0, 40])), **common)
    bias = draw(st.booleans())
    return llama_config(
        rope=draw(ROPES), pattern=draw(PATTERNS), kv_heads=draw(st.sampled_from([1, 2, 4])),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh"])), head_dim=draw(st.sampled_from([0, 6])),
        qkv_bias=bias, out_bias=bias and draw(st.booleans()), ffn_bias=draw(st.booleans()), **common,
    )  # fmt: skip


@given(configs())
def test_what_a_family_says_reads_back_as_the_same_decoder(config):
    family, _ = family_of(config)
    if family is None:
        return
    assert family in FAMILIES
    assert config_from(config_to(family, config), "config.json") == (family, config)


def test_an_unsupported_setting_reaches_the_user_through_the_folder(tmp_path):
    save("gpt2", tmp_path)
    edit_config(tmp_path, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx"):
        load_bundle(str(tmp_path))
