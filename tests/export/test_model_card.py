from __future__ import annotations

import yaml

from llmtrain.export.model_card import Sample, Scores, model_card
from llmtrain.export.provenance import Provenance
from tests.export.conftest import model_of

SCORES = Scores("other.txt", 900, 1.25, {"gzip": 2.5}, run_val_bpb=None)


def card(provenance: Provenance, *samples: Sample) -> str:
    return model_card(provenance, model_of(300).shape, SCORES, samples)


def test_what_is_not_known_is_said_as_such() -> None:
    text = card(Provenance(name="a", llmtrain_version="1", checkpoint_sha256="0" * 64))

    assert text.count("not recorded") == 7
    assert "**No licence is stated.**" in text
    assert "| this model | 1.2500 |\n| gzip | 2.5000 |" in text


def test_a_card_is_the_same_whatever_a_name_or_sample_contains() -> None:
    provenance = Provenance(
        name="a",
        llmtrain_version="1",
        checkpoint_sha256="0" * 64,
        license='x"\n- y',
        sources=("a|b\n# c",),
    )
    text = card(provenance, Sample("p ", "# heading\n---\n```"))

    head = text.split("---\n")[1]
    assert yaml.safe_load(head)["license"] == 'x"\n- y'
    assert "\\|b # c`" in text
    assert "\n    p # heading\n    ---\n    ```\n" in text
