from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import THREAT_NAMES, parse_threat
from hpm_robustbench.zoo.builtin import DIGITS_MODEL
from hpm_robustbench.zoo.catalog import Catalog, catalog
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef


def spec(name: str, dataset: str = "cifar10", threat: str = "Linf", eps: str = "8/255") -> ModelSpec:
    budget = None if threat == "corruptions" else eps
    return ModelSpec(name, dataset, parse_threat(threat, budget), "python:nets:one", WeightsRef("file", ("x.pt",)))


TRACKS = st.tuples(st.sampled_from("ABC"), st.sampled_from(["cifar10", "digits"]), st.sampled_from(THREAT_NAMES))


@given(st.sets(TRACKS), st.sampled_from([None, "cifar10", "digits"]), st.sampled_from([None, *THREAT_NAMES]))
def test_every_model_is_found_on_its_own_track_and_listed_in_order(keys, dataset, threat):
    whole = Catalog(spec(*key) for key in keys)
    for name, its_dataset, its_threat in keys:
        found = whole.find(name, its_dataset, its_threat)
        assert (found.name, found.dataset, found.threat.name) == (name, its_dataset, its_threat)
    listed = [(s.dataset, s.threat.name, s.name) for s in whole.specs(dataset, threat)]
    wanted = [(d, t, name) for name, d, t in keys if dataset in (None, d) and threat in (None, t)]
    assert listed == sorted(wanted)


def test_the_same_name_twice_on_a_track_is_refused_even_with_another_budget():
    with pytest.raises(UsageProblem, match="one model called A on cifar10 Linf"):
        Catalog([spec("A"), spec("B"), spec("A", eps="4/255")])


def test_robustbenchs_defaults_decide_between_tracks():
    whole = Catalog([spec("A"), spec("A", "cifar100"), spec("A", threat="L2", eps="0.5")])
    assert whole.find("A") == spec("A")
    assert whole.find("A", threat_model="L2").threat.name == "L2"
    assert whole.find("A", dataset="cifar100").dataset == "cifar100"


def test_a_model_that_is_on_no_default_track_is_found_by_the_default_that_applies():
    whole = Catalog([spec("A", "cifar10", "corruptions"), spec("A", "cifar100", "corruptions")])
    assert (whole.find("A").dataset, whole.find("A").threat.name) == ("cifar10", "corruptions")


def test_several_tracks_without_the_default_are_listed():
    whole = Catalog([spec("A", "cifar100"), spec("A", "imagenet")])
    with pytest.raises(UsageProblem, match="cifar100 Linf, imagenet Linf") as caught:
        whole.find("A")
    assert caught.value.exit_code == 2


def test_a_track_the_model_is_not_on():
    with pytest.raises(UsageProblem, match=r"A on imagenet L2; got a model of cifar10 Linf"):
        Catalog([spec("A")]).find("A", "imagenet", "L2")


def test_a_model_without_weights_is_said_to_have_none():
    with pytest.raises(
        UsageProblem, match=r"Alayrac2019Labels on cifar10 Linf, with weights; got published figures alone"
    ):
        catalog().find("Alayrac2019Labels")


def test_a_model_may_have_weights_on_one_track_and_figures_alone_on_another():
    assert catalog().find("Erichson2022NoisyMix").dataset == "imagenet"
    with pytest.raises(UsageProblem, match="on cifar100 corruptions, with weights; got published figures alone"):
        catalog().find("Erichson2022NoisyMix", "cifar100")
    with pytest.raises(UsageProblem, match="got a model of imagenet corruptions"):
        catalog().find("Erichson2022NoisyMix", "imagenet", "Linf")


def test_an_unknown_name_shows_the_nearest():
    with pytest.raises(UnknownName, match="did you mean Wong2020Fast"):
        catalog().find("wong")
    with pytest.raises(UnknownName, match="did you mean Carmon2019Unlabeled") as caught:
        catalog().find("carmon2019unlabelled")
    assert caught.value.exit_code == 2


def test_nothing_can_be_added_after_the_start():
    listed = catalog().specs()
    assert isinstance(listed, tuple)
    assert catalog() is catalog()
    with pytest.raises(AttributeError):
        listed.append(spec("A"))


def test_all_sources_are_in():
    whole = catalog()
    assert len(whole.specs()) == 207
    assert whole.find(DIGITS_MODEL).dataset == "digits"
    assert whole.find("Standard").dataset == "cifar10"
    assert len(whole.specs("cifar100", "Linf")) == 38
    assert len(whole.specs("imagenet", "corruptions")) == 12
