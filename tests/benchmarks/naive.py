"""A GPT-2 as one would write it first, and its training: the baseline that needs no download."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.profile.schema import ModelSection
from tests.benchmarks.documents import Trained, TrainJob
from tests.benchmarks.plain import LEARNING_RATE, train_plainly
from tests.benchmarks.shapes import gpt2_mlp_width

INITIAL_STD = 0.02


class SelfAttention(nn.Module):
    """Causal attention through torch's own kernel."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x_btc: Tensor) -> Tensor:
        """What each token gathers, (B, T, C)."""
        sequences, length, width = x_btc.shape
        q, k, v = (
            part.view(sequences, length, self.num_heads, -1).transpose(1, 2)
            for part in self.to_qkv(x_btc).chunk(3, dim=-1)
        )
        y_bhtd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y_btc: Tensor = self.to_out(y_bhtd.transpose(1, 2).reshape(sequences, length, width))
        return y_btc


class Block(nn.Module):
    """Attention, then an MLP with GELU, each on a normed input."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        width, inner = section.hidden_size, gpt2_mlp_width(section.intermediate_size)
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = SelfAttention(width, section.num_heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
        )

    def forward(self, x_btc: Tensor) -> Tensor:
        """The residual stream after this block, (B, T, C)."""
        x_btc = x_btc + self.attention(self.attention_norm(x_btc))
        mixed: Tensor = self.mlp(self.mlp_norm(x_btc))
        return x_btc + mixed


class NaiveGpt2(nn.Module):
    """GPT-2 (Radford et al. 2019) without biases and dropout, with a tied head.

    As there and in nanoGPT, projections that write to the residual stream start smaller. The
    MLP is as wide as it takes to have the parameters of the section's SwiGLU.
    """

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        width = section.hidden_size
        self.token_embedding = nn.Embedding(section.vocab_size, width)
        self.position_embedding = nn.Embedding(section.context, width)
        self.blocks = nn.ModuleList(Block(section) for _ in range(section.num_layers))
        self.final_norm = nn.LayerNorm(width, bias=False)
        residual_std = INITIAL_STD / (2 * section.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                is_residual = name.endswith(("to_out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=residual_std if is_residual else INITIAL_STD)

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """All logits, and the mean negative log-likelihood in nats."""
        positions = torch.arange(inputs_bt.shape[1], device=inputs_bt.device)
        x_btc = self.token_embedding(inputs_bt) + self.position_embedding(positions)
        for block in self.blocks:
            x_btc = block(x_btc)
        logits = F.linear(self.final_norm(x_btc), self.token_embedding.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets_bt.flatten())


def train_naive(job: TrainJob) -> Trained:
    """The naive baseline is trained for the job's steps."""
    model = NaiveGpt2(job.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    step_s = train_plainly(model, optimizer, job)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(step_s=step_s, parameters=parameters, precision="fp32")
