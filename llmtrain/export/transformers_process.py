"""A process that reads a Hugging Face directory with transformers, in fp32."""

from __future__ import annotations

import os
import sys
import warnings

from llmtrain.errors import DataError
from llmtrain.export.questions import TOP, Answers, Arguments, Prompt, Questions, Step, answer_with


def main() -> None:
    """Run a reader's process."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    answer_with(sys.argv[1], _answer)


def _answer(arguments: Arguments, questions: Questions) -> Answers:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.path)
        # With a chat template names of special tokens are read as these; texts have none of them.
        tokenizer.split_special_tokens = True
        model = transformers.AutoModelForCausalLM.from_pretrained(
            arguments.path, dtype=torch.float32
        ).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(str(error)[:300]) from None

    @torch.inference_mode()
    def steps_of(prompt: Prompt) -> list[Step]:
        ids_bt = torch.tensor([prompt.ids])
        out = model.generate(
            ids_bt,
            attention_mask=torch.ones_like(ids_bt),
            max_new_tokens=prompt.tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        taken = out.sequences[0, len(prompt.ids) :].tolist()
        tops = [logits_bv[0].log_softmax(-1).topk(TOP) for logits_bv in out.logits]
        return [
            Step(token=token, top=list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
            for token, top in zip(taken, tops, strict=True)
        ]

    return Answers(
        ids=[tokenizer.encode(text, add_special_tokens=False) for text in questions.texts],
        prefix=tokenizer.encode("", add_special_tokens=True),
        continuations=[steps_of(prompt) for prompt in questions.prompts],
    )
