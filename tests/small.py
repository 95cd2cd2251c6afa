"""Settings that make any profile train in seconds.

As environment variables, which flags override, and as settings of a small profile.
"""

from typing import Any

ENVIRONMENT = {
    "LLMTRAIN_MODEL__VOCAB_SIZE": "400",
    "LLMTRAIN_MODEL__HIDDEN_SIZE": "32",
    "LLMTRAIN_MODEL__INTERMEDIATE_SIZE": "64",
    "LLMTRAIN_MODEL__NUM_HEADS": "2",
    "LLMTRAIN_MODEL__NUM_KV_HEADS": "2",
    "LLMTRAIN_MODEL__HEAD_DIM": "16",
    "LLMTRAIN_MODEL__NUM_LAYERS": "1",
    "LLMTRAIN_MODEL__CONTEXT": "32",
    "LLMTRAIN_TRAIN__TOKENS_PER_STEP": "256",
    "LLMTRAIN_EVAL__TOKENS": "512",
    "LLMTRAIN_EVAL__SAMPLE_TOKENS": "4",
    "LLMTRAIN_DEVICE__PRECISION": "fp32",  # nothing is benchmarked
    "LLMTRAIN_DEVICE__ATTENTION": "blocks",
    "LLMTRAIN_DEVICE__LOSS": "chunks",
}

# A model that is trained in seconds.
SETTINGS: dict[str, Any] = {
    "model.vocab_size": 400,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.context": 32,
    "train.tokens_per_step": 256,
    "device.kind": "cpu",
    "device.threads": 1,
}
