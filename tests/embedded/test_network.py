from __future__ import annotations

import hashlib
import json
from importlib.resources import files

import pytest
import safetensors.torch
import torch

from hpm_robustbench.data import open_dataset
from hpm_robustbench.embedded.network import digits_resnet
from hpm_robustbench.embedded.train import STEM, Recipe, evaluate, pgd
from hpm_robustbench.hpm.backbone import split
from hpm_robustbench.threat import Eps

FOLDER = files("hpm_robustbench.embedded")
WEIGHTS = FOLDER.joinpath(f"{STEM}.safetensors").read_bytes()
FACTS = json.loads(FOLDER.joinpath(f"{STEM}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shipped() -> torch.nn.Module:
    model = digits_resnet()
    model.load_state_dict(safetensors.torch.load(WEIGHTS), strict=True)
    return model.eval().requires_grad_(False)


def test_the_shipped_file_is_the_one_that_was_written_down():
    assert hashlib.sha256(WEIGHTS).hexdigest() == FACTS["sha256"]
    assert len(WEIGHTS) < 2_000_000


def test_the_facts_are_those_of_the_code(shipped):
    assert FACTS["recipe"] == vars(Recipe())
    assert FACTS["eps"] == Recipe().eps
    assert FACTS["parameters"] == sum(p.numel() for p in shipped.parameters()) <= 100_000
    source = open_dataset("digits")
    for name, examples in (("train", source.train()), ("test", source.test())):
        assert FACTS["data"][name] == {"n": len(examples), "fingerprint": examples.fingerprint}


def test_it_classifies_as_many_test_images_as_was_written_down(shipped):
    test = open_dataset("digits").test()
    assert int((shipped(test.images).argmax(1) == test.labels).sum()) == FACTS["test_score"]["clean"]
    assert FACTS["test_score"]["clean"] >= 0.97 * len(test)


def test_the_attack_leaves_clearly_some_and_clearly_not_all(shipped):
    score = evaluate(shipped, open_dataset("digits").test(), FACTS["eps"])
    assert score.pgd == pytest.approx(FACTS["test_score"]["pgd"], abs=5)
    assert 0.4 * score.n < score.pgd < 0.9 * score.n


def test_a_large_budget_leaves_nothing(shipped):
    test = open_dataset("digits").test(100)
    assert evaluate(shipped, test, "1/2").pgd <= 5


def test_each_row_depends_on_its_own_image_alone(shipped):
    images = open_dataset("digits").test(7).images
    together = shipped(images)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.allclose(shipped(images[order]), together[order], atol=1e-5)
    assert torch.allclose(torch.cat([shipped(image[None]) for image in images]), together, atol=1e-5)


def test_its_head_is_its_only_provable_classifier(shipped):
    model = digits_resnet()
    model.load_state_dict(shipped.state_dict())
    backbone, fc = split(model.eval(), (1, 8, 8), 10)
    images = open_dataset("digits").test(5).images
    assert torch.equal(fc(backbone(images)), shipped(images))
    assert backbone(images).shape == (5, 32)


def test_pgd_stays_in_the_box_and_the_budget_and_raises_the_loss(shipped):
    test = open_dataset("digits").test(50)
    eps = float(Eps.parse(FACTS["eps"]))
    attacked = pgd(shipped, test.images, test.labels, eps, 10, eps / 4, torch.Generator().manual_seed(0))
    assert float((attacked - test.images).abs().max()) <= eps + 1e-6
    assert attacked.aminmax().min >= 0
    assert attacked.aminmax().max <= 1
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(shipped(attacked), test.labels) > 2 * cross_entropy(shipped(test.images), test.labels)
