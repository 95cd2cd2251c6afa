from __future__ import annotations

import math
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.cli.eval import verdict_of
from llmtrain.engine.inference import Trained, text_generator
from llmtrain.generate.native.library import load_decode_step
from llmtrain.generate.text import Piece, TextRequest, TextStream
from llmtrain.machine.probe import read_facts
from tests.cli.conftest import Command


def test_evaluation_is_repeatable_and_near_the_runs_own(llmtrain: Command, trained: Path) -> None:
    first = llmtrain("eval", trained, "--json").document
    again = llmtrain("eval", trained / "checkpoints" / "step-00000020", "--json").document
    shown = llmtrain("runs", "show", trained, "--json").document

    assert first == again
    # The run looks at full windows only, this at every token.
    assert math.isclose(first["loss_nats_per_token"], shown["val_loss"], rel_tol=0.02)


def test_two_models_are_compared_on_the_same_documents(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    early = trained / "checkpoints" / "step-00000010"
    alone = llmtrain("eval", early, "--json").document
    document = llmtrain("eval", trained, early, "--json").document
    last, first = document["models"]
    assert first == {key: alone[key] for key in first}
    (difference,) = document["differences"]
    assert difference["checkpoint"] == str(early)
    between = first["bits_per_byte"] - last["bits_per_byte"]
    assert math.isclose(difference["bits_per_byte"], between, rel_tol=1e-6)
    assert difference["interval"]["low"] < between < difference["interval"]["high"]
    assert difference["is_seen"] is True
    out = llmtrain("eval", trained, early).out
    assert re.search(r": worse than the first: \+\d\.\d{4} bits per byte, ", out)
    itself = llmtrain("eval", trained, trained, "--json").document["differences"][0]
    assert (itself["bits_per_byte"], itself["is_seen"]) == (0, False)


def test_other_tokenizers_are_compared_on_the_first_ones_text(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    settings = ("--set", "model.vocab_size=320", "--steps", 2, "-q")
    assert llmtrain("train", "-p", "tiny.yaml", *settings, "--out", "small").code == 0
    outcome = llmtrain("eval", trained, "small", "--json")
    first, other = outcome.document["models"]
    assert outcome.err.count("warning") == 0
    assert (first["bytes"], first["tokens"]) != (other["bytes"], other["tokens"])
    assert first["bytes"] == other["bytes"]
    assert first["interval"]["units"] == other["interval"]["units"]

    (place / "other.txt").write_text("QQQQ ZZZZ\n" * 300)
    elsewhere = ("--data", "other.txt", "--steps", 2, "-q", "--out", "elsewhere")
    assert (
        llmtrain("train", "-p", "tiny.yaml", "--set", "model.vocab_size=300", *elsewhere).code == 0
    )
    outcome = llmtrain("eval", trained, "elsewhere", "--max-bpb", 0.1, "--json")
    assert outcome.code == 6
    assert "may have seen this validation text" in outcome.err
    assert [limit["met"] for limit in outcome.document["thresholds"]] == [False, False]


def test_evaluation_on_other_text(llmtrain: Command, trained: Path, place: Path) -> None:
    (place / "other.txt").write_text("QQQQ ZZZZ\n" * 30)
    own = llmtrain("eval", trained, "--data", "corpus.txt", "--json").document
    other = llmtrain("eval", trained, "--data", "other.txt", "--json").document

    assert own["bytes"] == (place / "corpus.txt").stat().st_size
    assert other["bytes"] == 300
    assert other["bits_per_byte"] > own["bits_per_byte"]


def test_evaluation_as_lines(llmtrain: Command, trained: Path) -> None:
    out = llmtrain("eval", trained).out
    assert "bits per byte" in out
    assert "perplexity" in out
    assert re.search(r"^  uniform +\d\.\d{4}  every token as likely as any other$", out, re.M)
    assert re.search(r"^text +[\d,]+ tokens, [\d.]+ [KMG]?i?B$", out, re.M)
    assert re.search(r"^verdict +(better than|no better than any of) ", out, re.M)


@pytest.mark.parametrize(
    ("bits_per_byte", "verdict"),
    [
        (1.0, "better than all of these: uniform, gzip"),
        (3.0, "better than uniform; not better than gzip"),
        (9.0, "no better than any of these: uniform, gzip; train it longer"),
        (None, "the loss is not a finite number: the model cannot be used"),
        (math.inf, "the loss is not a finite number: the model cannot be used"),
    ],
)
def test_a_verdict_says_what_the_model_is_better_than(
    bits_per_byte: float | None, verdict: str
) -> None:
    assert verdict_of(bits_per_byte, {"uniform_bpb": 8.0, "gzip_bpb": 2.0}) == verdict


def test_checkpoint_that_left_its_run_needs_a_text(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained / "checkpoints" / "step-00000020", place / "model")

    outcome = llmtrain("eval", "model")
    assert outcome.code == 2
    assert "--data" in outcome.err
    assert llmtrain("eval", "model", "--data", "corpus.txt").code == 0


def test_text_is_decided_by_the_seed(llmtrain: Command, trained: Path) -> None:
    def text(*arguments: object) -> str:
        outcome = llmtrain("generate", trained, "--prompt", "abc", "--max-tokens", 30, *arguments)
        assert outcome.code == 0, outcome.err
        return str(outcome.out)

    assert text("--seed", 1) == text("--seed", 1)
    assert text("--seed", 1) != text("--seed", 2)
    assert text("--seed", 1).startswith("abc")
    assert text("--seed", 1).endswith("\n")
    assert text("--temperature", 0, "--seed", 1) == text("--temperature", 0, "--seed", 2)
    assert text("--top-k", 1, "--seed", 1) == text("--temperature", 0)


def test_no_more_tokens_than_asked_for(llmtrain: Command, trained: Path) -> None:
    drawn = ("generate", trained, "--prompt", "abc", "--temperature", 2, "--seed", 5)
    short = llmtrain(*drawn, "--max-tokens", 3).out
    long = llmtrain(*drawn, "--max-tokens", 60).out
    assert len(short) < len(long)  # longer than the context of 32 too
    assert long.startswith(short.removesuffix("\n").rstrip("\ufffd"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "0"),
        ("--temperature", "-1"),
        ("--max-tokens", "0"),
        ("--repetition-penalty", "0.5"),
        ("--n", "0"),
        ("--n", "1001"),
        ("--stop", ""),
        ("--top-logprobs", "3"),
    ],
)
def test_impossible_sampling(flags: tuple[str, str], llmtrain: Command, trained: Path) -> None:
    outcome = llmtrain("generate", trained, *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert flags[0] in outcome.err


def test_several_texts_are_those_of_one_each(llmtrain: Command, trained: Path) -> None:
    options = ("--max-tokens", 12, "--temperature", 1.5)
    several = llmtrain(
        *("generate", trained, "--prompt", "abc", "--prompt", "", "--n", 2, "--seed", 4),
        *(*options, "--json"),
    ).document
    assert [(each["prompt"], each["seed"]) for each in several["texts"]] == [
        *[("abc", 4), ("abc", 5)],
        *[("", 4), ("", 5)],
    ]
    for each in several["texts"]:
        alone = llmtrain(
            *("generate", trained, "--prompt", each["prompt"], "--seed", each["seed"]), *options
        )
        assert alone.out == each["prompt"] + each["text"] + "\n"
        assert len(each["tokens"]) == 12 or each["finish"] == "stop"
        assert all("likeliest" not in token for token in each["tokens"])
    assert several["text"] == several["texts"][0]["text"]

    shown = llmtrain("generate", trained, "--prompt", "abc", "--n", 2, "--seed", 4, *options).out
    first, second = (each["text"] for each in several["texts"][:2])
    assert shown == (f"--- 1 of 2, seed 4 ---\nabc{first}\n--- 2 of 2, seed 5 ---\nabc{second}\n")


def test_a_text_ends_before_a_stop_string(llmtrain: Command, trained: Path) -> None:
    whole = llmtrain("generate", trained, "--prompt", "abc", "--max-tokens", 30).out
    stop = whole[10:12]
    ended = llmtrain("generate", trained, "--prompt", "abc", "--stop", stop, "--json").document
    assert ended["texts"][0]["finish"] == "stop"
    assert "abc" + ended["text"] == whole[: whole.index(stop, 3)]


def test_tokens_have_log_probabilities(llmtrain: Command, trained: Path) -> None:
    arguments = ("generate", trained, "--prompt", "abc ", "--temperature", 0, "--max-tokens", 5)
    (text,) = llmtrain(*arguments, "--json", "--top-logprobs", 3).document["texts"]
    for token in text["tokens"][1:]:  # the first completes the prompt
        likeliest = token["likeliest"]
        assert len(likeliest) == 3
        assert likeliest[0] == {key: token[key] for key in ("id", "text", "logprob")}
        assert sum(math.exp(each["logprob"]) for each in likeliest) <= 1


def test_a_prompt_longer_than_the_context_is_told(llmtrain: Command, trained: Path) -> None:
    outcome = llmtrain("generate", trained, "--prompt", "abcde " * 40, "--max-tokens", 3)
    assert outcome.code == 0
    assert outcome.out.startswith("abcde " * 40)
    assert re.search(r"the prompt has \d+ tokens; the model reads the last 32", outcome.err)


def test_runs_are_listed_with_where_they_stand(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    empty = llmtrain("runs", "list")
    assert (empty.code, empty.out) == (0, "")
    assert "llmtrain train" in empty.err

    shutil.copytree(trained, place / "runs" / "complete")
    shutil.copytree(trained, place / "runs" / "broken-off")
    record = place / "runs" / "broken-off" / "run.yaml"
    values = yaml.safe_load(record.read_text())
    del values["result"]
    record.write_text(yaml.safe_dump(values))

    lines = llmtrain("runs", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        str(Path("runs") / "broken-off"),
        str(Path("runs") / "complete"),
    ]
    # This process trained the run, and so is the one that its record names.
    assert [line.split()[-1] for line in lines] == ["state", "running", "finished"]
    assert all(" 20 " in line for line in lines[1:])


def test_run_is_shown_with_its_decisions(llmtrain: Command, trained: Path) -> None:
    out = llmtrain("runs", "show", trained).out
    assert "bits/byte" in out
    assert re.search(r"^threads +1 +asked for$", out, re.M)


def test_weights_in_int8_say_what_they_cost(llmtrain: Command, trained: Path) -> None:
    options = ("--quant", "int8", "--max-tokens", 5, "--seed", 3)
    outcome = llmtrain("generate", trained, "--prompt", "ab", *options, "--json")
    is_possible = load_decode_step(read_facts(tries_gpus=False)).value
    # With weights as small as these, bf16 need not be faster: then nothing is computed in int8.
    if not is_possible or "the model is used in fp32" in outcome.err:
        assert outcome.code == 2
        assert "--quant int8 needs the compiled step" in outcome.err
        return
    cost = outcome.document["quantization"]
    assert cost["bits_per_byte_after"] != cost["bits_per_byte_before"]
    assert math.isclose(cost["bits_per_byte_after"], cost["bits_per_byte_before"], rel_tol=0.01)
    assert cost["text"] == "the run's validation text"
    assert outcome.document["text"]
    shown = llmtrain("generate", trained, "--prompt", "ab", *options)
    assert f"{cost['bits_per_byte_before']:.4f} → " in shown.err
    assert shown.out == f"ab{outcome.document['text']}\n"
    assert (
        llmtrain("generate", trained, "--max-tokens", 1, "--json").document["quantization"] is None
    )


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_ctrl_c_ends_a_generated_text_without_an_error(
    llmtrain: Command,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_json: tuple[str, ...],
) -> None:
    def interrupted(
        trained: Trained, requests: Sequence[TextRequest], *arguments: Any, in_int8: bool
    ) -> Iterator[tuple[int, Piece, TextStream]]:
        stream = text_generator(trained).prepare(requests[0])
        yield 0, Piece("d", ()), stream
        signal.raise_signal(signal.SIGINT)
        arguments[-1]()  # check whether to stop
        yield 0, Piece("e", ()), stream

    monkeypatch.setattr("llmtrain.engine.inference.generate_texts", interrupted)
    outcome = llmtrain("generate", trained, "--prompt", "abc", *as_json)
    assert outcome.code == 130
    if as_json:
        assert outcome.document["error"]["code"] == 130
    else:
        assert (outcome.out, outcome.err) == ("abcd\n", "")
