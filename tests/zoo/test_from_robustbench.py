"""The committed index against the RobustBench, timm and torchvision that are installed."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from hpm_robustbench.data.preprocessing import Preprocessing
from hpm_robustbench.robustbench_compat import import_robustbench, import_torchvision
from hpm_robustbench.threat import Corruptions
from hpm_robustbench.zoo.from_robustbench import read_index, robustbench_specs

INDEX = {(entry["dataset"], entry["threat"], entry["name"]): entry for entry in read_index()}


@pytest.fixture(scope="module")
def installed():
    import_robustbench()
    from robustbench.model_zoo import model_dicts

    return {
        (dataset.value, threat.value, name): entry
        for dataset, threats in model_dicts.items()
        for threat, models in threats.items()
        for name, entry in models.items()
    }


def test_same_entries_as_the_installed_robustbench(installed):
    assert len(INDEX) == 206
    assert set(INDEX) == set(installed)


def test_every_model_of_several_networks_says_what_an_attack_may_differentiate():
    told = {spec.name: spec.head for spec in robustbench_specs() if spec.head.members}
    assert len(told) == 6
    for head in told.values():
        mean, mixture = "mean of (three|six) networks' probabilities", "mixture's log-probabilities.*gradient"
        assert re.search(mean if head.output == "probabilities" else mixture, head.note), head.note
    assert all("each image is answered alone" in s.head.note for s in robustbench_specs() if s.head.one_by_one)


def test_same_google_drive_ids(installed):
    theirs = {key: entry["gdrive_id"] for key, entry in installed.items()}
    ours = {key: entry.get("gdrive") for key, entry in INDEX.items()}
    assert ours == {key: [ids] if ids and isinstance(ids, str) else ids or None for key, ids in theirs.items()}


def test_the_preprocessing_that_robustbench_would_choose(installed):
    """For ImageNet alone: timm's where timm knows the network, although another may be stated, else what is stated."""
    import timm
    from robustbench.data import get_timm_model_preprocessing
    from torchvision.transforms import InterpolationMode

    stated = {key: entry["preprocessing"] for key, entry in installed.items() if "preprocessing" in entry}
    ours = {"/".join(key): entry.get("preprocessing") for key, entry in INDEX.items()}
    for key, chosen in ours.items():
        dataset, threat, name = key.split("/")
        registered = f"{name}_{dataset}_{threat}".lower().replace("-", "_")
        if dataset != "imagenet":
            assert chosen is None
        elif not timm.is_model(registered):
            assert chosen == stated[tuple(key.split("/"))]
        elif "XCiT" not in name or name.endswith("S12"):  # it builds the network to look at this
            resize, crop, _ = get_timm_model_preprocessing(registered).transforms
            wanted = Preprocessing.parse(chosen)
            assert (resize.size, crop.size) == (wanted.resize, (wanted.crop, wanted.crop))
            assert (resize.interpolation == InterpolationMode.BICUBIC) == wanted.bicubic


def test_upstream_addresses_are_those_of_timm_and_torchvision(installed):
    import_torchvision()
    import timm
    from torchvision.models import ResNet50_Weights

    for (dataset, threat, name), entry in INDEX.items():
        if "upstream" not in entry:
            continue
        registered = f"{name}_{dataset}_{threat}".lower().replace("-", "_")
        if timm.is_model(registered):
            assert entry["upstream"] == timm.get_pretrained_cfg(registered).url
        else:
            assert name == "Standard_R50"
            assert entry["upstream"] == ResNet50_Weights.IMAGENET1K_V1.url


def test_one_sorted_line_for_each_entry():
    lines = files("hpm_robustbench.zoo").joinpath("robustbench.json").read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    entries = [json.loads(line.removesuffix(",")) for line in lines[1:-1]]
    assert entries == read_index()
    assert [(e["dataset"], e["threat"], e["name"]) for e in entries] == sorted(INDEX)


def test_every_entry_becomes_a_spec():
    specs = robustbench_specs()
    assert Counter(spec.threat.name for spec in specs) == {"Linf": 144, "L2": 21, "corruptions": 41}
    assert {(s.dataset, s.threat.name, s.name) for s in specs} == set(INDEX)
    assert all((spec.threat.budget is None) == (spec.threat.name == "corruptions") for spec in specs)
    assert all(spec.paper.title and spec.paper.link and spec.paper.license != "unknown" for spec in specs)


def test_a_corruption_entry_has_no_norm_and_no_budget():
    [augmix] = [s for s in robustbench_specs() if (s.dataset, s.name) == ("cifar10", "Hendrycks2020AugMix_WRN")]
    assert augmix.threat == Corruptions()
    assert str(augmix.threat) == "corruptions"
    assert augmix.factory == "robustbench:cifar10/corruptions/Hendrycks2020AugMix_WRN"
    assert augmix.weights.cache == "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"


def test_the_facts_of_a_well_known_entry():
    [carmon] = [spec for spec in robustbench_specs() if spec.name == "Carmon2019Unlabeled"]
    assert str(carmon.threat) == "Linf 8/255"
    assert carmon.factory == "robustbench:cifar10/Linf/Carmon2019Unlabeled"
    assert str(carmon.weights) == "gdrive:15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"
    assert carmon.weights.cache == "cifar10/Linf/Carmon2019Unlabeled.pt"
    assert carmon.head.path == "fc"
    assert (carmon.paper.clean_acc, carmon.paper.autoattack_acc) == ("89.69", "59.53")
    assert (carmon.paper.venue, carmon.paper.additional_data) == ("NeurIPS 2019", True)
