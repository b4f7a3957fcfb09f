"""Trustworthy evaluation of robust image classifiers: RobustBench models, HPM, AutoAttack and MSA.

Everything here imports torch only when it is called; ``load_model`` takes its arguments as RobustBench's does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hpm_robustbench.errors import HpmBenchError
    from hpm_robustbench.hpm.classifier import HPMClassifier as Defence
    from hpm_robustbench.hub.classifier import HPMClassifier
    from hpm_robustbench.pipeline import Outcome

__all__ = ["HPMClassifier", "HpmBenchError", "benchmark", "list_models", "load_model", "wrap"]


def __getattr__(name: str) -> Any:
    if name == "HPMClassifier":
        from hpm_robustbench.hub.classifier import HPMClassifier

        return HPMClassifier
    if name == "HpmBenchError":
        from hpm_robustbench.errors import HpmBenchError

        return HpmBenchError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def list_models(dataset: str | None = None, threat_model: str | None = None) -> list[str]:
    """Names of the models that can be loaded and run, sorted.

    Raises:
        UnknownName: no such threat model, or no model at all is of that dataset.
    """
    from hpm_robustbench.threat import parse_threat_name
    from hpm_robustbench.zoo.catalog import catalog
    from hpm_robustbench.zoo.query import Query

    dataset, threat_model = _word("dataset", dataset), _word("threat_model", threat_model)
    threat = None if threat_model is None else parse_threat_name(threat_model)
    return sorted({spec.name for spec in Query(dataset, threat).among(catalog().specs())})


def load_model(
    model_name: str,
    model_dir: str | Path = "models",
    dataset: str | None = None,
    threat_model: str | None = None,
    *,
    weights: str | None = None,
) -> nn.Module:
    """A base model with its verified weights, in eval mode on the CPU: images [N, C, H, W] in [0, 1] to logits.

    Args:
        model_name: as ``list_models`` gives it.
        model_dir: where checkpoints lie; RobustBench's own folder will do.
        dataset: which dataset, if several have a model of that name; as text, or as RobustBench's enum has it.
        threat_model: ``Linf`` or ``L2``, likewise.
        weights: other weights for that network: ``hf:owner/name@revision[:file]``, or a path.

    Raises:
        UnknownName: no such model.
        DownloadFailed: its checkpoint cannot be fetched; says where a local file may be put.
        IntegrityError: the checkpoint is truncated, foreign or unsafe.
    """
    from hpm_robustbench.request.models import find_spec
    from hpm_robustbench.weights import load_weights

    dataset, threat_model = _word("dataset", dataset), _word("threat_model", threat_model)
    return load_weights(find_spec(model_name, dataset, threat_model, weights), Path(model_dir)).model


def wrap(model: nn.Module, images: Tensor, labels: Tensor, *, head: str | None = None, **knobs: Any) -> Defence:
    """Put the HPM reclassifier on a trained model.

    Args:
        model: images to logits; a copy of it is taken apart, and the model stays as it is.
        images: training images [N, C, H, W] in [0, 1]; the dataset prototypes come from them.
        labels: their classes [N].
        head: name of the last linear layer, if it cannot be found.
        **knobs: of the definition of HPM, see ``hpm.config.HPMConfig``.

    Returns:
        A frozen classifier that answers each image alone; see its ``with_batching``.

    Raises:
        InvalidInput: images, labels or the model's output break their contract, or the model cannot be copied.
        UsageProblem: a knob that is not there.
        HeadNotFound: the model's last linear layer cannot be found.
    """
    from hpm_robustbench.data import ExampleSet
    from hpm_robustbench.hpm.config import HPMConfig
    from hpm_robustbench.load import wrap as wrap_examples
    from hpm_robustbench.zoo.spec import HeadRule

    _check_names("knobs of HPM", knobs, HPMConfig)
    _check_tensors({"images": images, "labels": labels})
    own = _copied(model)
    training = ExampleSet(_describe("images", own, images), "train", images, labels)
    return wrap_examples(own, training, HPMConfig(**knobs), head=HeadRule(head)).classifier


def benchmark(
    model: nn.Module,
    test: tuple[Tensor, Tensor],
    train: tuple[Tensor, Tensor] | None = None,
    *,
    name: str,
    dataset: str = "images",
    threat_model: str = "Linf",
    eps: str | float | None = None,
    head: str | None = None,
    **options: Any,
) -> Outcome:
    """Wrap a model of your own, attack it and its base with AutoAttack and MSA, judge, and write its card.

    Under corruptions nobody attacks: both meet the corrupted test images in ``corruptions_data_dir``.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K]; a copy of it goes to trial, and the model stays as it is.
        test: images and labels to evaluate.
        train: images and labels for the dataset prototypes; without them, unevaluated test images serve.
        name: the model's name on its card.
        dataset: the dataset's name on the card.
        threat_model: ``Linf``, ``L2`` or ``corruptions``.
        eps: the budget, as ``"8/255"`` or ``8 / 255``; corruptions have none.
        head: name of the last linear layer, if it cannot be found.
        **options: see ``run_options.RunOptions``.

    Raises:
        InvalidInput: images or labels are no tensors, or the model cannot be copied.
        UsageProblem: an option that is not there, or cannot have that value.
        HpmBenchError: see ``errors``; the same call continues an interrupted one.
    """
    from hpm_robustbench.data import DataSource
    from hpm_robustbench.pipeline import evaluate
    from hpm_robustbench.request.models import eps_text
    from hpm_robustbench.run_options import RunOptions
    from hpm_robustbench.threat import parse_threat
    from hpm_robustbench.zoo.spec import HeadRule, ModelSpec, WeightsRef

    _check_names("options", options, RunOptions)
    name, dataset = _needed("name", name), _needed("dataset", dataset)
    threat_model = _needed("threat_model", threat_model)
    chosen, threat = RunOptions(**options), parse_threat(threat_model, eps_text(eps))
    _check_tensors({"test images": test[0], "test labels": test[1]})
    if train is not None:
        _check_tensors({"train images": train[0], "train labels": train[1]})
    own = _copied(model)
    described = _describe(dataset, own, test[0])
    source = DataSource(described, lambda n: (test[0][:n], test[1][:n]), train and (lambda n: train))
    origin = f"python:{type(model).__module__}.{type(model).__qualname__}"
    spec = ModelSpec(name, dataset, threat, origin, WeightsRef("memory", ()), HeadRule(head))
    return evaluate(spec, chosen, model=own, source=source)


def _word(option: str, given: object) -> str | None:
    """An option as text: its own word, or that of a member of one of RobustBench's enums."""
    from hpm_robustbench.errors import UsageProblem

    word = getattr(given, "value", given)
    if word is None or isinstance(word, str):
        return word
    raise UsageProblem(
        wanted=f"{option} as text", got=f"{given!r:.80}, a {type(given).__name__}", next_step="give a str"
    )


def _needed(option: str, given: object) -> str:
    """The same, of an option that cannot be left out."""
    from hpm_robustbench.errors import UsageProblem

    word = _word(option, given)
    if word is None:
        raise UsageProblem(wanted=f"{option} as text", got="None", next_step="give a str")
    return word


def _check_names(kind: str, given: Mapping[str, object], of: type) -> None:
    """Refuse keyword arguments that are no field of a dataclass, and show those that are."""
    from dataclasses import fields

    from hpm_robustbench.errors import UsageProblem

    known = [field.name for field in fields(of)]
    if unknown := [name for name in given if name not in known]:
        raise UsageProblem(
            wanted=f"{kind} among {', '.join(known)}", got=", ".join(unknown), next_step="correct it, or leave it out"
        )


def _check_tensors(arrays: Mapping[str, object]) -> None:
    """Refuse what looks like a tensor and is none, by the name that a person knows it by."""
    from torch import Tensor

    from hpm_robustbench.errors import InvalidInput

    for name, array in arrays.items():
        if not isinstance(array, Tensor):
            raise InvalidInput(
                wanted=f"{name} as a torch tensor",
                got=f"{type(array).__module__}.{type(array).__qualname__}",
                next_step="torch.from_numpy(...) makes one of a numpy array; images are float32, labels int64",
            )


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the caller's model, since wrapping puts the head of what it is given elsewhere."""
    from copy import deepcopy

    from hpm_robustbench.errors import InvalidInput, first_line

    try:
        return deepcopy(model)
    except Exception as error:  # someone else's code
        raise InvalidInput(
            wanted="a model that copy.deepcopy can copy, so that yours stays as it is",
            got=f"{type(error).__name__}: {first_line(error)}",
            next_step="let it keep no locks, open files or results of a call; if it was called with gradients, call it "
            "once under torch.no_grad(), or load it anew",
        ) from error


def _describe(name: str, model: nn.Module, images: Tensor) -> Any:
    """The dataset that a model's output and some images amount to."""
    import torch

    from hpm_robustbench.errors import InvalidInput
    from hpm_robustbench.threat import Dataset

    try:
        with torch.no_grad():
            n_classes = model.eval()(images[:1]).shape[-1]
        channels, height, width = images.shape[1:]
    except Exception as error:  # someone else's code
        raise InvalidInput(
            wanted="a model that answers a tensor of images [N, C, H, W] with logits [N, K]",
            got=f"{type(error).__name__}: {error}",
            next_step="check that both are on the same device and fit each other",
        ) from error
    return Dataset(name, n_classes, (channels, height, width))
