"""The parts of a prediction land on the right GPU or on the host, and their sum is what is asked for."""

from __future__ import annotations

import dataclasses

import pytest

from corral.formats.gguf import Gguf
from corral.policy.memory import HOST_ONLY, Layout, Prediction, Unpredictable, predict, read_options
from corral.policy.memory.prediction import CONTEXT_BYTES, PROCESS_BYTES, WORD_BYTES
from tests.policy.memory import files
from tests.policy.memory.files import MIB, WORDS, File, transformer

ONE_GPU = Layout(5, (1.0,))


def predicted(words: str = "", file: File | None = None, **more: File) -> Prediction:
    own = (file or transformer()).value()
    given = {name: [extra.value()] if name == "draft" else extra.value() for name, extra in more.items()}
    return predict([own], read_options(words.split(), {}), **given)  # type: ignore[arg-type]


def layer_bytes(prediction: Prediction) -> int:
    return prediction.weights.layers[0].bytes


# On GPUs ------------------------------------------------------------------------------------------


def test_one_gpu_holds_everything_but_the_token_embeddings() -> None:
    prediction = predicted("-c 4096")
    [device] = prediction.device_bytes(ONE_GPU)
    assert device.weights == prediction.model.size_bytes - prediction.weights.input_bytes
    assert device.cache == sum(prediction.cache) == 4 * MIB
    assert device.compute == prediction.compute.device_layers_bytes
    assert device.context == CONTEXT_BYTES
    assert (device.state, device.projector, device.draft) == (0, 0, 0)
    assert device.total == device.weights + device.cache + device.compute + device.context
    assert prediction.total_device_bytes(ONE_GPU) == device.total


def test_the_layout_asked_for_is_all_layers_unless_a_flag_says_less() -> None:
    assert predicted().layout(1) == ONE_GPU
    assert predicted("-ngl 2").layout(1) == Layout(2, (1.0,))
    assert predicted().layout(0) == HOST_ONLY


def test_tied_embeddings_are_on_the_gpu_and_on_the_host() -> None:
    prediction = predicted(file=transformer(tied=True))
    embedding = prediction.weights.input_bytes
    [device] = prediction.device_bytes(ONE_GPU)
    assert device.weights == prediction.model.size_bytes
    assert prediction.host_bytes(ONE_GPU).mapped_bytes == embedding
    assert prediction.host_bytes(HOST_ONLY).mapped_bytes == prediction.model.size_bytes


@pytest.mark.parametrize(("gpu_layers", "layers", "output"), [(1, 0, 1), (2, 1, 1), (4, 3, 1), (5, 4, 1)])
def test_fewer_layers_leave_the_rest_on_the_host(gpu_layers: int, layers: int, output: int) -> None:
    prediction = predicted("-c 4096 --no-op-offload")
    layout = Layout(gpu_layers, (1.0,))
    [device] = prediction.device_bytes(layout)
    assert device.weights == layers * layer_bytes(prediction) + output * prediction.weights.output.bytes
    assert device.cache == layers * MIB
    mapped = prediction.model.size_bytes - device.weights
    assert prediction.host_bytes(layout).mapped_bytes == mapped


def test_a_gpu_with_the_output_alone_needs_room_for_the_output_alone() -> None:
    prediction = predicted("--no-op-offload")
    [device] = prediction.device_bytes(Layout(1, (1.0,)))
    assert device.compute == prediction.compute.device_output_bytes


def test_a_gpu_borrows_the_largest_matrix_that_stays_on_the_host() -> None:
    borrows, keeps_off = predicted("-ngl 2"), predicted("-ngl 2 --no-op-offload")
    layout = Layout(2, (1.0,))
    matrix = 256 * 768 * 34 // 32
    assert borrows.total_device_bytes(layout) - keeps_off.total_device_bytes(layout) == matrix


def test_even_without_a_layer_a_visible_gpu_has_a_context_and_computes_large_batches() -> None:
    prediction = predicted()
    [device] = prediction.device_bytes(Layout(0, (1.0,)))
    assert (device.weights, device.cache) == (0, 0)
    assert device.context == CONTEXT_BYTES
    assert device.compute > prediction.compute.device_layers_bytes


def test_two_gpus_get_layers_by_their_shares_and_a_context_each() -> None:
    prediction = predicted("-c 4096")
    layout = Layout(5, (1.0, 1.0))
    first, second = prediction.device_bytes(layout)
    assert first.weights == 3 * layer_bytes(prediction)
    assert second.weights == layer_bytes(prediction) + prediction.weights.output.bytes
    assert (first.cache, second.cache) == (3 * MIB, MIB)
    assert first.context == second.context == CONTEXT_BYTES
    assert prediction.total_device_bytes(layout) == first.total + second.total


def test_two_gpus_that_have_all_layers_keep_the_inputs_of_four_batches() -> None:
    prediction = predicted("-c 4096")
    plain, inputs = prediction.compute.device_layers_bytes, prediction.compute.inputs_bytes
    assert [d.compute for d in prediction.device_bytes(Layout(5, (1.0, 1.0)))] == [plain + 3 * inputs] * 2
    # With one GPU, or with layers left on the host, batches are not worked on in turns.
    off = predicted("-c 4096 --no-op-offload")
    assert [d.compute for d in off.device_bytes(Layout(4, (1.0, 1.0)))] == [plain] * 2
    assert [d.compute for d in prediction.device_bytes(Layout(5, (1.0, 0.0)))] == [plain, 0]


@pytest.mark.parametrize("mode", ["row", "tensor"])
def test_split_layers_lie_on_all_gpus_in_parts(mode: str) -> None:
    prediction = predicted(f"-c 4096 -sm {mode}")
    first, second = prediction.device_bytes(Layout(5, (3.0, 1.0)))
    assert first.weights == 3 * second.weights
    assert first.weights + second.weights == prediction.model.size_bytes - prediction.weights.input_bytes
    assert (first.cache, second.cache) == (3 * MIB, MIB)


def test_a_cache_kept_off_the_gpu_is_on_the_host() -> None:
    prediction = predicted("-c 4096 -nkvo")
    [device] = prediction.device_bytes(ONE_GPU)
    assert device.cache == 0
    kept, usual = prediction.host_bytes(ONE_GPU), predicted("-c 4096").host_bytes(ONE_GPU)
    assert kept.anonymous_bytes - usual.anonymous_bytes == 4 * MIB


def test_experts_on_the_host_take_no_room_on_the_gpu_but_for_the_one_matrix_that_it_borrows() -> None:
    experts = 4 * 3 * 256 * 256 * 8 * 34 // 32
    all_on_gpu, without = predicted("", files.mixture()), predicted("--cpu-moe", files.mixture())
    [full], [less] = all_on_gpu.device_bytes(ONE_GPU), without.device_bytes(ONE_GPU)
    assert full.weights - less.weights == experts
    assert less.compute - full.compute == experts // 12
    more = without.host_bytes(ONE_GPU).mapped_bytes - all_on_gpu.host_bytes(ONE_GPU).mapped_bytes
    assert more == experts


def test_tensors_sent_to_one_gpu_are_there() -> None:
    plain = predicted("", files.mixture()).device_bytes(Layout(5, (1.0, 0.0)))
    sent = predicted("-ot exps=CUDA1", files.mixture()).device_bytes(Layout(5, (1.0, 0.0)))
    assert plain[0].weights - sent[0].weights == sent[1].weights > 0


def test_states_are_with_their_layers() -> None:
    prediction = predicted("-np 2", files.mamba2())
    first, second = prediction.device_bytes(Layout(5, (1.0, 1.0)))
    assert first.state == sum(prediction.state[:3])
    assert second.state == prediction.state[3]


# What comes along ---------------------------------------------------------------------------------


def test_a_projector_takes_more_than_its_file_and_lies_on_the_first_gpu() -> None:
    projector = transformer("clip")
    prediction = predicted(projector=projector)
    expected = projector.value().size_bytes * 140 // 100
    assert [d.projector for d in prediction.device_bytes(Layout(5, (1.0, 1.0)))] == [expected, 0]
    extra = (
        prediction.host_bytes(HOST_ONLY).anonymous_bytes - predicted().host_bytes(HOST_ONLY).anonymous_bytes
    )
    assert extra == expected
    kept_off = predicted("--no-mmproj-offload", projector=projector)
    assert kept_off.device_bytes(ONE_GPU)[0].projector == 0
    extra = kept_off.host_bytes(ONE_GPU).anonymous_bytes - predicted().host_bytes(ONE_GPU).anonymous_bytes
    assert extra == expected


def test_a_draft_model_adds_itself_without_a_second_context() -> None:
    small = transformer(layers=2, width=128)
    words = "-c 4096 -md small.gguf -ctkd q8_0"
    prediction = predicted(words, draft=small)
    alone = predict([small.value()], read_options(words.split(), {}).for_draft())
    [device] = prediction.device_bytes(ONE_GPU)
    assert device.draft == alone.total_device_bytes(Layout(3, (1.0,))) - CONTEXT_BYTES
    [without] = predicted("-c 4096 -md small.gguf").device_bytes(ONE_GPU)
    assert device.total - without.total == device.draft


def test_a_draft_model_may_stay_on_the_host() -> None:
    small = transformer(layers=2, width=128)
    on_host = predicted("-md small.gguf -ngld 0 --no-op-offload", draft=small)
    assert on_host.device_bytes(ONE_GPU)[0].draft == 0
    more = on_host.host_bytes(ONE_GPU).mapped_bytes - predicted().host_bytes(ONE_GPU).mapped_bytes
    assert more == small.value().size_bytes


def test_a_draft_model_is_no_second_process() -> None:
    small = transformer(layers=2, width=128)
    both, one = predicted("-md s", draft=small), predicted("-md s")
    alone = predict([small.value()], read_options(["-md", "s"], {}).for_draft())
    more = both.host_bytes(HOST_ONLY).anonymous_bytes - one.host_bytes(HOST_ONLY).anonymous_bytes
    assert more == alone.host_bytes(HOST_ONLY).anonymous_bytes - PROCESS_BYTES


def test_predicting_several_tokens_ahead_loads_more_and_computes_twice() -> None:
    file = transformer(layers=5, nextn_predict_layers=1)
    usual, ahead = predicted("-c 4096", file), predicted("-c 4096 --spec-type draft-mtp", file)
    layout = Layout(6, (1.0,))
    [plain], [more] = usual.device_bytes(layout), ahead.device_bytes(layout)
    assert more.weights - plain.weights == layer_bytes(usual)
    assert more.cache - plain.cache == MIB
    assert more.compute == 2 * plain.compute


# On the host --------------------------------------------------------------------------------------


def base_bytes(words: int = WORDS) -> int:
    return PROCESS_BYTES + WORD_BYTES * words


def test_without_a_gpu_the_file_is_mapped_and_the_rest_is_the_processs_own() -> None:
    prediction = predicted("-c 4096 -np 1")
    host = prediction.host_bytes(HOST_ONLY)
    assert host.mapped_bytes == prediction.model.size_bytes
    outputs = 4 * WORDS
    computing = prediction.compute.host_layers_bytes
    assert host.anonymous_bytes == base_bytes() + 4 * MIB + computing + outputs
    assert host.total == prediction.total_host_bytes(HOST_ONLY) == host.mapped_bytes + host.anonymous_bytes
    assert prediction.device_bytes(HOST_ONLY) == ()
    assert prediction.total_device_bytes(HOST_ONLY) == 0


def test_without_a_map_the_weights_are_the_processs_own() -> None:
    mapped, copied = predicted().host_bytes(HOST_ONLY), predicted("-lm none").host_bytes(HOST_ONLY)
    assert copied.mapped_bytes == 0
    assert copied.total == mapped.total


def test_weights_that_are_rearranged_for_the_cpu_exist_twice_while_the_file_is_mapped() -> None:
    prediction = predicted("", transformer(kind="Q4_0"))
    matrices = sum(layer.repacked_bytes for layer in prediction.weights.layers)
    matrices += prediction.weights.output.repacked_bytes
    as_it_is = predicted("--no-repack", transformer(kind="Q4_0")).host_bytes(HOST_ONLY)
    twice = prediction.host_bytes(HOST_ONLY)
    assert twice.anonymous_bytes - as_it_is.anonymous_bytes == matrices > 0
    assert twice.mapped_bytes == as_it_is.mapped_bytes == prediction.model.size_bytes
    once = predicted("-lm none", transformer(kind="Q4_0")).host_bytes(HOST_ONLY)
    assert once.total == as_it_is.total


def test_tied_embeddings_are_copied_when_the_output_is_rearranged() -> None:
    tied = transformer(kind="Q4_0", tied=True)
    for words in ("", "-lm none"):
        plain = predicted(f"{words} --no-repack", tied).weights
        more = predicted(words, tied).host_bytes(HOST_ONLY).total
        more -= predicted(f"{words} --no-repack", tied).host_bytes(HOST_ONLY).total
        layers = sum(layer.repacked_bytes for layer in plain.layers)
        assert more == plain.tied_bytes + (0 if words else layers)


def test_nothing_is_rearranged_beside_a_gpu() -> None:
    file = transformer(kind="Q4_0")
    layout = Layout(2, (1.0,))
    assert predicted("", file).host_bytes(layout) == predicted("--no-repack", file).host_bytes(layout)


def test_a_host_beside_a_gpu_that_has_all_layers_prepares_the_inputs_only() -> None:
    prediction = predicted("-c 4096")
    host = prediction.host_bytes(ONE_GPU)
    assert host.mapped_bytes == prediction.weights.input_bytes
    outputs = 4 * 4 * WORDS
    assert host.anonymous_bytes == base_bytes() + prediction.compute.host_inputs_bytes + outputs
    pipelined = prediction.host_bytes(Layout(5, (1.0, 1.0)))
    assert pipelined.anonymous_bytes - host.anonymous_bytes == 3 * prediction.compute.inputs_bytes


def test_a_host_with_one_layer_left_computes_like_one_with_all() -> None:
    prediction = predicted("-c 4096 -np 1")
    host = prediction.host_bytes(Layout(4, (1.0,)))
    computing = prediction.compute.host_layers_bytes
    assert host.anonymous_bytes == base_bytes() + MIB + computing + 4 * WORDS


def test_a_vocabulary_takes_memory_by_the_word() -> None:
    few, many = (predicted("-np 1", transformer(words=n)) for n in (512, 1512))
    more = many.host_bytes(ONE_GPU).anonymous_bytes - few.host_bytes(ONE_GPU).anonymous_bytes
    assert more == 1000 * (WORD_BYTES + 4)


@pytest.mark.parametrize(
    ("words", "limit"), [("", 8192 * MIB), ("--cache-ram 64", 64 * MIB), ("--cache-ram -1", None)]
)
def test_how_far_the_prompt_cache_may_grow_is_told_and_not_added(words: str, limit: int | None) -> None:
    host = predicted(words).host_bytes(HOST_ONLY)
    assert host.prompt_cache_bytes_max == limit
    assert host.total == predicted("--cache-ram 0").host_bytes(HOST_ONLY).total


# As a whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["-c 1024", "-ctk q8_0", "--cpu-moe", "--spec-type draft-mtp", "-np 2"])
def test_other_options_give_what_they_would_have_given_from_the_start(words: str) -> None:
    changed = predicted("-c 4096", files.mixture()).with_options(read_options(words.split(), {}))
    assert changed == predicted(words, files.mixture())


def test_a_draft_and_a_projector_stay_when_options_change() -> None:
    small = transformer(layers=2, width=128)
    before, after = "-c 4096 -md s", "-c 1024 -md s"
    changed = predicted(before, draft=small, projector=small).with_options(read_options(after.split(), {}))
    assert changed == predicted(after, draft=small, projector=small)


def test_shards_are_predicted_as_one() -> None:
    complete = transformer().value()
    halves = [
        dataclasses.replace(complete, tensors=part) for part in (complete.tensors[:9], complete.tensors[9:])
    ]
    options = read_options([], {})
    sharded, alone = predict(halves, options), predict([complete], options)
    assert sharded.total_device_bytes(ONE_GPU) == alone.total_device_bytes(ONE_GPU)


def test_the_parts_of_the_host_add_up_to_its_bytes() -> None:
    prediction = predicted("-md s", draft=transformer(layers=2, width=128), projector=transformer())
    for layout in (HOST_ONLY, ONE_GPU, Layout(3, (1.0, 1.0))):
        host = prediction.host_bytes(layout)
        assert prediction.host_parts(layout).total == host.total == host.mapped_bytes + host.anonymous_bytes


def test_each_part_is_told_from_the_others() -> None:
    prediction = predicted("-c 4096 -md s", draft=transformer(layers=2, width=128), projector=transformer())
    alone = predicted("-c 4096")
    on_host, on_gpu = prediction.host_parts(HOST_ONLY), prediction.device_bytes(ONE_GPU)[0]
    assert on_host.cache == on_gpu.cache == alone.host_parts(HOST_ONLY).cache == sum(alone.cache) > 0
    assert on_host.weights == alone.host_parts(HOST_ONLY).weights > alone.host_parts(ONE_GPU).weights > 0
    assert on_host.projector == on_gpu.projector > 0
    assert min(on_host.draft, on_gpu.draft, on_host.compute, on_gpu.compute) > 0
    assert on_host.context == PROCESS_BYTES + WORD_BYTES * WORDS
    assert on_gpu.context == CONTEXT_BYTES
    left = prediction.host_parts(ONE_GPU)
    assert (left.cache, left.projector) == (0, 0)


def test_a_state_is_no_cache() -> None:
    recurrent = predicted("-c 4096", files.mamba2())
    assert recurrent.host_parts(HOST_ONLY).cache == recurrent.device_bytes(ONE_GPU)[0].cache == 0
    assert recurrent.host_parts(HOST_ONLY).state == recurrent.device_bytes(ONE_GPU)[0].state > 0


def test_a_longer_context_and_more_layers_never_take_less() -> None:
    for file in (transformer(), files.gemma3(), files.mixture(), files.hybrid(), files.latent_attention()):
        sizes = [
            predicted(f"-c {tokens}", file).total_device_bytes(ONE_GPU) for tokens in range(256, 9000, 256)
        ]
        assert sizes == sorted(sizes)
        layers = [predicted("", file).total_device_bytes(Layout(count, (1.0,))) for count in range(5)]
        assert layers == sorted(layers)


def test_a_file_that_says_nothing_is_refused() -> None:
    with pytest.raises(Unpredictable):
        predict([Gguf(3, {"general.architecture": "llama"}, (), 0, 0)], read_options([], {}))
