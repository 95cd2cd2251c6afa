"""Environment variables that make any profile train in seconds; flags override them."""

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
