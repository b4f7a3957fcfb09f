"""A wrapped model on the Hugging Face Hub: made, published, and loaded back with the same logits, bit for bit.

    config.json          what the model is, as data: base model, its weights' sha256, HPM's configuration, batching
    model.safetensors    prototypes, temperature, weight and FC head; the backbone too, if nobody else has it
    training.json        how it was fine-tuned, if it was
    hpm_card.json        its model card
    README.md            the same for people, and for the Hub's own pages
    robustness.svg       its numbers, drawn
    NOTICE               whose weights these are, and under which licence
    .eval_results/       a result for a benchmark's board, if one was named
    SHA256SUMS, .sig     a signature over all of these, if a key was given

What happened to each image goes, if wanted, to a dataset repository of its own, to which the card leads.

A repository holds no code, and none is named in it: a base model is looked up in the catalog, or given by the caller.
Hugging Face's ``PyTorchModelHubMixin`` is not used: it writes the arguments of a constructor, ours are a network and
tensors; it falls back to pickles, loads what fits and no more, and cannot say beforehand what it would send.
"""
