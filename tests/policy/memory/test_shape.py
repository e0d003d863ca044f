"""A model file's numbers become the shape that memory follows, family by family."""

from __future__ import annotations

from typing import Any

import pytest

from corral.formats.gguf import Gguf
from corral.policy.memory.shape import Layer, Shape, Unpredictable, read_shape, whole
from tests.policy.memory import files
from tests.policy.memory.files import File, transformer


def shape_of(file: File) -> Shape:
    return read_shape(file.value())


def windows(file: File) -> str:
    """One letter per layer: w for a window, - for all."""
    return "".join("w" if layer.windowed else "-" for layer in shape_of(file).layers)


def recurrent(file: File) -> str:
    """One letter per layer: r recurrent, a attention, b both, - neither."""
    letters = {(False, True): "a", (True, False): "r", (True, True): "b", (False, False): "-"}
    return "".join(letters[layer.state > 0, layer.key > 0] for layer in shape_of(file).layers)


def test_a_plain_transformer_has_keys_and_values_of_all_its_key_value_heads() -> None:
    shape = shape_of(transformer(layers=2, kv_heads=2, head=32))
    assert shape.layers == (Layer(key=64, value=64),) * 2
    assert (shape.width, shape.vocabulary, shape.trained_tokens) == (256, files.WORDS, 4096)
    assert (shape.heads, shape.query, shape.window_tokens) == (8, 256, 0)
    assert shape.causal
    assert shape.generates


def test_heads_are_as_wide_as_the_model_divided_among_them_if_nobody_says() -> None:
    file = transformer(heads=4, attention__key_length=None, attention__value_length=None)
    assert shape_of(file).layers[0] == Layer(key=2 * 64, value=2 * 64)


def test_without_a_number_of_key_value_heads_there_are_as_many_as_heads() -> None:
    assert shape_of(transformer(attention__head_count_kv=None)).layers[0].key == 8 * 32


def test_keys_and_values_may_differ_in_width() -> None:
    layer = shape_of(transformer(attention__key_length=96, attention__value_length=64)).layers[0]
    assert (layer.key, layer.value) == (2 * 96, 2 * 64)


def test_key_value_heads_may_differ_from_layer_to_layer() -> None:
    layers = shape_of(transformer("deci", attention__head_count_kv=[4, 0, 2, 1])).layers
    assert [layer.key for layer in layers] == [128, 0, 64, 32]
    assert not any(layer.state for layer in layers)


@pytest.mark.parametrize(
    ("architecture", "pattern"),
    [
        ("gemma2", "w-w-w-w-w-w-"),
        ("gemma3", "wwwww-wwwww-"),
        ("gemma3n", "wwww-wwww-ww"),
        ("gpt-oss", "w-w-w-w-w-w-"),
        ("cohere2", "www-www-www-"),
        ("cohere2moe", "-www-www-www"),
        ("llama4", "www-www-www-"),
        ("olmo2", "www-www-www-"),
        ("plamo3", "wwwwwww-wwww"),
        ("smallthinker", "-www-www-www"),
        ("modern-bert", "-ww-ww-ww-ww"),
        ("exaone-moe", "www-www-www-"),
        ("phi3", "------------"),
        ("qwen2", "------------"),
        ("exaone4", "------------"),
    ],
)
def test_each_architecture_has_its_own_pattern_of_windows(architecture: str, pattern: str) -> None:
    assert windows(transformer(architecture, layers=12, attention__sliding_window=1024)) == pattern


@pytest.mark.parametrize(
    ("architecture", "tokens"),
    [("gemma2", 4096), ("llama4", 8192), ("exaone-moe", 128), ("gemma3", 0), ("olmo2", 0)],
)
def test_a_file_that_names_no_window_has_its_architectures_own_or_none(
    architecture: str, tokens: int
) -> None:
    shape = shape_of(transformer(architecture))
    assert shape.window_tokens == tokens
    assert any(layer.windowed for layer in shape.layers) == bool(tokens)


def test_a_window_of_zero_is_none() -> None:
    assert windows(transformer("llama4", attention__sliding_window=0)) == "----"


def test_exaone_4_has_windows_in_its_largest_model_only() -> None:
    assert windows(transformer("exaone4", layers=64)).startswith("www-www-")


def test_a_file_may_name_its_windowed_layers_or_its_own_period() -> None:
    listed: dict[str, Any] = {
        "attention__sliding_window": 512,
        "attention__sliding_window_pattern": [1, 0, 0, 1],
    }
    assert windows(transformer("gemma4", **listed)) == "w--w"
    assert windows(transformer("gemma3", **listed)) == "w--w"
    assert windows(transformer("llama", **listed)) == "----"
    period: dict[str, Any] = {"attention__sliding_window": 512, "attention__sliding_window_pattern": 2}
    assert windows(transformer("gemma3", **period)) == "w-w-"


def test_windowed_layers_may_have_heads_of_their_own_width() -> None:
    file = transformer(
        "gemma4",
        attention__sliding_window=512,
        attention__sliding_window_pattern=[1, 1, 1, 0],
        attention__key_length_swa=16,
        attention__value_length_swa=24,
    )
    layers = shape_of(file).layers
    assert [(layer.key, layer.value) for layer in layers[2:]] == [(32, 48), (64, 64)]


def test_layers_that_share_the_cache_of_another_have_none() -> None:
    shared = shape_of(transformer("gemma4", layers=6, attention__shared_kv_layers=2)).layers
    assert [layer.key for layer in shared] == [64, 64, 64, 64, 0, 0]
    gemma3n = shape_of(transformer("gemma3n", layers=30)).layers
    assert [bool(layer.key) for layer in gemma3n] == [True] * 20 + [False] * 10


def test_latent_attention_keeps_one_vector_per_token_and_no_values() -> None:
    shape = shape_of(files.latent_attention())
    assert shape.layers == (Layer(key=160, value=0),) * 3
    # 16 heads of key, value, and both unfolded.
    assert shape.latent == 16 * (160 + 128 + 96 + 64)


def test_an_old_file_of_the_same_architecture_keeps_whole_keys_and_values() -> None:
    file = files.latent_attention().saying(
        attention__key_length_mla=None, attention__value_length_mla=None, attention__head_count_kv=16
    )
    shape = shape_of(file)
    assert shape.layers[0] == Layer(key=16 * 160, value=16 * 128)
    assert shape.latent == 0


def test_sparse_attention_keeps_a_second_small_cache() -> None:
    latent = files.latent_attention().saying(attention__indexer__key_length=48)
    assert shape_of(latent).layers[0] == Layer(key=160, index_key=48)
    plain = shape_of(transformer("minimax-m3", attention__indexer__key_length=48))
    assert plain.layers[0] == Layer(key=64, value=64, index_key=48, index_value=32)


def test_layers_for_multi_token_prediction_are_counted_apart() -> None:
    shape = shape_of(transformer("glm4moe", layers=5, nextn_predict_layers=1))
    assert (len(shape.layers), shape.extra_layers) == (5, 1)


SSM: dict[str, Any] = {
    "ssm__conv_kernel": 4,
    "ssm__inner_size": 512,
    "ssm__state_size": 16,
    "ssm__time_step_rank": 32,
    "ssm__group_count": 2,
}
MAMBA_STATE = 3 * (512 + 2 * 2 * 16) + 16 * 512
WITHOUT_HEADS: dict[str, Any] = {"attention__head_count_kv": [0, 2, 0, 2]}


@pytest.mark.parametrize(
    ("architecture", "numbers", "pattern"),
    [
        ("mamba", SSM, "rrrr"),
        ("mamba2", SSM, "rrrr"),
        ("rwkv7", {"wkv__head_size": 64}, "rrrr"),
        ("jamba", SSM | WITHOUT_HEADS, "rara"),
        ("granitehybrid", SSM | WITHOUT_HEADS, "rara"),
        ("plamo2", SSM | WITHOUT_HEADS, "rara"),
        ("lfm2", {"shortconv__l_cache": 3} | WITHOUT_HEADS, "rara"),
        ("falcon-h1", SSM, "bbbb"),
        ("nemotron_h", SSM | WITHOUT_HEADS | {"feed_forward_length": [0, 0, 768, 768]}, "ra--"),
        ("qwen3next", SSM, "rrra"),
        ("qwen35moe", SSM | {"full_attention_interval": 2}, "rara"),
        ("qwen3next", SSM | {"attention__recurrent_layers": [0, 1, 1, 0]}, "arra"),
        ("kimi-linear", {"kda__head_dim": 32} | WITHOUT_HEADS, "rara"),
    ],
)
def test_recurrent_and_hybrid_models_keep_states_where_they_have_them(
    architecture: str, numbers: dict[str, Any], pattern: str
) -> None:
    assert recurrent(transformer(architecture, **numbers)) == pattern


def test_interval_layers_for_multi_token_prediction_are_not_recurrent() -> None:
    assert recurrent(transformer("qwen3next", layers=6, nextn_predict_layers=1, **SSM)) == "rrrara"


@pytest.mark.parametrize(
    ("architecture", "numbers", "elements"),
    [
        ("mamba2", SSM, MAMBA_STATE),
        ("mamba", SSM | {"ssm__group_count": None}, 3 * 512 + 16 * 512),
        ("rwkv6", {"wkv__head_size": 64}, 2 * 256 + 64 * 256),
        ("arwkv7", {"wkv__head_size": 64, "token_shift_count": 1}, 256 + 64 * 256),
        ("lfm2", {"shortconv__l_cache": 3, "attention__head_count_kv": [0] * 4}, 2 * 256),
        (
            "kimi-linear",
            {"kda__head_dim": 32, "ssm__conv_kernel": 4, "attention__head_count_kv": [0] * 4},
            3 * 3 * 8 * 32 + 32 * 32 * 8,
        ),
        ("minimax-01", {}, 32 * 32 * 8),
    ],
)
def test_a_state_is_what_its_family_remembers(
    architecture: str, numbers: dict[str, Any], elements: int
) -> None:
    assert shape_of(transformer(architecture, **numbers)).layers[0].state == elements


def test_an_encoder_keeps_nothing_and_generates_nothing() -> None:
    shape = shape_of(files.encoder())
    assert shape.layers == (Layer(),) * 2
    assert not shape.generates
    assert not shape.causal


FEED_FORWARD = {
    "gated": (transformer(feed_forward=768), 3 * 768),
    "without a gate": (
        transformer(feed_forward=768).without(*(f"blk.{i}.ffn_gate.weight" for i in range(4))),
        768,
    ),
    "gate and up in one": (
        transformer(layers=1)
        .without("blk.0.ffn_gate.weight")
        .with_tensors({"blk.0.ffn_up.weight": ((256, 2 * 768), "Q8_0")}),
        3 * 768,
    ),
    "experts": (files.mixture(used=4, inner=256), 4 * 3 * 256),
    "narrow experts": (files.mixture(used=4, inner=96), 4 * (3 * 96 + 256)),
    "experts without a gate": (
        files.mixture(used=4).without(*(f"blk.{i}.ffn_gate_exps.weight" for i in range(4))),
        4 * (256 + 256),
    ),
    "none": (files.mamba2(), 0),
}


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_a_feed_forward_layer_is_as_wide_as_what_lives_in_it_at_once(name: str) -> None:
    file, elements = FEED_FORWARD[name]
    assert shape_of(file).feed_forward == elements


def test_the_widest_feed_forward_layer_counts_whichever_kind_it_is() -> None:
    file = files.mixture(used=2, inner=256).with_tensors(
        {
            "blk.0.ffn_gate.weight": ((256, 4096), "Q8_0"),
            "blk.0.ffn_up.weight": ((256, 4096), "Q8_0"),
            "blk.0.ffn_down.weight": ((4096, 256), "Q8_0"),
        }
    )
    # Four experts are said to be used, but by this file it is two.
    assert shape_of(file.saying(expert_used_count=2)).feed_forward == 3 * 4096


def test_heads_that_do_not_come_in_whole_blocks_keep_a_cache_from_being_quantised() -> None:
    assert shape_of(transformer(head=64)).heads_in_blocks
    assert not shape_of(transformer(attention__key_length=80)).heads_in_blocks


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_count": None}, "llama.block_count is None"),
        ({"block_count": 0}, "llama.block_count is 0"),
        ({"block_count": 1_000_000_000}, "llama.block_count is 1000000000"),
        ({"block_count": True}, "llama.block_count is None"),
        ({"embedding_length": -1}, "llama.embedding_length is -1"),
        ({"embedding_length": 1 << 40}, "llama.embedding_length"),
        ({"embedding_length": "wide"}, "llama.embedding_length"),
    ],
)
def test_a_file_without_the_basic_numbers_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(Unpredictable, match=named):
        shape_of(transformer(**changes))


NONSENSE: tuple[Any, ...] = (-5, 1 << 60, "x", 2.5, [], ["x"], [-1] * 4, [1.5] * 4, True, [1 << 60] * 4)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "deepseek2", "jamba", "qwen3next", "nemotron_h"])
def test_nonsense_in_any_other_number_never_does_more_than_change_the_sum(
    architecture: str, nonsense: object
) -> None:
    keys = [
        *transformer(architecture, **SSM).hyperparameters,
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.shared_kv_layers",
        "attention.key_length_mla",
        "attention.value_length_mla",
        "attention.recurrent_layers",
        "full_attention_interval",
        "nextn_predict_layers",
        "expert_used_count",
    ]
    for key in set(keys) - {"block_count", "embedding_length"}:
        shape = shape_of(transformer(architecture, **SSM | {key.replace(".", "__"): nonsense}))
        assert len(shape.layers) == 4
        assert all(number >= 0 for layer in shape.layers for number in layer)


def test_a_tensor_with_one_dimension_where_two_belong_is_passed_over() -> None:
    broken = {"blk.0.ffn_down.weight": ((768,), "F32"), "blk.1.ffn_up.weight": ((256,), "F32")}
    file = transformer(layers=2).without("blk.1.ffn_gate.weight").with_tensors(broken)
    assert shape_of(file).feed_forward == 768


def test_a_file_with_no_architecture_is_refused() -> None:
    with pytest.raises(Unpredictable):
        read_shape(Gguf(3, {}, (), 0, 0))


def test_shards_are_one_model_in_whatever_order_they_come() -> None:
    file = transformer(layers=2)
    complete = file.value()
    half = len(complete.tensors) // 2
    first = file.value(tensors=complete.tensors[:half], size_bytes=1000)
    numbered: dict[str, Any] = {"general.architecture": "llama", "split.no": 1, "split.count": 2}
    second = Gguf(3, numbered, complete.tensors[half:], 0, 500)
    together = whole([second, first])
    assert together.tensors == complete.tensors
    assert together.metadata == complete.metadata
    assert together.size_bytes == 1500


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(Unpredictable, match="no model file"):
        whole([])
