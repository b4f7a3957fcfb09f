"""Checkpoints: where they lie, how they get there, what is believed of them, and how they become tensors.

Below the folder of checkpoints (``--model_dir``, by default ``models``):

    cifar10/Linf/Carmon2019Unlabeled.pt             RobustBench's own folder, or a file put there by hand: used as it is
    cifar10/Linf/Carmon2019Unlabeled.safetensors    a state dict put there by hand; goes before the former
    fetched/<locator>-<hash of it>.pt               what was downloaded, once for all models that share it
    fetched/<locator>-<hash of it>.pt.partial       a transfer that broke off and will be continued
    fetched/<the same>.mark                         what the server called that file, for when it is continued
    converted/<sha256 of a file>.safetensors        the tensors of that file; only these are ever loaded
    converted/<sha256 of a file>.json               what was done to them, and their own sha256

``web`` and ``hub`` bring bytes, ``fetch`` gives them a name when they are what was wanted, ``trust`` says what that is,
``conversion`` has a pickle read by a process of its own, and ``load`` puts the tensors into a network.

Files of several members lie as RobustBench names them: ``<name>.pt_m0.pt`` and so on. What torchvision, timm or the
Hub's client have fetched is used where they keep it. A ``.lock`` beside a file lets one process at a time make it.
Removing ``converted`` or ``fetched`` costs time and nothing else.
"""

from __future__ import annotations

from hpm_robustbench.weights.load import Loaded, load_weights
from hpm_robustbench.weights.locate import Original, check_local, locate
from hpm_robustbench.weights.trust import STRICT, Trust

__all__ = ["STRICT", "Loaded", "Original", "Trust", "check_local", "load_weights", "locate"]
