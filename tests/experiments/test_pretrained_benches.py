"""The benches of pretrained models, on small ones: what they measure is there, and the accounts hold."""

from __future__ import annotations

import pytest

from fedblocks.experiments.bench import large_model, objective_memory

_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.slow
def test_a_block_of_a_large_model_trains_privately_and_carries_its_adapters_alone() -> None:
    """Would catch a stage that fails in bfloat16, and a round that carries more than the adapters of a block."""
    found = large_model.measure(_SMALL, 4)
    size, kv, layers, rank = 64, 32, 2, large_model.RANK
    assert found["lora_trained"] == layers * rank * ((size + size) + (size + kv))  # of queries and values
    per_layer = 2 * size * size + 2 * size * kv + 3 * size * 96 + 2 * size
    assert found["whole_block_trained"] == layers * per_layer
    assert found["parameters"] == 4 * layers * per_layer + 2 * 300 * size + size
    assert found["lora_round_share"] == pytest.approx(
        4 * 4 * found["lora_trained"] / (2 * found["parameters"]), abs=1e-5
    )


@pytest.mark.slow
def test_a_block_keeps_at_most_its_share_of_end_to_end_training() -> None:
    """Would catch activations of other blocks that are kept, and moments of weights that do not train."""
    found = objective_memory.measure()
    assert found["task_ratio"] <= 0.45
    assert found["denoise_ratio"] <= 0.45
    assert found["task_ratio"] < found["denoise_ratio"] < found["mixed_ratio"] < 1
