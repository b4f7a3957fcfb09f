"""Fine-tuning: one recipe for every model, and the controls without which no gain can be credited to HPM.

    recipe      what is done, as data                        no torch
    learner     a classifier that can still learn
    objective   what is minimised, and what the inner attack maximises
    parts       gradients of a whole batch, a part of its images at a time
    inner       the inner attack
    augment     shifted and mirrored images
    loop        the steps, one after another
    checkpoint  what a killed process continues from
    interruption    Ctrl-C between two steps, never inside one
    finetuned   trained once, and found again                finetuned/<model>_<recipe>-<key>/
    kept        what is written when it is finished, and read again
    published   the way back from what a push has written
    elsewhere   what another machine has finished, taken as it is
    summary     what a terminal shows of it
    status      how far each training is                 no torch

``batches`` and ``draws`` say what comes when, ``optimiser`` how far a step goes, ``measure`` how good the classifier
is by then, ``compute`` and ``memory`` what the machine allows;
``features`` are those of a fixed backbone, ``folding`` makes a network that attacks pass through faster, ``header``
reads what stands beside tensors without loading one.
"""
