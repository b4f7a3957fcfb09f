"""On whole batches the conjunction breaks rows that the defence's own gradient does not show."""

import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import class_means
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching, ThreatModel


def test_breaks_what_the_straight_through_gradient_leaves(digits, digits_net):
    backbone, head = digits_net.net[:-1], digits_net.net[-1]
    with torch.no_grad():
        prototypes = class_means(backbone(digits[0][:1500]), digits[1][:1500], 10)
    classifier = HPMClassifier(Split(backbone, head), prototypes, HPMConfig(), tau=1.0).freeze()
    subject = Subject(classifier.with_batching(Batching.JOINT), digits_net)
    x, y = digits[0][1500:1532], digits[1][1500:1532]
    threat = ThreatModel.parse("L2", "0.8")
    active = subject.target_logits(x).argmax(1) == y

    def standing(*steps):
        left = active.clone()
        for step in steps:
            for x_adv in run_attack(step, make_view("hpm", subject), x, y, left, threat, 0, 32):
                left &= subject.target_logits(x_adv).argmax(1) == y
        return int(left.sum())

    ranks = [Step("hpm", "joint-conjunction", "msa", {"steps": 40, "target_rank": rank}) for rank in (2, 3)]
    plain = [Step("hpm", "joint", "msa", {"steps": 40, "loss": loss}) for loss in ("ce", "dlr")]
    assert standing(*plain, *ranks) < standing(*plain)
