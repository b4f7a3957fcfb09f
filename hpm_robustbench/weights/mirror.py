"""A folder of checkpoints as safetensors that can be uploaded to the Hugging Face Hub as it is.

    cifar10/Linf/Carmon2019Unlabeled.safetensors    the tensors; members of an ensemble as ``..._m0`` and so on
    index.json                                      what each file is, what it hashes to, and what it was made from
    README.md                                       the same for people: makers, licences, how to load a file

Only weights whose licence lets anybody publish them go in, unless a person says otherwise licence by licence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.atomic import make_folder, write_atomic
from hpm_robustbench.ledger.markdown import cell
from hpm_robustbench.weights.converted import convert_once
from hpm_robustbench.weights.load import assemble
from hpm_robustbench.weights.locate import Original, locate
from hpm_robustbench.weights.locks import locked, unwritable
from hpm_robustbench.weights.transfer import Fetcher, Partial
from hpm_robustbench.weights.trust import STRICT, Trust, measure
from hpm_robustbench.zoo.licences import hub_licence, licences_of
from hpm_robustbench.zoo.spec import ModelSpec

_INDEX = "index.json"
_ABOUT = ("title", "authors", "link", "license")
_FACTS = {"model", "dataset", "threat_model", *_ABOUT, "origin", "original", "size", "sha256"}
_README = """---
license: {licence}
tags: [adversarial-robustness, robustbench, image-classification]
---

# Weights of robust image classifiers

Checkpoints as safetensors: the tensors of their makers under the names that the bare networks give them, in another
container. `index.json` says what each file was made from, and what both hash to. Cite the makers, and keep to their
licences.

```sh
hpm-bench run --model {model} --dataset {dataset} --threat_model {threat_model} \\
              --weights hf:OWNER/NAME@COMMIT:{files}
```

| file | licence | made by | origin |
|---|---|---|---|
{rows}
"""


def mirror(
    spec: ModelSpec,
    folder: Path,
    model_dir: Path,
    trust: Trust = STRICT,
    fetcher: Fetcher | None = None,
    zoo: Sequence[ModelSpec] = (),
) -> list[Path]:
    """Add a model's weights to a folder; what is already in there stays.

    Args:
        spec: which model; its licence is the caller's to check.
        folder: new, empty, or made by this function.
        model_dir: where checkpoints lie.
        trust: what is believed of files from elsewhere.
        fetcher: see ``locate``.
        zoo: all models that may share a file with this one, whose licences are told then too.

    Returns:
        The safetensors files, one for each file of the checkpoint.

    Raises:
        UsageProblem: the folder holds something else.
        InvalidInput: its index is not as it was written.
        HpmBenchError: see ``load_weights``; only weights that fit their network go in.
    """
    _read_index(folder)
    originals = locate(spec, model_dir, fetcher, trust, exactly=True)
    assemble(spec, originals, model_dir, trust)
    make_folder(folder.resolve().parent, "--folder")
    with locked(folder.resolve()):  # beside the folder: what lies in it is published
        return _add(spec, originals, folder, model_dir, trust, zoo)


def _add(
    spec: ModelSpec,
    originals: Sequence[Original],
    folder: Path,
    model_dir: Path,
    trust: Trust,
    zoo: Sequence[ModelSpec],
) -> list[Path]:
    """Put the tensors of a checkpoint into a mirror that nobody else changes meanwhile."""
    index = _read_index(folder)
    if not index:  # a folder that is cut short from here on is known as a mirror
        write_atomic(folder / _INDEX, "{}\n")
    written = []
    for i, original in enumerate(originals):
        member = f"_m{i}" if len(originals) > 1 else ""
        name = f"{spec.dataset}/{spec.threat.name}/{spec.name}{member}.safetensors"
        _copy(_tensors_file(original, model_dir, trust), folder / name)
        index[name] = _facts(spec, original, folder / name, zoo)
        written.append(folder / name)
    write_atomic(folder / "README.md", _readme(index))
    write_atomic(folder / _INDEX, json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    return written


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.exists():
        if folder.exists() and not (folder.is_dir() and all(_is_begun_index(path) for path in folder.iterdir())):
            raise UsageProblem(
                wanted=f"a folder {folder} that is new, empty, or a mirror",
                got="something else",
                next_step="name another",
            )
        return {}
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(wanted=f"the index {path}", got=str(error), next_step="name another folder") from error
    if not isinstance(index, dict) or any(not isinstance(e, dict) or e.keys() != _FACTS for e in index.values()):
        raise InvalidInput(wanted=f"the index {path}", got="another layout", next_step="name another folder")
    return index


def _is_begun_index(path: Path) -> bool:
    """Whether a file is what ``write_atomic`` leaves if it is killed."""
    return path.name.startswith(f".{_INDEX}.")


def _tensors_file(original: Original, model_dir: Path, trust: Trust) -> Path:
    if original.path.suffix == ".safetensors":
        return original.path
    return convert_once(original.path, original.checksum, model_dir, trust)


def _copy(source: Path, destination: Path) -> None:
    make_folder(destination.parent, "--folder")
    partial = Partial(destination.with_name(f".{destination.name}.partial"))
    try:
        shutil.copyfile(source, partial.path)
        partial.finish(destination)
    except OSError as error:
        partial.discard()
        raise unwritable(destination, error) from error


def _facts(spec: ModelSpec, original: Original, path: Path, zoo: Sequence[ModelSpec]) -> dict[str, Any]:
    made = measure(path)
    return {
        "model": spec.name,
        "dataset": spec.dataset,
        "threat_model": spec.threat.name,
        **{key: getattr(spec.paper, key) for key in _ABOUT},
        "license": ", ".join(licences_of(spec, original.locator, zoo)),
        "origin": original.locator,
        "original": {"size": original.checksum.size, "sha256": original.checksum.sha256},
        "size": made.size,
        "sha256": made.sha256,
    }


def _readme(index: Mapping[str, Mapping[str, Any]]) -> str:
    licences = {entry["license"] for entry in index.values()}
    example = {key: index[min(index)][key] for key in ("model", "dataset", "threat_model")}
    return _README.format(
        licence=hub_licence(licences.pop()) if len(licences) == 1 else "other",
        **example,
        files=",".join(name for name, entry in sorted(index.items()) if example.items() <= entry.items()),
        rows="\n".join(_row(name, entry) for name, entry in sorted(index.items())),
    )


def _row(name: str, entry: Mapping[str, Any]) -> str:
    made_by = f"{cell(entry['authors'])}, *{cell(entry['title'])}* {cell(entry['link'])}"
    return f"| `{name}` | {cell(entry['license'])} | {made_by} | `{cell(entry['origin'])}` |"
