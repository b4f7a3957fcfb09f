"""From a finished trial to a publication: find the card, load what it tells of, and put it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hpm_robustbench.architectures import build
from hpm_robustbench.case import prepare
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.description import CONFIG
from hpm_robustbench.hub.publication import Publication, Wish, compose
from hpm_robustbench.hub.remote import Destination, Sent, send
from hpm_robustbench.hub.restore import Means
from hpm_robustbench.hub.samples import publish_samples
from hpm_robustbench.ledger.atomic import make_folder, write_all
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.model_card import place, read_card
from hpm_robustbench.request.again import as_tried
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.licences import check_licences
from hpm_robustbench.zoo.spec import ModelSpec


def plan(spec: ModelSpec, options: RunOptions, wish: Wish) -> Publication:
    """All that would be sent of a model that was tried.

    Args:
        spec: which model.
        options: where its card, its images and its checkpoint lie; how it was tried is taken from the card.
        wish: what is to become of it.

    Raises:
        UsageProblem: it has no card, its licence does not let anybody publish it, or it was fine-tuned and that is
            not here any more.
        InvalidInput: the card tells of another model than the one that is here.
        HpmBenchError: see ``case.prepare``, ``publication.compose`` and ``publish_samples``.
    """
    card = _card(spec if options.tuning is None else spec.tuned(options.tuning.name), options)
    assert card.hpm_bench is not None
    check_licences([replace(spec, paper=replace(spec.paper, license=card.hpm_bench.license))], wish.licences)
    tried = replace(as_tried(card.hpm_bench, options), batchings=(wish.batching,))
    case = prepare(spec, tried, train=False)
    known = any(other.factory == spec.factory for other in catalog().specs())
    network = None if known else build(spec)
    means = Means(options.model_dir, network, device=options.device, trust=options.trust)
    if options.tuning is not None and "backbone" in options.tuning.learned:
        wish = replace(wish, include_backbone=True)
    if wish.samples is None:
        return compose(case, card, wish, means)
    samples, card = publish_samples(card, case.test.labels.tolist(), options.output / "runs", wish.samples)
    return replace(compose(case, card, wish, means), samples=samples)


def send_publication(publication: Publication, destination: Destination, message: str) -> Sent:
    """Send a publication: first its dataset, so that nobody ever sees a model whose samples are missing.

    Raises:
        HpmBenchError: see ``remote.send``.
    """
    samples = publication.samples
    if samples is not None:
        goal = Destination(samples.repo, private=destination.private, kind="dataset", tag=samples.tag)
        send(samples.files, goal, message)
    return send(publication.files, destination, message)


def write_publication(publication: Publication, folder: Path) -> Path:
    """Write a publication to ``folder/OWNER/NAME`` instead, its dataset to ``folder/datasets/OWNER/NAME``.

    A classifier's folder is what ``HPMClassifier.from_pretrained`` takes, and what can be uploaded as it is.

    Raises:
        UsageProblem: other files lie there; nothing is written.
        StorageProblem: the folder cannot be written.
    """
    samples = publication.samples
    parts = {} if samples is None else {folder / "datasets" / samples.repo: samples.files}
    parts[folder / publication.repo] = publication.files
    for path, files in parts.items():
        _check_nothing_else(path, files)
    for path, files in parts.items():
        make_folder(path, "--folder")
        write_all(path, files, last=CONFIG)
    return folder / publication.repo


def _check_nothing_else(place: Path, files: Mapping[str, bytes]) -> None:
    """See that nothing lies in a folder but these files, and what a write of one that was killed has left."""
    found = {path.relative_to(place) for path in place.rglob("*") if not path.is_dir()}
    ours = [Path(name) for name in files]
    others = [path for path in found if not any(_is_of(path, name) for name in ours)]
    if others:
        named = ", ".join(path.as_posix() for path in sorted(others)[:5])
        raise UsageProblem(
            wanted=f"{place} new, empty, or with nothing but {', '.join(sorted(files))}",
            got=f"{named}{', ...' if len(others) > 5 else ''} there",
            next_step="name another --folder, or take them away",
        )


def _is_of(path: Path, name: Path) -> bool:
    return path == name or (path.parent == name.parent and path.name.startswith(f".{name.name}."))


def _card(spec: ModelSpec, options: RunOptions) -> ModelCard:
    path = place(options.output / "model_cards", spec.dataset, spec.threat.name, spec.name)
    card = read_card(path) if path.exists() else None
    if card is None or card.hpm_bench is None:
        recipe = [] if options.tuning is None else options.tuning.options
        command = " ".join(["hpm-bench run --model", spec.untuned_name, *recipe])
        raise UsageProblem(
            wanted=f"the card of {spec.name} at {path}: only a model that was tried is published",
            got="none",
            next_step=f"try it first: {command}; or name its folder with --output",
        )
    return card
