from __future__ import annotations

from pathlib import Path

import pytest

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.zoo.from_file import paper_from_json, spec_from_factory, weights_from_text
from hpm_robustbench.zoo.spec import Paper, WeightsRef

THREAT = ThreatModel.parse("Linf", "2/255")


def own(factory: str = "nets.small:resnet", name: str = "Mine", **rest):
    return spec_from_factory(name, factory, Path("mine.pt"), "cifar10", THREAT, **rest)


def test_a_model_of_your_own():
    spec = own(head="net.linear", paper=Paper(title="Mine"))
    assert (spec.name, spec.dataset, spec.threat) == ("Mine", "cifar10", THREAT)
    assert spec.factory == "python:nets.small:resnet"
    assert str(spec.weights) == "file:mine.pt"
    assert spec.head.path == "net.linear"
    assert spec.paper == Paper(title="Mine")
    assert own().paper == Paper()


@pytest.mark.parametrize(
    "factory",
    ["nets.small", "nets.small:", ":resnet", "nets:resnet()", "nets/small:resnet", "../nets:resnet", "a:b:c", "a b:c"],
)
def test_a_factory_that_is_not_written_as_one(factory):
    with pytest.raises(UsageProblem, match=r"package\.module:function"):
        own(factory)


def test_files_of_several_members_are_separated_by_commas(tmp_path):
    assert weights_from_text("one.pt,two.pt") == WeightsRef("file", ("one.pt", "two.pt"))
    (tmp_path / "one,two.pt").write_bytes(b"")
    assert weights_from_text(f"file:{tmp_path}/one,two.pt") == WeightsRef("file", (f"{tmp_path}/one,two.pt",))


@pytest.mark.parametrize("text", ["https://example.org/net.pt", "s3://bucket/net.pt"])
def test_an_address_is_no_local_file(text):
    with pytest.raises(UsageProblem, match="download it yourself"):
        weights_from_text(text)


@pytest.mark.parametrize("name", ["../../x", "a/b", "nul\0", "x" * 300, "", ".hidden", "a\\b", "a..b"])
def test_a_name_that_is_no_safe_file_name(name):
    with pytest.raises(UsageProblem, match="a model name"):
        own(name=name)


def test_an_unknown_fact_shows_the_nearest_known_one():
    with pytest.raises(UnknownName, match=r"in about\.json.*did you mean authors"):
        paper_from_json({"author": "A. Person"}, "about.json")


@pytest.mark.parametrize(
    "about",
    [{"clean_acc": 91.7}, {"number_forward_passes": "1"}, {"number_forward_passes": True}, {"additional_data": 1}],
)
def test_a_fact_of_the_wrong_type(about):
    with pytest.raises(UsageProblem, match=rf"{next(iter(about))} of type .* in about\.json"):
        paper_from_json(about, "about.json")


def test_a_fact_that_may_be_absent_may_be_null():
    facts = {"unreliable": None, "clean_acc": "91.73", "license": "BSD-3-Clause", "additional_data": True}
    assert paper_from_json(facts, "about.json") == Paper(
        clean_acc="91.73", license="BSD-3-Clause", additional_data=True
    )
