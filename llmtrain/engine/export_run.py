"""Export a trained model: write it under a hidden name, compare it, then give it its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmtrain.engine.export_request import ExportRequest, require_possible, require_replaceable
from llmtrain.engine.export_sample import (
    SampleLoss,
    SampleText,
    baselines_on,
    loss_on,
    sample_text,
)
from llmtrain.engine.inference import Trained, generate_text, load_trained
from llmtrain.engine.provenance import provenance_of, recorded_samples, recorded_val_bpb
from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.export import gguf_tensors, huggingface_directory
from llmtrain.export.encoding import Encoding, Format
from llmtrain.export.gguf_file import TextEnds, gguf_file_name, write_gguf
from llmtrain.export.gguf_vocabulary import (
    ESCAPES_DIFFER,
    Vocabulary,
    escapes_in,
    vocabulary_of,
)
from llmtrain.export.hub import push
from llmtrain.export.model_card import CARD, Sample, Scores, model_card
from llmtrain.export.modelfile import modelfile_of
from llmtrain.export.pending import pending
from llmtrain.export.provenance import Provenance
from llmtrain.export.verify import READERS, Verification, can_verify, verify
from llmtrain.files import write_text_atomically
from llmtrain.generate.sampling import Sampling
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DeviceSection
from llmtrain.progress import Note
from llmtrain.train.events import Observer

EXPORTS = Path("exports")
MODELFILE = "Modelfile"
_SAMPLE_TOKENS = 80
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an encoding, on a sample of text, and the bytes that it saves."""

    text: str
    text_bytes: int
    bits_per_byte_before: float
    bits_per_byte_after: float
    bytes_before: int  # of the weights in fp32
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that were written."""

    checkpoint: Path
    format: Format
    encoding: Encoding
    parameters: int
    directory: Path
    files: tuple[Path, ...]
    verification: Verification | None
    cost: Cost | None  # None: nothing is lost
    pushed: str | None


def export_run(
    request: ExportRequest, observe: Observer, check_stop: Callable[[], None]
) -> Exported:
    """Export the newest intact checkpoint that `request.run` names.

    Raises UsageError for what cannot be exported so, before anything is written, and LlmtrainError
    where the export was compared and is not the same model: it gets no name then.
    """
    require_possible(request)
    trained = load_trained(request.run, DeviceSection(kind="cpu"), observe)
    torch.set_float32_matmul_precision("highest")  # what others are compared with
    work = PrepareContext(trained.plan.workers.value, observe, check_stop)
    provenance = provenance_of(trained, request.license)
    export = _Export(request, trained, provenance, work)
    final = export.final
    if final.exists() and not request.overwrite:
        raise UsageError(
            f"{final} exists", hint="--overwrite replaces it, --out DIR goes elsewhere"
        )
    if final.is_dir():
        require_replaceable(final)
    with _write_errors_mapped(final):
        export.write()
        files = export.files()
    address = None
    if request.push is not None:
        observe(Note(f"uploading to {request.push}, which is private if it is new"))
        address = push(request.push, files)
    return Exported(
        checkpoint=trained.checkpoint,
        format=request.format,
        encoding=request.encoding,
        parameters=trained.model.shape.parameters,
        directory=files[0].parent,
        files=files,
        verification=export.verification,
        cost=export.cost,
        pushed=address,
    )


@contextmanager
def _write_errors_mapped(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LlmtrainError(
            f"cannot write {final}: {error.strerror or error}",
            hint="make room there, or choose another place: --out DIR",
        ) from error


@dataclass(slots=True)
class _Export:
    """One export, from the model to the file or the directory with its name."""

    request: ExportRequest
    trained: Trained
    provenance: Provenance
    work: PrepareContext
    verification: Verification | None = None
    cost: Cost | None = None
    vocabulary: Vocabulary | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.request.format == "gguf":
            rows = self.trained.model.shape.vocab_size
            self.vocabulary = vocabulary_of(self.trained.tokenizer, rows)

    @property
    def final(self) -> Path:
        """The file of a GGUF export, the directory of the other."""
        name, kind = self.provenance.name, self.request.format
        directory = self.request.out or EXPORTS / f"{name}-{kind}"
        if kind == "hf":
            return directory
        parameters = self.trained.model.shape.parameters
        return directory / gguf_file_name(name, parameters, self.request.encoding)

    def files(self) -> tuple[Path, ...]:
        """Return the files that were written."""
        if self.request.format == "hf":
            return tuple(sorted(self.final.iterdir()))
        beside = (self.final.with_name(MODELFILE),) if self.request.ollama else ()
        return (self.final, *beside)

    def write(self) -> None:
        """Write and compare the model; it gets its name last."""
        request, weights = self.request, self._weights()
        is_lossy = request.encoding != "f32"
        verifies = can_verify(request.format) if request.verify is None else request.verify
        sample = before = None
        if is_lossy or verifies or request.format == "hf":
            sample = sample_text(self.trained, request.data, self.work)
        if sample is not None and (is_lossy or request.format == "hf"):
            before = loss_on(self.trained, sample.text, self.work)
        with pending(self.final) as path:
            if request.format == "hf":
                assert sample is not None
                assert before is not None
                self._write_directory(path, weights, sample, before)
            else:
                self._write_file(path, weights)
            after_bytes = self._read_back(path, weights)
            if is_lossy and sample is not None and before is not None:
                after = loss_on(self.trained, sample.text, self.work)
                before_bytes = 4 * self.trained.model.shape.parameters
                self.cost = Cost(
                    sample.name,
                    before.text_bytes,
                    before.bits_per_byte,
                    after.bits_per_byte,
                    before_bytes,
                    after_bytes,
                )
            if verifies and sample is not None:
                self._verify(path, sample.text)
            if request.ollama:
                self._write_modelfile()
        if not verifies:
            program = READERS[request.format].program
            self.work.observe(Note(f"not verified: {program} has not read it", is_warning=True))

    def _weights(self) -> Weights:
        return {name: each.data for name, each in self.trained.model.named_parameters()}

    def _write_file(self, path: Path, weights: Weights) -> None:
        assert self.vocabulary is not None
        write_gguf(
            path,
            weights,
            self.trained.model.shape,
            self.vocabulary,
            TextEnds.of(self.trained.tokenizer),
            self.provenance,
            self.request.encoding,
            self.work.check_stop,
        )

    def _write_directory(
        self, path: Path, weights: Weights, sample: SampleText, loss: SampleLoss
    ) -> None:
        path.mkdir()
        shape, tokenizer = self.trained.model.shape, self.trained.tokenizer
        huggingface_directory.write_directory(
            path,
            weights,
            shape,
            tokenizer,
            self.provenance,
            self.request.encoding,
            self.work.check_stop,
        )
        baselines = baselines_on(self.trained, sample, loss)
        scores = Scores(
            of=sample.name,
            text_bytes=loss.text_bytes,
            model_bpb=loss.bits_per_byte,
            baselines_bpb={
                "every token equally likely": baselines.uniform_bpb,
                "gzip": baselines.gzip_bpb,
                "xz": baselines.xz_bpb,
            },
            run_val_bpb=recorded_val_bpb(self.trained.checkpoint),
        )
        samples = recorded_samples(self.trained) or [self._sampled()]
        alike = tokenizer.kind.ends is None
        text = model_card(self.provenance, shape, scores, samples, begins_alike=alike)
        write_text_atomically(path / CARD, text)

    def _sampled(self) -> Sample:
        texts = generate_text(self.trained, "", Sampling(), _SAMPLE_TOKENS, self.work.check_stop)
        return Sample("", "".join(texts))

    def _read_back(self, path: Path, weights: Weights) -> int:
        """Put the weights of the file into the model; return the bytes of all files.

        Raises LlmtrainError if an fp32 file does not hold the same numbers.
        """
        if self.request.format == "gguf":
            stored = gguf_tensors.read_weights(path, self.trained.model.shape)
        else:
            stored = huggingface_directory.read_weights(path)
        for name, values in stored:
            self.work.check_stop()
            read = torch.from_numpy(values)
            if self.request.encoding == "f32" and not torch.equal(read, weights[name]):
                raise LlmtrainError(
                    f"{name} was not written as it is: the disk or the memory changed it",
                    hint="give the same command again; check the disk if that repeats",
                )
            weights[name].copy_(read)
        paths = [path] if path.is_file() else path.iterdir()
        return sum(each.stat().st_size for each in paths)

    def _verify(self, path: Path, sample: str) -> None:
        known, kind = self.vocabulary, self.trained.tokenizer.kind
        if known is not None:
            differs, differences = known.differs, known.known_differences
        elif kind.escaped and kind.name == "huggingface":  # its own file has no escapes
            differs, differences = escapes_in, (ESCAPES_DIFFER,)
        else:
            differs, differences = (lambda _: False), ()
        self.verification = verify(
            self.request.format,
            path,
            self.trained.model,
            self.trained.tokenizer,
            self.request.encoding,
            sample,
            self.trained.plan.threads.value,
            self.work.check_stop,
            differs,
            differences,
        )

    def _write_modelfile(self) -> None:
        tokenizer = self.trained.tokenizer
        text = modelfile_of(
            self.final.name,
            self.trained.model.shape.context,
            tokenizer.piece(tokenizer.eos_id),
            has_chat_template=self.provenance.chat_template is not None,
        )
        write_text_atomically(self.final.with_name(MODELFILE), text)
