"""The recipes that have a name."""

from __future__ import annotations

from dataclasses import replace

from parnet_deploy.spec.lookup import lookup
from parnet_deploy.train.recipe import Recipe

_IMAGENET = Recipe(
    # Paper, section 4: SGD, warm-up of 5 epochs, 0.8 for a batch of 2048, a tenth of it every 30
    # epochs; cross-entropy with smoothed labels; cropping, flipping, colour jitter, RandAugment.
    name="imagenet-120",
    epochs=120,
    batch_size=2048,
    optimiser="sgd",
    learning_rate=0.8,
    schedule="step",
    warmup_epochs=5,
    decay_at=(0.25, 0.5, 0.75),
    decay_rate=0.1,
    momentum=0.9,
    nesterov=True,
    # Not in the paper: RepVGG's (https://arxiv.org/abs/2101.03697, section 4.1).
    weight_decay=1e-4,
    # The rest is what the authors' released scripts ask of timm: smoothing 0.1, two operations of
    # RandAugment at 9 with noise 0.5 (rand-m9-mstd0.5), erasing 0.2 (0.4 for L and XL), a moving
    # average. Jitter is timm's default of 0.4, which timm leaves out beside RandAugment; the paper
    # names both.
    label_smoothing=0.1,
    crop="random-resized",
    flip=0.5,
    colour_jitter=0.4,
    rand_augment=2,
    rand_augment_magnitude=9,
    rand_augment_noise=0.5,
    erasing=0.2,
    ema_decay=0.9999,
)

_CIFAR = Recipe(
    # Paper, section 4: 400 epochs, batch 128, 0.1 divided by 5 at 30, 60 and 80 %, weight decay
    # 3e-4, dropout 0.2 in the convolutions and before the classifier, mirroring and shifting (by 4
    # of 32 pixels, as in the works it names).
    name="cifar-400",
    epochs=400,
    batch_size=128,
    optimiser="sgd",
    learning_rate=0.1,
    schedule="step",
    decay_at=(0.3, 0.6, 0.8),
    decay_rate=0.2,
    momentum=0.9,
    nesterov=True,
    weight_decay=3e-4,
    dropout=0.2,
    conv_dropout=0.2,
    crop="shift",
    shift=0.125,
    flip=0.5,
)

_QUICK = Recipe(
    # For small images and small networks, on a laptop's CPU, in a minute or two.
    name="quick",
    epochs=15,
    batch_size=64,
    optimiser="adamw",
    learning_rate=6e-3,
    schedule="cosine",
    warmup_epochs=2,
    weight_decay=0.05,
    label_smoothing=0.05,
    shift=0.08,
    rotation=12.0,
    zoom=0.1,
)

_QAT = replace(
    # For a network that is trained and only has to get used to being quantised: a short cosine
    # that begins at a tenth.
    _QUICK,
    name="qat",
    epochs=5,
    learning_rate=6e-4,
    warmup_epochs=0,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _QUICK,
        _QAT,
        _CIFAR,
        _IMAGENET,
        # Table 5: "longer training": 200 epochs, cosine annealing.
        replace(_IMAGENET, name="imagenet-200", epochs=200, schedule="cosine", decay_at=()),
    )
}


def find_recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    return lookup("recipe", name, RECIPES)
