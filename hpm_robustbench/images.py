"""Which images a trial is about: found where the options say, and refused where they do not fit the model."""

from __future__ import annotations

import math

from hpm_robustbench.data import (
    CorruptedSource,
    DataSource,
    corrupted_folder,
    holds_clean,
    open_corrupted,
    open_dataset,
)
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.preprocessing import Preprocessing
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Corruptions, Dataset, Norm, ThreatModel
from hpm_robustbench.zoo.spec import ModelSpec


def open_clean(spec: ModelSpec, options: RunOptions) -> DataSource:
    """The dataset itself; on a corruption track a folder of corrupted images alone does not stand in for it."""
    data = options.data
    corrupted = isinstance(spec.threat, Corruptions) and data is not None and corrupted_folder(spec.dataset, data)
    if corrupted and data is not None and not holds_clean(spec.dataset, data):
        if spec.dataset not in KNOWN:
            raise UsageProblem(
                wanted=f"the clean images of {spec.dataset} beside the corrupted ones",
                got=f"only the corrupted ones, {data}",
                next_step="give the clean ones with --data, and the corrupted ones with --corruptions_data_dir",
            )
        data = None
    return open_dataset(spec.dataset, data=data, data_dir=options.data_dir, preprocessing=spec.preprocessing)


def check_resolution(spec: ModelSpec, dataset: Dataset) -> None:
    """Refuse images of another size than a model was made for: most networks would run on them, and be wrong."""
    if spec.preprocessing is None:
        return
    side = Preprocessing.parse(spec.preprocessing).side
    if dataset.image_shape[1:] != (side, side):
        raise UsageProblem(
            wanted=f"images of {side} x {side} for {spec.name}, whose preprocessing is {spec.preprocessing}",
            got=f"{dataset.name} of {dataset.image_shape[1]} x {dataset.image_shape[2]}",
            next_step="name a folder of original images, one folder per class, with --data",
        )


def check_budget(spec: ModelSpec, dataset: Dataset) -> None:
    """Refuse a budget within which every image can become any other: whatever it is asked, nothing stands."""
    if not isinstance(spec.threat, ThreatModel):
        return
    eps, linf = spec.threat.eps, spec.threat.norm is Norm.LINF
    most = 1.0 if linf else math.sqrt(math.prod(dataset.image_shape))
    if float(eps) >= most:
        raise UsageProblem(
            wanted=f"eps below {most:.4g} under {spec.threat.norm.value}, in units of pixels in [0, 1]",
            got=str(eps),
            next_step=f"write --eps {eps}/255, if that is meant" if linf else "lower --eps; 0.5 is usual",
        )


def open_corruptions(spec: ModelSpec, dataset: Dataset, options: RunOptions) -> CorruptedSource | None:
    """The corrupted test images, on a corruption track."""
    if not isinstance(spec.threat, Corruptions):
        return None
    places = [options.corruptions_data_dir] if options.corruptions_data_dir else [options.data, options.data_dir]
    return open_corrupted(dataset, [place for place in places if place])
