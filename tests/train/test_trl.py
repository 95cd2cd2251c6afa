"""Losses and gradients of fine-tuning beside TRL's trainers and PEFT, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from llmtrain.data.batches.conversations import END, ConversationReader, pack_conversations
from llmtrain.data.batches.preferences import PreferenceReader, pack_preferences
from llmtrain.data.chat.preferences import preference_text
from llmtrain.data.chat.rows import conversation_text
from llmtrain.engine.evaluate_chat import MemoryTokens
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import adapted_decoder
from llmtrain.prepare.chat import ChatEncoder, PreferenceEncoder
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import with_chat_template
from llmtrain.train.checkpoint.pretrained import shape_in
from llmtrain.train.references import ReferenceModel, Work, ensure_references
from tests.data.fixed import TOKENIZER
from tests.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CLOSE = 1e-4  # relative, of the loss and of every gradient's norm
CONTEXT = 192
USER, ASSISTANT = "user", "assistant"


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": USER if at % 2 == 0 else ASSISTANT, "content": text}
        for at, text in enumerate(texts)
    ]


CONVERSATIONS = [
    turns("a b", "the answer"),
    turns("what?", "nothing", "and then?", "a list of it"),
    turns("é ü", "def f(x): return x"),
]
PAIRS: list[dict[str, Any]] = [
    {
        "prompt": turns("a b"),
        "chosen": turns("", "the answer")[1:],
        "rejected": turns("", "no")[1:],
    },
    {
        "prompt": turns("what?", "nothing", "and then?"),
        "chosen": turns("", "a list of it")[1:],
        "rejected": turns("", "it is é")[1:],
    },
    {"prompt": turns("x"), "chosen": turns("", "y")[1:], "rejected": turns("", "z z z")[1:]},
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory with a chat template, that transformers opens."""
    made = save_pretrained(tmp_path / "model", max_position_embeddings=CONTEXT)
    with_chat_template(Tokenizer.load(TOKENIZER)).save(made)
    return made


@pytest.fixture
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def theirs(directory: Path, seed: int | None = None) -> Any:
    """The model in transformers, moved a little from where it was if there is a seed."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def ours(directory: Path, weights: Mapping[str, Tensor]) -> Decoder:
    model = Decoder(shape_in(directory))
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert not missing
    assert set(unexpected) <= {"lm_head.weight"}
    return set_up(model)


def set_up(model: Decoder) -> Decoder:
    model.has_padding, model.separator_id = True, END
    model.compute_with(attention="blocks")
    return model


def stream(encoder: ChatEncoder, texts: Sequence[str]) -> MemoryTokens:
    values = [encoder.separator_id]
    for text in texts:
        values += [*encoder.encode_text(text), encoder.separator_id]
    return MemoryTokens(np.array(values))


def tensors(arrays: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def require_close(
    model: Decoder, gradient_of: Callable[[str], Tensor | None], loss: float, expected: float
) -> None:
    assert loss == pytest.approx(expected, rel=CLOSE)
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = gradient_of(name)
            assert wanted is not None, name
            assert parameter.grad is not None, name
            difference = (parameter.grad - wanted).norm() / wanted.norm()
            assert difference < CLOSE, name
            compared += 1
    assert compared


def common_arguments(tmp_path: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "trainer"),
        "per_device_train_batch_size": rows,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
    }


@pytest.mark.parametrize("adapters", [False, True])
def test_fine_tuning_has_the_loss_and_the_gradients_of_trl(
    directory: Path, tokenizer: Tokenizer, tmp_path: Path, adapters: bool
) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    lora = LoraShape(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    policy = theirs(directory)
    if adapters:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(lora.targets))
        policy = peft.get_peft_model(policy, config)
        torch.manual_seed(0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
    trainer = trl.SFTTrainer(
        model=policy,
        args=trl.SFTConfig(
            assistant_only_loss=True,
            max_length=CONTEXT,
            **common_arguments(tmp_path, len(CONVERSATIONS)),
        ),
        train_dataset=datasets.Dataset.from_list([{"messages": m} for m in CONVERSATIONS]),
        processing_class=transformers.AutoTokenizer.from_pretrained(directory),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    encoder = ChatEncoder(tokenizer)
    tokens = stream(encoder, [conversation_text({"messages": m}, "") for m in CONVERSATIONS])
    packed = pack_conversations(tokens, encoder.marks, CONTEXT)
    reader = ConversationReader(tokens, packed, encoder.marks, CONTEXT, seed=0)
    own = dict(trainer.model.named_parameters())
    if adapters:
        named = {
            n.replace(".default", "").removeprefix("base_model.model."): p for n, p in own.items()
        }
        weights = load_file(directory / "model.safetensors")
        model = adapted_decoder(shape_in(directory), weights.items(), lora, torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(named[name])
        set_up(model)
    else:
        named = own
        model = ours(directory, load_file(directory / "model.safetensors"))
    count = reader.count_targets(0, reader.num_windows)
    loss = model(*tensors(reader.read(0, reader.num_windows))) / count
    loss.backward()
    require_close(model, lambda name: named[name].grad, loss.item(), expected.item())


def test_dpo_has_the_loss_and_the_gradients_of_trl(
    directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    policy = theirs(directory, seed=1)
    weights = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=theirs(directory),
        args=trl.DPOConfig(beta=0.3, max_length=None, **common_arguments(tmp_path, len(PAIRS))),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=transformers.AutoTokenizer.from_pretrained(directory),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    encoder = PreferenceEncoder(tokenizer)
    tokens = stream(encoder, [preference_text(pair, "") for pair in PAIRS])
    first = ours(directory, load_file(directory / "model.safetensors"))
    known = ensure_references(
        None,
        tokens,
        encoder.marks,
        CONTEXT,
        ReferenceModel(lambda: first, nullcontext),
        Work(),
    )
    packed = pack_preferences(tokens, encoder.marks, CONTEXT)
    assert not packed.left_out
    reader = PreferenceReader(tokens, packed, encoder.marks, CONTEXT, 0, known)
    model = ours(directory, weights)
    model.preference_beta = 0.3
    loss = model(*tensors(reader.read(0, reader.num_windows))) / len(PAIRS)
    loss.backward()
    named = dict(trainer.model.named_parameters())
    require_close(model, lambda name: named[name].grad, loss.item(), expected.item())
    assert loss.item() != pytest.approx(np.log(2), abs=0.01)  # the policy has moved
