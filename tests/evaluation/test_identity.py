"""What a run is known by: the same thing has the same hash, another one another."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.identity import LAB, code_of, code_sha256, state_sha256, subject_sha256
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.load import Wrapped
from hpm_robustbench.surrogates.views import Subject


def test_equal_weights_that_compute_differently_have_different_keys(digits: tuple[ExampleSet, ExampleSet]) -> None:
    relu, silu = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), act, nn.Linear(8, 10)) for act in (nn.ReLU(), nn.SiLU())
    )
    silu.load_state_dict(relu.state_dict())
    classifier = HPMClassifier(Split(relu[:3], relu[3]), torch.zeros(10, 8), HPMConfig())
    keys = {subject_sha256(Subject(classifier, net, "base"), digits[0].head(16)) for net in (relu, silu)}
    assert state_sha256(relu) == state_sha256(silu)
    assert len(keys) == 2


def test_a_base_trial_does_not_depend_on_the_prototypes(
    wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet]
) -> None:
    examples = digits[0].head(16)

    def both() -> tuple[str, str]:
        base, hpm = (Subject(wrapped.classifier, wrapped.base, target) for target in ("base", "hpm"))
        return subject_sha256(base, examples), subject_sha256(hpm, examples)

    before = both()
    wrapped.classifier.prototypes.add_(1)
    after = both()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_the_state_hash_sees_every_kind_of_state() -> None:
    layer = nn.BatchNorm1d(2)
    layer.register_buffer("unsaved", torch.zeros(2), persistent=False)
    hashes = [state_sha256(layer)]
    for change in (
        lambda: layer.weight.data.add_(1),
        lambda: layer.running_mean.add_(1),
        lambda: layer.unsaved.add_(1),
    ):
        change()
        hashes.append(state_sha256(layer))
    layer.num_batches_tracked = layer.num_batches_tracked.int()
    hashes.append(state_sha256(layer))
    assert len(set(hashes)) == 5


SOURCE = """
class Attack:
    steps = 100

    def search(self, x):
        return x + self.steps
"""


@pytest.mark.parametrize(
    "edited",
    [
        "# about attacks\n" + SOURCE,
        '"""About attacks."""\n' + SOURCE,
        SOURCE.replace("    steps = 100\n", '    steps = 100\n    """How many."""\n'),
        SOURCE.replace("(self, x):\n", '(self, x):\n        """Search."""\n'),
        SOURCE.replace("x + self.steps", "(x\n            + self.steps)  # far"),
    ],
    ids=["comment", "docstring", "attribute", "method", "layout"],
)
def test_words_about_the_code_are_not_the_code(edited: str) -> None:
    assert edited != SOURCE
    assert code_of(edited) == code_of(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("100", "101"), ("x +", "x -"), ("search", "find"), ("(self, x)", "(self, x=1)")]
)
def test_what_the_code_does_is(old: str, new: str) -> None:
    assert code_of(SOURCE.replace(old, new)) != code_of(SOURCE)


def test_text_that_is_computed_with_is_code() -> None:
    assert code_of("name = 'ce'") != code_of("name = 'dlr'")
    assert code_of("def f():\n    return 'a'") != code_of("def f():\n    return 'b'")


def test_rooms_and_files_have_one_hash_each() -> None:
    kinds = [code_sha256(*LAB), code_sha256("attacks"), code_sha256("attacks/ball.py"), code_sha256("hpm")]
    assert len({*kinds, *(code_sha256("attacks", place) for place in LAB)}) == 4 + 3
    assert all(len(kind) == 16 for kind in kinds)


ROUNDED = """
from torch import nn

class Rounded(nn.Module):
    def forward(self, x):
        return {how}
"""


def test_layers_that_answer_alike_but_show_other_gradients_have_different_keys(
    digits: tuple[ExampleSet, ExampleSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    flat, head, keys = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 10), []
    for name, how in (("shattered", "x.round()"), ("straight", "x + (x.round() - x).detach()")):
        (tmp_path / f"{name}.py").write_text(ROUNDED.format(how=how))
        net = nn.Sequential(*flat, import_module(name).Rounded(), head)
        classifier = HPMClassifier(Split(net[:3], head), torch.zeros(10, 8), HPMConfig())
        keys.append(subject_sha256(Subject(classifier, net, "base"), digits[0].head(16)))
    assert keys[0] != keys[1]
