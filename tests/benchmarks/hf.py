"""A Llama of the same shape in Hugging Face's Trainer, by its defaults but for what is said here.

Without query and key norms, which Llama has not.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from llmtrain.profile.schema import ModelSection
from tests.benchmarks.documents import Precision, Trained, TrainJob


class Windows(Dataset[dict[str, Tensor]]):
    """The token file cut into whole contexts."""

    def __init__(self, job: TrainJob) -> None:
        self._tokens = np.memmap(job.tokens_file, dtype=job.dtype, mode="r")
        self._context = job.model.context

    def __len__(self) -> int:
        return len(self._tokens) // self._context

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = index * self._context
        ids = torch.from_numpy(self._tokens[first : first + self._context].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Seconds from the end of one step to the end of the next: reading the batch counts."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self._begun_s = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self._begun_s = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step is done, and the next one begins."""
        now_s = time.perf_counter()
        self.step_s.append(now_s - self._begun_s)
        self._begun_s = now_s


def train_hf(job: TrainJob, precision: Precision) -> Trained:
    """Trainer has made the job's steps."""
    torch.manual_seed(job.seed)
    model = LlamaForCausalLM(llama_config(job.model))
    clock = StepClock()
    arguments = TrainingArguments(
        output_dir=str(job.directory),
        max_steps=job.steps,
        per_device_train_batch_size=job.micro_batch,
        dataloader_num_workers=0,
        bf16=precision == "bf16",
        use_cpu=True,
        optim="adamw_torch_fused",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=job.seed,
    )
    Trainer(model=model, args=arguments, train_dataset=Windows(job), callbacks=[clock]).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(step_s=tuple(clock.step_s), parameters=parameters, precision=precision)


def llama_config(section: ModelSection) -> LlamaConfig:
    """Llama in the section's shape."""
    return LlamaConfig(
        vocab_size=section.vocab_size,
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_hidden_layers=section.num_layers,
        num_attention_heads=section.num_heads,
        num_key_value_heads=section.num_heads,
        max_position_embeddings=section.context,
        rms_norm_eps=section.norm_epsilon,
        tie_word_embeddings=section.tie_embeddings,
        use_cache=False,
    )
