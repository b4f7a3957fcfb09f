"""Which models a question admits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import THREAT_NAMES
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.query import Query, parse_size

MODELS = catalog().specs()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("11171146", 11_171_146), ("500k", 500_000), (" 11.2M ", 11_200_000), ("0.5b", 500_000_000)],
)
def test_a_size_is_a_count_of_parameters(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1", "1e9", "11 M", "1T", "9" * 99])
def test_what_is_no_size(text):
    with pytest.raises(UsageProblem, match=r"11\.2M"):
        parse_size(text)


@given(
    st.builds(
        Query,
        dataset=st.sampled_from([None, "cifar10", "cifar100", "imagenet", "digits"]),
        threat_model=st.sampled_from([None, *THREAT_NAMES]),
        architecture=st.sampled_from([None, "wideRESNET", "xcit", "", "ResNet-18"]),
        license=st.sampled_from([None, "apache", "MIT", "cc-by"]),
        min_params=st.none() | st.integers(0, 10**9),
        max_params=st.none() | st.integers(0, 10**9),
    )
)
def test_exactly_the_models_that_answer_every_question_are_found(query):
    found = query.among(MODELS)
    for spec in MODELS:
        wanted = [
            query.dataset is None or spec.dataset == query.dataset,
            query.threat_model is None or spec.threat.name == query.threat_model,
            (query.architecture or "").lower() in spec.paper.architecture.lower(),
            (query.license or "").lower() in spec.paper.license.lower(),
            query.min_params is None or spec.n_params >= query.min_params,
            query.max_params is None or spec.n_params <= query.max_params,
        ]
        assert (spec in found) == all(wanted)
    assert found == [spec for spec in MODELS if spec in found]


def test_known_counts():
    assert len(Query().among(MODELS)) == 207
    assert len(Query(threat_model="corruptions").among(MODELS)) == 41
    assert {spec.name for spec in Query(license="CC-BY-NC").among(MODELS)} == {"Ding2020MMA"}
    assert [spec.name for spec in Query(max_params=20_000).among(MODELS)] == ["Digits2026ResNet-Linf"]


def test_a_model_of_unknown_size_is_in_no_range_of_sizes():
    from dataclasses import replace

    unknown = [replace(MODELS[0], n_params=None)]
    assert Query().among(unknown) == unknown
    assert Query(min_params=0).among(unknown) == Query(max_params=10**12).among(unknown) == []


def test_a_dataset_without_models_is_a_slip():
    with pytest.raises(UnknownName, match="did you mean cifar10"):
        Query(dataset="cifar11").among(MODELS)
