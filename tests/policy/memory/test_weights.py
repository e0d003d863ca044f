"""Tensors are added up by layer, and overrides are followed."""

from __future__ import annotations

import pytest

from corral.policy.memory.options import read_options
from corral.policy.memory.shape import read_shape
from corral.policy.memory.weights import Weights, read_weights
from tests.policy.memory import files
from tests.policy.memory.files import WORDS, File, transformer

Q8_BYTES = 34 / 32
EMBEDDING_BYTES = round(256 * WORDS * Q8_BYTES)
FEED_FORWARD_BYTES = round(3 * 256 * 768 * Q8_BYTES)
ATTENTION_BYTES = round((2 * 256 * 256 + 2 * 256 * 64) * Q8_BYTES)
NORMS_BYTES = 2 * 4 * 256
LAYER_BYTES = FEED_FORWARD_BYTES + ATTENTION_BYTES + NORMS_BYTES
EXPERTS_BYTES = round(3 * 256 * 256 * 8 * Q8_BYTES)


def weights_of(file: File, words: str = "") -> Weights:
    model = file.value()
    return read_weights(model, read_shape(model), read_options(words.split(), {}))


def test_every_tensor_is_counted_once_and_with_its_layer() -> None:
    weights = weights_of(transformer())
    assert weights.input_bytes == EMBEDDING_BYTES
    assert [layer.bytes for layer in weights.layers] == [LAYER_BYTES] * 4
    assert weights.output.bytes == EMBEDDING_BYTES + 4 * 256
    assert weights.tied_bytes == 0
    total = weights.input_bytes + sum(layer.bytes for layer in weights.layers) + weights.output.bytes
    assert total == transformer().value().size_bytes


def test_without_an_output_matrix_the_embeddings_serve_twice() -> None:
    weights = weights_of(transformer(tied=True))
    assert weights.tied_bytes == EMBEDDING_BYTES
    assert weights.output.bytes == 4 * 256


def test_an_encoder_has_no_output_to_tie() -> None:
    weights = weights_of(files.encoder())
    assert weights.tied_bytes == 0
    inputs = ("token_embd", "position_embd", "token_types")
    tensors = files.encoder().value().tensors
    assert weights.input_bytes == sum(t.size_bytes for t in tensors if t.name.startswith(inputs))


@pytest.mark.parametrize(
    ("words", "on_host"),
    [
        ("", []),
        ("--cpu-moe", [0, 1, 2, 3]),
        ("--n-cpu-moe 2", [0, 1]),
        (r"-ot blk\.[13]\.ffn_.*_exps=CPU", [1, 3]),
        ("-ot ffn_(up|gate|down)_exps=CUDA_Host", [0, 1, 2, 3]),
        ("-ot [=CPU", []),
    ],
)
def test_experts_stay_on_the_host_where_they_are_told_to(words: str, on_host: list[int]) -> None:
    plain, weights = weights_of(files.mixture()), weights_of(files.mixture(), words)
    assert [bool(layer.host_bytes) for layer in weights.layers] == [index in on_host for index in range(4)]
    for index in on_host:
        layer = weights.layers[index]
        assert layer.host_bytes == EXPERTS_BYTES
        assert layer.bytes == plain.layers[index].bytes - EXPERTS_BYTES
        assert layer.largest_host_bytes == EXPERTS_BYTES // 3


def test_dense_layers_have_a_flag_of_their_own() -> None:
    assert [layer.host_bytes for layer in weights_of(transformer(), "-ncffn 1").layers] == [
        FEED_FORWARD_BYTES,
        0,
        0,
        0,
    ]


def test_an_override_may_send_tensors_to_one_gpu() -> None:
    weights = weights_of(files.mixture(), r"-ot blk\.0\.ffn_.*_exps=CUDA1,exps=CPU")
    assert weights.pinned == (0, EXPERTS_BYTES)
    assert [layer.host_bytes for layer in weights.layers] == [0] + [EXPERTS_BYTES] * 3


def test_the_first_override_that_is_found_in_a_name_counts() -> None:
    weights = weights_of(files.mixture(), r"-ot blk\.0=CUDA0 --cpu-moe")
    assert weights.layers[0].host_bytes == 0
    assert weights.layers[0].bytes == 0
    assert weights.pinned[0] > EXPERTS_BYTES


def test_layers_for_multi_token_prediction_stay_on_the_disk_unless_they_are_used() -> None:
    file = transformer(layers=3, nextn_predict_layers=1)
    assert [layer.bytes for layer in weights_of(file).layers] == [LAYER_BYTES, LAYER_BYTES, 0]
    used = weights_of(file, "--spec-type draft-mtp")
    assert [layer.bytes for layer in used.layers] == [LAYER_BYTES] * 3


def test_a_tensor_of_a_layer_that_does_not_exist_is_passed_over() -> None:
    file = transformer(layers=2).with_tensors({"blk.7.attn_q.weight": ((256, 256), "F32")})
    assert [layer.bytes for layer in weights_of(file).layers] == [LAYER_BYTES] * 2


@pytest.mark.parametrize(
    ("kind", "repacked"), [("Q4_0", True), ("IQ4_NL", True), ("MXFP4", True), ("Q8_0", False), ("F16", False)]
)
def test_types_that_are_rearranged_for_the_cpu_are_known(kind: str, repacked: bool) -> None:
    layer = weights_of(transformer(kind=kind)).layers[0]
    assert layer.repacked_bytes == (layer.bytes - NORMS_BYTES if repacked else 0)


def test_a_matrix_whose_rows_do_not_come_in_eights_is_not_rearranged() -> None:
    odd = transformer(layers=1, kind="F16").with_tensors({"blk.0.attn_q.weight": ((256, 12), "Q4_0")})
    assert weights_of(odd).layers[0].repacked_bytes == 0


def test_the_largest_matrix_of_a_layer_is_known() -> None:
    assert weights_of(transformer()).layers[0].largest_bytes == FEED_FORWARD_BYTES // 3
