"""The Modelfile with which Ollama takes a GGUF file.

https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

from llmtrain.generate.sampling import Sampling


def modelfile_of(gguf_name: str, context: int, separator: str, *, has_chat_template: bool) -> str:
    """Return the Modelfile; a model without a chat template continues what it is given."""
    lines = [f"FROM ./{gguf_name}"]
    if not has_chat_template:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    lines += [
        f"PARAMETER num_ctx {context}",
        f"PARAMETER temperature {Sampling().temperature}",
        f'PARAMETER stop "{separator}"',
    ]
    return "\n".join(lines) + "\n"
