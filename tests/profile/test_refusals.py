"""What a profile may not say, and that the complaint names the value and where it was said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmtrain.errors import UsageError
from llmtrain.profile.load import load_profile, profile_from_values
from llmtrain.profile.schema import Profile
from llmtrain.profile.setting import Setting
from llmtrain.profile.yaml_text import parse_scalar

Refusal = Callable[[str], UsageError]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.fixture
def refusal(file: Path) -> Refusal:
    """The error of a profile file with this text."""

    def of(text: str) -> UsageError:
        file.write_bytes(text.encode())
        with pytest.raises(UsageError) as caught:
            load_profile(str(file), environment={})
        return caught.value

    return of


def refused_assignment(assignment: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_profile("cpu-tiny", environment={}, assignments=[assignment])
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "meant"),
    [
        ("train:\n  stepz: 5\n", 2, "train.steps"),
        ("model:\n  context: 64\n\n  hiden_size: 64\n", 4, "model.hidden_size"),
        ("optim:\n  zzz: 5\ntrain: {token_per_step: 5}\n", 2, None),
        ("modle:\n  context: 64\n", 2, "model.context"),
        ("context: 64\n", 1, "model.context"),
        ("name:\n  first: a\n", 2, None),
    ],
)
def test_an_unknown_key(
    refusal: Refusal, file: Path, text: str, line: int, meant: str | None
) -> None:
    error = refusal(text)
    assert error.message.startswith("unknown key ")
    assert f"({file}:{line})" in error.message
    assert error.hint == (f"did you mean {meant}?" if meant else "llmtrain profiles schema")


def test_an_unknown_key_elsewhere() -> None:
    error = refused_assignment("train.step=5")
    assert error.message == "unknown key train.step (--set train.step=5)"
    assert error.hint == "did you mean train.steps?"
    with pytest.raises(UsageError, match=r"unknown key device.thread \(environment LLMTRAIN_DEV"):
        load_profile(environment={"LLMTRAIN_DEVICE__THREAD": "2"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.context", "true"),
        ("model.context", "64.5"),
        ("model.context", "'64'"),
        ("model.context", "[64]"),
        ("model.context", ""),
        ("model.context", "2147483648"),
        ("model.qk_norm", "1"),
        ("model.qk_norm", "'yes'"),
        ("model.rope_theta", ".inf"),
        ("model.rope_theta", ".nan"),
        ("model.rope_theta", "0"),
        ("data.sources", "a.txt"),
        ("data.sources", "[]"),
        ("data.sources", "[1]"),
        ("data.text_field", "7"),
        ("data.validation_fraction", "1"),
        ("train.tokens", "50X"),
        ("train.tokens", "-5"),
        ("train.tokens_per_step", "0"),
        ("train.seed", "-1"),
        ("train.time", "30"),
        ("train.time", "1.5"),
        ("train.time", "'30'"),
        ("train.time", "0s"),
        ("train.time", "true"),
        ("train.micro_batch", "automatic"),
        ("train.micro_batch", "0"),
        ("optim.name", "sgd"),
        ("optim.learning_rate", "6e-4x"),
        ("optim.beta1", "1"),
        ("device.precision", "int8"),
        ("device.force_cpu", "0"),
        ("name", "a b"),
        ("name", "../a"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin(
    refusal: Refusal, file: Path, path: str, value: str
) -> None:
    section, _, key = path.rpartition(".")
    text = f"{section}:\n  {key}: {value}\n" if section else f"\n{key}: {value}\n"
    in_file, in_set = refusal(text), refused_assignment(f"{path}={value}")
    for error, origin in ((in_file, f"({file}:2)"), (in_set, f"(--set {path}={value})")):
        assert error.message.startswith(f"{path}: ")
        shown = {"true": "true (YAML", "": "null (YAML"}.get(value, f"{parse_scalar(value)!r} (")
        begins = f"{path}: {parse_scalar(value)!r} "
        assert f"not {shown}" in error.message or error.message.startswith(begins)
        assert error.message.endswith(origin)
        assert "\n" not in error.message


def test_a_time_without_unit_is_told_how_to_write_it(refusal: Refusal) -> None:
    assert "30 has no unit; write 30s or 30m" in refusal("train: {time: 30}").message
    with pytest.raises(UsageError, match=r"write 150s, 30m, 2h or 1h30m \(--time\)"):
        load_profile(environment={}, flags={"train.time": Setting("30", "--time")})


@pytest.mark.parametrize("text", ["6e-4", "6E-4", "6.0e-4", "+6e-04", "0.6e-3", "6e-4 # comment"])
def test_a_number_with_an_exponent_is_a_number(file: Path, text: str) -> None:
    file.write_text(f"optim: {{\n  learning_rate: {text}\n}}")
    from_file = load_profile(str(file), environment={}).profile
    from_set = load_profile(environment={}, assignments=[f"optim.learning_rate={text}"]).profile
    from_variable = load_profile(environment={"LLMTRAIN_OPTIM__LEARNING_RATE": text}).profile
    for profile in (from_file, from_set, from_variable):
        assert profile.optim.learning_rate == pytest.approx(6e-4, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("hidden_size: 100, num_heads: 6", "hidden_size 100 is not divisible by num_heads 6"),
        ("hidden_size: 30, num_heads: 6", "head_dim 5 is odd"),
        ("head_dim: 33", "head_dim 33 is odd"),
        ("num_heads: 6, num_kv_heads: 4", "num_heads 6 is not divisible by num_kv_heads 4"),
        ("num_heads: 6, num_kv_heads: 12", "num_heads 6 is not divisible by num_kv_heads 12"),
        ("num_layers: 0", "model.num_layers: has to be at least 1, not 0"),
        ("vocab_size: 299", "model.vocab_size: "),
        ("context: 7", "model.context: "),
    ],
)
def test_an_impossible_shape(refusal: Refusal, file: Path, model: str, complaint: str) -> None:
    error = refusal(f"model: {{{model}}}")
    assert complaint in error.message
    assert f"{file}:1" in error.message


@pytest.mark.parametrize(
    ("sets", "cited"),
    [
        (("model.hidden_size=100", "model.num_heads=6"), 2),
        (("model.hidden_size=30", "model.num_heads=6"), 2),
        (("model.head_dim=33", "model.num_heads=6"), 1),
        (("model.num_kv_heads=4", "model.num_heads=6"), 2),
        (("train.sync_every=4", "train.sync_delay=4"), 2),
    ],
)
def test_of_a_section_those_settings_are_cited_that_conflict(
    sets: tuple[str, ...], cited: int
) -> None:
    others = ("model.context=64", "model.vocab_size=320", "train.seed=1")
    with pytest.raises(UsageError) as caught:
        load_profile("cpu-tiny", environment={}, assignments=[*sets, *others])
    message = caught.value.message
    assert [each in message for each in sets] == [number < cited for number in range(len(sets))]
    assert not [each for each in others if each in message]


def test_a_date_is_text() -> None:
    loaded = load_profile(environment={}, assignments=["data.text_field=2024-01-01"])
    assert loaded.profile.data.text_field == "2024-01-01"


def test_a_head_dim_of_its_own_needs_no_division() -> None:
    sets = ["model.hidden_size=100", "model.num_heads=6", "model.head_dim=16"]
    assert load_profile(environment={}, assignments=sets).profile.model.head_dim == 16


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("model:\n  context: 64\n  context: 64\n", 3, "model.context is set twice"),
        ("model: {}\ntrain: {}\nmodel: {}\n", 3, "model is set twice"),
        ("model: {context: 64}\nmodel.context: 32\n", 2, "model.context is set twice"),
        ("a: &x 5\nb: *x\n", 1, "anchors and aliases are not used"),
        ("train:\n  seed: *x\n", 2, "anchors and aliases are not used"),
        ("train:\n  seed: !!bool x\n", 2, "a tag is not used"),
        ("train:\n  seed: !!int ''\n", 2, "a tag is not used"),
        ("data:\n  text_field: !!binary aGk=\n", 2, "a tag is not used"),
        ("- a\n- b\n", 1, "a profile is a mapping"),
        ("just text", 1, "a profile is a mapping"),
        ("? [a, b]\n: 5\n", 1, "a key is a plain word"),
        ("'': 5\n", 1, "a key is a plain word"),
        ("train:\n  seed: " + "9" * 5000 + "\n", 2, "train.seed: "),
        ("train:\n  seed: 0x" + "f" * 5000 + "\n", 2, "train.seed: the integer is too large"),
        ("data:\n  sources: " + "[" * 60 + "]" * 60 + "\n", 2, "nested too deeply"),
        ('data:\n  text_field: "\\ud83d"\n', 2, "half a surrogate pair"),
    ],
)
def test_yaml_that_is_not_plain(
    refusal: Refusal, file: Path, text: str, line: int, what: str
) -> None:
    error = refusal(text)
    assert error.message.startswith(f"{file}:{line}: ")
    assert what in error.message


@pytest.mark.parametrize(
    "text",
    [
        "a: [1\n",
        "a: 'b\n",
        "\tmodel: 5\n",
        "a: 1\n---\nb: 2\n",
        'a: "\\UFFFFFFFF"\n',
        'a: "\\U00110000"\n',
        "a: \x00\n",
        "%YAML 9.9\n---\na: 1\n",
        "[" * 1500,
        "{a: " * 1500,
        "a: " + "- " * 1500,
        "a: [" + "- " * 1500,
    ],
)
def test_text_that_is_not_yaml(refusal: Refusal, file: Path, text: str) -> None:
    error = refusal(text)
    assert error.message.startswith(str(file))
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "&a [*a]",
        "!!set {a}",
        "!!timestamp x",
        "!!python/object:os.system x",
        '"\\UFFFFFFFF"',
        "[" * 1500,
        "0x" + "f" * 5000,
        "\x00",
    ],
)
def test_an_assignment_that_is_not_plain(text: str) -> None:
    assert refused_assignment(f"data.text_field={text}").message


@pytest.mark.parametrize("assignment", ["", "train.steps", "=5", "5"])
def test_an_assignment_without_key_or_value(assignment: str) -> None:
    assert "is not KEY=VALUE" in refused_assignment(assignment).message


def test_a_huge_file_is_not_read(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UsageError, match="it has 1 TiB, and the limit is 512 KiB"):
        load_profile(str(file), environment={})


def test_a_binary_file(file: Path) -> None:
    file.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match=r"mine\.yaml: it is not UTF-8: byte 0x80 at offset 128"):
        load_profile(str(file), environment={})


def test_a_byte_order_mark_is_not_text(file: Path) -> None:
    file.write_bytes("\ufefftrain:\r\n  seed: 5\r\n".encode())
    assert load_profile(str(file), environment={}).profile.train.seed == 5


def test_a_file_or_profile_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine.yaml", "mine.yml", str(tmp_path / "cpu-tiny")):
        with pytest.raises(UsageError, match="does not exist") as caught:
            load_profile(name, environment={})
        assert name in caught.value.message
    for directory in (str(tmp_path), "somewhere"):
        (tmp_path / "somewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="is a directory"):
            load_profile(directory, environment={})
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin.yaml: it is not UTF-8: byte 0xe9 at") as caught:
        load_profile("latin.yaml", environment={})
    assert "iconv" in str(caught.value.hint)
    with pytest.raises(UsageError, match="unknown profile 'cpu-tinny'; there are cpu-") as caught:
        load_profile("cpu-tinny", environment={})
    assert caught.value.hint == "did you mean cpu-tiny?"
    with pytest.raises(UsageError) as caught:
        load_profile("zzz", environment={})
    assert caught.value.hint == "llmtrain profiles list"


def test_a_value_where_a_section_should_be(refusal: Refusal, file: Path) -> None:
    assert refusal("model: 5").message.startswith("model: ")
    file.write_text("model: 5")
    with pytest.raises(UsageError, match=rf"model is a section, not a value \({file}:1\)"):
        load_profile(str(file), environment={}, assignments=["model.context=8"])


WORDS = st.sampled_from(
    ["model", "train", "name", "steps", "context", "time", "data", "sources", "auto", "null", "30m"]
)
MARKS = st.sampled_from(list(":-?[]{},#&*!|>'\"%@`~<=.\\ \n\t\r\x85\u2028\ufeff0159eEx_+"))
TEXTS = st.lists(WORDS | MARKS | st.characters(), max_size=40).map("".join)


@given(TEXTS)
@example("a: {<<: 5}")
@example("? a")
@example("data: {sources: [{? [1] : 2}]}")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_profile_or_a_usage_error(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_profile(str(file), environment={})
    except UsageError as error:
        refused = error
    else:
        return
    assert str(file) in refused.message
    assert "\n" not in refused.message


@given(TEXTS)
@settings(max_examples=200)
def test_any_assignment_is_a_value_or_a_usage_error(text: str) -> None:
    for key in ("model", "data.sources", "train.time", "optim.learning_rate"):
        with contextlib.suppress(UsageError):
            load_profile(environment={}, assignments=[f"{key}={text}"])


@given(
    seconds=st.floats(1e-3, 9e8),
    learning_rate=st.floats(1e-12, 1e3),
    tokens_per_step=st.integers(1, 2**63 - 1),
    prompts=st.lists(st.text(), max_size=3),
)
@example(seconds=20 * 86400.0, learning_rate=6e-4, tokens_per_step=8192, prompts=[])
def test_recorded_values_are_the_same_profile(
    seconds: float, learning_rate: float, tokens_per_step: int, prompts: list[str]
) -> None:
    profile = Profile.model_validate(
        {
            "train": {"tokens_per_step": tokens_per_step},
            "optim": {"learning_rate": learning_rate},
            "eval": {"prompts": tuple(prompts)},
        }
    )
    timed = profile.train.model_copy(update={"time": seconds})
    profile = profile.model_copy(update={"train": timed})
    assert profile_from_values(profile.values(), "run.yaml") == profile


def test_a_profile_does_not_change() -> None:
    profile = load_profile("cpu-tiny", environment={}).profile
    with pytest.raises(ValueError, match="frozen"):
        profile.train.seed = 5


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("train.steps", "010", "010 is octal"),
        ("train.steps", "-010", "-010 is octal"),
        ("train.steps", "0o10", "'0o10'"),
        ("train.steps", "08.5", "has to be a whole number"),
        ("train.time", "1:30", "1:30 is in base 60"),
        ("optim.learning_rate", "1:30.5", "1:30.5 is in base 60"),
        ("name", "007", "007 is octal"),
        ("name", "no", "has to be text, not false (YAML reads no, off and false so)"),
        ("name", "a/b", "letters, digits, points, '-' and '_', the first a letter or digit, not"),
        ("data.filters.languages", "[English]", "two or three small letters, as in en"),
        ("data.filters.languages", "[no]", "has to be text, not [false]"),
        ("data.text_field", "on", "has to be text, not true (YAML reads yes, on and true so)"),
        ("data.text_field", "null", "has to be text, not null (YAML reads ~, null and nothing so)"),
        ("model.context", "yes", "has to be a whole number, not true (YAML reads yes, on and true"),
        ("eval.prompts", "[yes, 1]", "has to be text, not [true, 1]"),
        ("device.compile", "1", "has to be true or false or 'auto', not 1"),
        ("device.kind", "tpu", "has to be 'auto', 'cpu', 'cuda' or 'mps', not 'tpu'"),
        ("model.num_layers", "1.5", "has to be a whole number, not 1.5"),
        ("model.num_kv_heads", "many", "has to be a whole number or 'auto', not 'many'"),
        ("optim.beta1", "1.0", "has to be at least 0 and below 1, not 1.0"),
        ("optim.learning_rate", "0", "has to be above 0 or 'auto', not 0"),
        ("train.steps", "1.5e0", "has to be a whole number"),
        ("train.steps", "1e99", "has to be "),
    ],
)
def test_what_yaml_reads_as_something_else_is_refused_with_its_line(
    refusal: Refusal, path: str, value: str, what: str
) -> None:
    *sections, key = path.split(".")
    lines = [f"{'  ' * depth}{word}:" for depth, word in enumerate([*sections, key])]
    error = refusal("\n".join(lines) + f" {value}\n")
    assert what in error.message
    assert f"mine.yaml:{len(lines)}" in error.message
    in_set = refused_assignment(f"{path}={value}").message
    assert what in in_set
    assert in_set.endswith(f"(--set {path}={value})")
    assert "Input should" not in error.message + in_set


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.steps", "1e6", 10**6),
        ("train.steps", "'1e6'", 10**6),
        ("train.tokens", "1.5e3", 1500),
        ("train.tokens", "1e18", 10**18),
        ("train.tokens", "1_000", 1000),
        ("model.context", "1e2", 100),
        ("model.context", "0x20", 32),
        ("model.rope_theta", "1e6", 1e6),
        ("optim.learning_rate", ".5", 0.5),
        ("optim.weight_decay", "0e0", 0.0),
        ("device.force_cpu", "yes", True),
        ("model.qk_norm", "off", False),
        ("device.activation_checkpointing", "off", "off"),
        ("device.numa_binding", "off", "off"),
        ("data.text_field", "2024-01-01", "2024-01-01"),
        ("data.text_field", "=", "="),
        ("data.text_field", "<<", "<<"),
        ("data.text_field", "'007'", "007"),
    ],
)
def test_what_people_write_is_read_as_they_mean_it(path: str, text: str, value: object) -> None:
    profile = load_profile(environment={}, assignments=[f"{path}={text}"]).profile
    section, _, key = path.partition(".")
    assert profile.values()[section][key] == value


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("--set", "a list is in brackets: --set 'data.sources=[\"a b.txt\"]'"),
        ("environment", "a list is in brackets: LLMTRAIN_DATA__SOURCES='[\"a b.txt\"]'"),
        ("file", 'a list is in brackets: sources: ["a b.txt"]'),
    ],
)
def test_a_hint_is_written_as_the_value_was(refusal: Refusal, written: str, hint: str) -> None:
    if written == "--set":
        error = refused_assignment("data.sources=a b.txt")
    elif written == "file":
        error = refusal("data:\n  sources: a b.txt\n")
    else:
        with pytest.raises(UsageError) as caught:
            load_profile(environment={"LLMTRAIN_DATA__SOURCES": "a b.txt"})
        error = caught.value
    assert error.hint == hint
