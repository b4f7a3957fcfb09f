"""What the Hub's pages make of a card of a corruption track, where nothing is attacked."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hub.description import Base, Description
from hpm_robustbench.hub.eval_results import Benchmark, eval_results
from hpm_robustbench.hub.readme import render_pages, render_samples_page
from hpm_robustbench.ledger.card_bench import Samples
from hpm_robustbench.threat import Batching

SHA256 = "0" * 64
DESCRIPTION = Description(
    schema_version="1.0",
    library_name="hpm-robustbench",
    base=Base(
        name="Hendrycks2020AugMix_WRN",
        model="Hendrycks2020AugMix_WRN",
        dataset="cifar10",
        threat_model="corruptions",
        eps=None,
        factory="robustbench:cifar10/corruptions/Hendrycks2020AugMix_WRN",
        head=None,
        weights="gdrive:1a2b3c",
        sha256=[SHA256],
    ),
    n_classes=10,
    image_shape=[3, 32, 32],
    defence=HPMConfig().to_json(),
    batching=Batching.SOLO,
    coupled=False,
    contains="head",
    size=1,
    sha256=SHA256,
    state_sha256=SHA256,
    prototypes="class means",
)


def test_the_page_and_the_plot_tell_the_means(corrupted_card):
    pages = render_pages(corrupted_card, DESCRIPTION, "me/model")
    evaluations = corrupted_card.hpm_bench.evaluations
    page = HubCard(pages["README.md"].decode())
    assert all(f"| **{evaluation.text} %** |" in page.content for evaluation in evaluations)
    assert "![" in page.content and "AutoAttack" not in page.content
    svg = ElementTree.fromstring(pages["robustness.svg"])
    fills = [
        float(bar.get("width")) for bar in svg.iter("{http://www.w3.org/2000/svg}rect") if bar.get("class") == "fill"
    ]
    assert fills[:-1] == pytest.approx([5 * evaluation.corruptions_acc for evaluation in evaluations])
    assert not list(svg.iter("{http://www.w3.org/2000/svg}line"))


def test_a_benchmark_and_a_dataset_get_the_mean_too(corrupted_card):
    [entry] = yaml.safe_load(eval_results(corrupted_card, Batching.SOLO, "me/model", Benchmark("a/b", "c")))
    solo = corrupted_card.hpm_bench.headline
    assert entry["value"] == solo.corruptions_acc and "15 common corruptions" in entry["notes"]
    samples = Samples(repo="me/samples", revision="sha256-0", file="X.parquet", sha256=SHA256, rows=solo.n)
    assert f"| {solo.clean.text} % | {solo.text} % |" in render_samples_page(corrupted_card, samples).decode()
