"""What the Hub's pages make of a fine-tuned card, and of one of a corruption track, where nothing is attacked."""

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
from hpm_robustbench.ledger.pages import p_value
from hpm_robustbench.ledger.statistics import COUPLED
from hpm_robustbench.threat import Batching
from hpm_robustbench.training.recipe import Tuning, find_recipe

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


@pytest.fixture
def tuned(spec, make_tuned_card):
    """The page of a fine-tuned card, given the controls beside it and the strength of the attacks on HPM."""

    def page(controls, *, hpm=0.2):
        card = make_tuned_card(spec, Tuning(find_recipe("uniform-v1")), hpm=hpm, controls=controls)
        return card.hpm_bench, render_pages(card, DESCRIPTION, "me/model")["README.md"].decode()

    return page


C1 = "After the same fine-tuning"
NOT_TRIED = "C1, the FC head alone after the same fine-tuning, is not on this card: no gain can be credited to HPM."


def test_a_fine_tuned_verdict_tells_of_the_comparison_that_it_rests_on(golden_cards):
    """JOINT stands above the base model for certain, and not above C1: the golden card's page says both plainly."""
    [card] = [card for card in golden_cards if card.hpm_bench.tuning]
    bench, page = card.hpm_bench, render_pages(card, DESCRIPTION, "me/model")["README.md"].decode()
    assert [verdict.verdict for verdict in bench.verdicts] == ["helps", "undecided"]
    p_c1 = p_value(bench.fc(Batching.JOINT).p_value)
    told = [
        "HPM SOLO: it helps here.",
        f"HPM JOINT: undecided, better than the base model (p < 0.001), but not than C1 ({p_c1}); "
        "no gain is credited to HPM.",
    ]
    for verdict, words in zip(bench.verdicts, told, strict=True):
        fc = bench.fc(verdict.batching)
        said = page.partition(f"**{words}**\n")[2].partition("\n\n")[0]
        assert (
            f"{verdict.only_hpm} of 400 images stand only with it, {verdict.only_base} only without (p < 0.001" in said
        )
        assert f"{C1} {fc.robust.text} % stand with C1, the FC head alone: {fc.only_hpm} of the images" in said
        assert f"stand only with HPM, {fc.only_control} only with C1 ({p_value(fc.p_value)})." in said
    assert NOT_TRIED not in page


@pytest.mark.parametrize("controls", [{}, {"static": 0.25, "shuffled": 0.35}], ids=["none", "others"])
def test_without_c1_no_gain_is_credited_and_the_page_does_not_deny_one(controls, tuned):
    bench, page = tuned(controls)
    assert {verdict.verdict for verdict in bench.verdicts} == {"undecided"}
    credited = "but C1 is not on this card; no gain is credited to HPM.**"
    assert page.count(credited) == page.count(NOT_TRIED) == 2
    assert "does not help" not in page and C1 not in page


def test_a_loss_without_c1_is_a_loss(tuned):
    bench, page = tuned({}, hpm=0.6)
    assert {verdict.verdict for verdict in bench.verdicts} == {"hurts"}
    assert page.count("it does not help here, it hurts.") == page.count(NOT_TRIED) == 2


def test_what_was_not_fine_tuned_says_nothing_of_c1(card):
    page = render_pages(card, DESCRIPTION, "me/model")["README.md"].decode()
    assert "C1" not in page and "credited" not in page


def test_the_page_says_what_it_takes_to_try_it_again(golden_cards):
    """A network that the catalog does not have is brought by the caller; after fine-tuning its base's weights, too."""
    own = DESCRIPTION.model_copy(
        update={"base": DESCRIPTION.base.model_copy(update={"factory": "python:my.models:net"})}
    )
    for card in golden_cards:
        command = "hpm-bench run --model hf:me/model@main"
        brought = " --factory MODULE:FUNCTION --weights BASE" if card.hpm_bench.tuning else " --factory MODULE:FUNCTION"
        for description, more in ((DESCRIPTION, ""), (own, brought)):
            page = render_pages(card, description, "me/model")["README.md"].decode()
            assert f"{command}{more}    # put it on trial again\n" in page
            assert ("The function builds the untrained network" in page) is bool(more)
            assert ("`training.json` tells" in page) is bool(card.hpm_bench.tuning)


def test_what_is_answered_in_batches_says_that_images_are_coupled(card, make_card, corrupted_card):
    pages = [render_pages(each, DESCRIPTION, "me/model")["README.md"].decode() for each in (card, make_card("Alone"))]
    assert [page.count(COUPLED) for page in pages] == [1, 0]
    assert COUPLED not in render_pages(corrupted_card, DESCRIPTION, "me/model")["README.md"].decode()


def test_a_benchmark_and_a_dataset_get_the_mean_too(corrupted_card):
    [entry] = yaml.safe_load(eval_results(corrupted_card, Batching.SOLO, "me/model", Benchmark("a/b", "c")))
    solo = corrupted_card.hpm_bench.headline
    assert entry["value"] == solo.corruptions_acc and "15 common corruptions" in entry["notes"]
    samples = Samples(repo="me/samples", revision="sha256-0", file="X.parquet", sha256=SHA256, rows=solo.n)
    assert f"| {solo.clean.text} % | {solo.text} % |" in render_samples_page(corrupted_card, samples).decode()
