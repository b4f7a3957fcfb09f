"""The head of a model's page on the Hub: what its search, its licence badge and its result table are made from."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from hpm_robustbench.hub.description import LIBRARY
from hpm_robustbench.ledger.card_bench import HpmBench, Samples
from hpm_robustbench.ledger.card_corruptions import CorruptionBench
from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.pages import label
from hpm_robustbench.zoo.licences import hub_licence

_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
}
_TASK = "image-classification"


def front_matter(card: ModelCard, repo: str) -> str:
    """YAML metadata with the card's numbers as ``model-index``; the Hub's own classes write it."""
    bench = card.hpm_bench
    assert bench is not None
    licence = hub_licence(bench.license)
    known = _DATASETS.get(card.dataset)
    data = ModelCardData(
        library_name=LIBRARY,
        license=licence,
        license_name=None if licence != "other" else bench.license.lower(),
        license_link="NOTICE" if licence == "other" else None,
        pipeline_tag=_TASK,
        tags=_tags(card, bench),
        datasets=[known] if known else None,
        metrics=["accuracy"],
        model_name=repo.rpartition("/")[2],
        eval_results=list(_results(card, bench)),
    )
    return str(data.to_yaml())


def samples_front_matter(card: ModelCard, samples: Samples) -> str:
    """YAML metadata of the dataset of a trial; its table is what the Hub's viewer shows."""
    bench = card.hpm_bench
    assert bench is not None
    data = DatasetCardData(
        pretty_name=f"{bench.model_id} with HPM, image by image",
        tags=_tags(card, bench),
        configs=[{"config_name": "default", "data_files": samples.file}],
    )
    return str(data.to_yaml())


def _tags(card: ModelCard, bench: HpmBench | CorruptionBench) -> list[str]:
    budget = [f"eps-{str(card.eps).replace('/', '-')}"] if card.eps else []
    return ["adversarial-robustness", "robustbench", "hpm", bench.threat_name.lower(), *budget]


def _results(card: ModelCard, bench: HpmBench | CorruptionBench) -> Iterator[EvalResult]:
    """Of the published classifier alone; the base model's numbers stand on the page."""
    for evaluation in bench.evaluations:
        if evaluation.target != "hpm":
            continue
        who = label(evaluation)
        yield _result(card, f"{who} clean accuracy", evaluation.clean.value, evaluation.n)
        if not isinstance(evaluation, Evaluation):
            yield _result(card, f"{who} accuracy under common corruptions", evaluation.corruptions_acc, evaluation.n)
            continue
        threat = {"norm": evaluation.threat.norm.value, "eps": evaluation.threat.eps, "seed": evaluation.seed}
        named: list[tuple[str, Metric | None, str]] = [
            ("AutoAttack", evaluation.autoattack, "autoattack-standard"),
            ("every attack", evaluation.robust, evaluation.protocol),
        ]
        for attack, metric, protocol in named:
            if metric is not None:
                title = f"{who} accuracy under {attack} ({threat['norm']} {threat['eps']})"
                yield _result(card, title, metric.value, evaluation.n, attack=protocol, **threat)


def _result(card: ModelCard, title: str, value: float, n: int, **conditions: object) -> EvalResult:
    return EvalResult(
        task_type=_TASK,
        task_name="Adversarially robust image classification",
        dataset_type=_DATASETS.get(card.dataset, card.dataset),
        dataset_name=card.dataset,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=title,
        metric_value=value,
        metric_args={"n": n, **conditions},
    )
