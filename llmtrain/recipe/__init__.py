"""Scaling rules: what llmtrain chooses where neither profile nor command line does.

They apply in this order, each from the results of those before it:

1. `model_size`: which shipped model a given time is best spent on. N parameters and D tokens.
2. `vocab_size`: how many pieces a tokenizer for N parameters and this text has.
3. `batch_size`: B tokens per optimizer step, from D and from what a step of Muon costs at N.
4. `learning_rate`: peak learning rates of each role of parameters, from B and the width.

Every module gives formula, source, and the trainings to which its constants were fitted
(`tests/benchmarks/sweeps`, reported in `docs/measurements/recipe.md`). They know nothing about the
machine but its FLOP/s, which `llmtrain.plan` measures.
"""
