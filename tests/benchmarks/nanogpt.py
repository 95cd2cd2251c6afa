"""nanoGPT's own model file, trained as its train.py does on a CPU: fp32, `compile=False`.

Its MLP is always four times as wide as the model, so at M it has fewer parameters than ours.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.benchmarks.documents import Trained, TrainJob
from tests.benchmarks.plain import LEARNING_RATE, train_plainly

_WEIGHT_DECAY, _BETAS = 0.1, (0.9, 0.95)


def model_file(path: Path) -> Path:
    """The model.py that a checkout, or the file itself, means."""
    return path / "model.py" if path.is_dir() else path


def train_nanogpt(job: TrainJob) -> Trained:
    """nanoGPT is trained for the job's steps, by default settings of its train.py."""
    assert job.nanogpt is not None, "the command line asks for the path"
    nanogpt = _imported(model_file(job.nanogpt))
    section = job.model
    config = nanogpt.GPTConfig(
        block_size=section.context,
        vocab_size=section.vocab_size,
        n_layer=section.num_layers,
        n_head=section.num_heads,
        n_embd=section.hidden_size,
        dropout=0.0,
        bias=False,
    )
    model = nanogpt.GPT(config)
    optimizer = model.configure_optimizers(_WEIGHT_DECAY, LEARNING_RATE, _BETAS, "cpu")
    step_s = train_plainly(model, optimizer, job)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(step_s=step_s, parameters=parameters, precision="fp32")


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None, f"{path} is not a Python file"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module
