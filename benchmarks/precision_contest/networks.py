"""Networks whose answers mean something, and images that they have not seen.

digits        trained on two thirds of scikit-learn's scans, tried on the others
digits-harsh  the same after every channel's normalisations were scaled by 2^-3 to 2^3, and four
              epochs more
digits-qat    that one after ``train --qat int8``
photographs   ParNet-S: statistics of its normalisations measured on crops of real photographs, its
              classifier fitted to tell regions of them apart, tried on other crops
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from parnet_deploy.data import open_data
from parnet_deploy.images import preprocess
from parnet_deploy.net import ParNet, TrainingFacts, initialise, load_checkpoint, save_checkpoint
from parnet_deploy.net import calibrate as measure_statistics
from parnet_deploy.net.blocks import RepBlock
from parnet_deploy.spec import Array, Preprocessing, variant

OCTAVES = 3.0
CROP = (140, 200)
ROWS, COLUMNS = 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network to export.

    Attributes:
        name: what it is called.
        checkpoint: its weights, in training form.
        calibrate: what ``export --calibrate`` takes.
        images: how many of those at most.
        test: (N, 3, H, W) uint8 images that it has not seen.
        labels: (N,) their classes.
        learned: whether its checkpoint has ranges of its own.
    """

    name: str
    checkpoint: Path
    calibrate: str
    images: int
    test: Array
    labels: Array
    learned: bool = False


Make = Callable[[Path], Network]


def digits(folder: Path) -> Network:
    """Trained from scratch by the quick recipe."""
    run = folder / "digits"
    if not (run / "checkpoint.safetensors").is_file():
        call("train", "--data", "digits", "--recipe", "quick", "--seed", 0, "--output", run)
    return _of_digits("digits", run)


def harsh(folder: Path) -> Network:
    """Made to quantise badly: channels of one kernel differ by as much as 64 times."""
    run = folder / "digits-harsh"
    if not (run / "checkpoint.safetensors").is_file():
        found = load_checkpoint(digits(folder).checkpoint)
        scale_channels(found.model)
        start = folder / "scaled.safetensors"
        save_checkpoint(found.model, start, found.facts)
        call(
            *("train", "--data", "digits", "--recipe", "quick", "--finetune", start),
            *("--epochs", 4, "--learning-rate", 3e-3, "--seed", 0, "--output", run),
        )
    return _of_digits("digits-harsh", run)


def trained_for_int8(folder: Path) -> Network:
    """The same, fine-tuned with fake quantisers."""
    run = folder / "digits-qat"
    if not (run / "checkpoint.safetensors").is_file():
        start = harsh(folder).checkpoint
        call(
            *("train", "--data", "digits", "--qat", "int8", "--checkpoint", start),
            *("--seed", 0, "--output", run),
        )
    return replace(_of_digits("digits-qat", run), learned=True)


def photographs(folder: Path) -> Network:
    """ParNet-S on crops of photographs."""
    photos = open_photographs()
    names = [f"{name} {place}" for name in photos for place in range(ROWS * COLUMNS)]
    spec = replace(variant("s").spec, classes=len(names))
    preprocessing = Preprocessing(size=spec.image_size, crop_ratio=1.0)
    checkpoint, npz = folder / "photographs.safetensors", folder / "photographs.npz"
    if not checkpoint.is_file():
        model = fitted(initialise(spec, seed=0), photos, preprocessing)
        facts = TrainingFacts(labels=tuple(names), preprocessing=preprocessing)
        save_checkpoint(model, checkpoint, facts)
    images, labels = crops(photos, 2 * len(names), seed=2)
    np.savez(npz, images=images, labels=labels)
    test, truth = crops(photos, 2 * len(names), seed=3)
    return Network(
        name="photographs",
        checkpoint=checkpoint,
        calibrate=str(npz),
        images=len(images),
        test=test,
        labels=truth,
    )


NETWORKS: Mapping[str, Make] = {
    "digits": digits,
    "digits-harsh": harsh,
    "digits-qat": trained_for_int8,
    "photographs": photographs,
}


def scale_channels(model: ParNet) -> None:
    """Scale what every block's channels give by powers of two, at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.blocks.values():
            if not isinstance(block, RepBlock):
                continue
            size = len(block.dense.bn.weight)
            factors = torch.exp2((torch.rand(size, generator=generator) * 2 - 1) * OCTAVES)
            for norm in (block.dense.bn, block.pointwise.bn, block.identity):
                if norm is not None:
                    norm.weight *= factors
                    norm.bias *= factors


def open_photographs() -> dict[str, Array]:
    """Colour photographs that come with scikit-learn and scikit-image, (H, W, 3) uint8 each."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    photos = dict(zip((Path(name).stem for name in found.filenames), found.images, strict=True))
    try:
        from skimage import data
    except ImportError:
        sys.exit("scikit-image is needed for its photographs: pip install scikit-image")
    names = ("astronaut", "chelsea", "coffee", "rocket")
    return photos | {name: getattr(data, name)() for name in names}


def crops(photos: Mapping[str, Array], count: int, *, seed: int) -> tuple[Array, Array]:
    """Crops of regions, mirrored or not, (N, 3, 224, 224) uint8, and which region each is of."""
    rng = np.random.default_rng(seed)
    regions = list(photos.values())
    labels = np.arange(count) % (len(regions) * ROWS * COLUMNS)
    images = np.stack([_crop(regions, int(label), rng) for label in labels])
    return images, labels.astype(np.int64)


def _crop(photos: list[Array], label: int, rng: np.random.Generator) -> Array:
    photo, place = divmod(label, ROWS * COLUMNS)
    height, width, _ = photos[photo].shape
    row, column = divmod(place, COLUMNS)
    tall, wide = height // ROWS, width // COLUMNS
    side = min(int(rng.integers(*CROP)), tall, wide)
    top = row * tall + int(rng.integers(0, tall - side + 1))
    left = column * wide + int(rng.integers(0, wide - side + 1))
    image = Image.fromarray(photos[photo][top : top + side, left : left + side])
    image = image.resize((224, 224), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


def fitted(model: ParNet, photos: Mapping[str, Array], preprocessing: Preprocessing) -> ParNet:
    """A network with statistics of real images, and a classifier fitted by ridge regression."""
    first, _ = crops(photos, 24, seed=0)
    measure_statistics(model, normalised(first, preprocessing))
    images, labels = crops(photos, 8 * model.spec.classes, seed=1)
    features = torch.cat(list(_features(model, normalised(images, preprocessing)))).double()
    mean = features.mean(0)
    centred = features - mean
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), model.spec.classes).double()
    gram = centred @ centred.T
    ridge = 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = centred.T @ torch.linalg.solve(gram + ridge, 9 * wanted - 1)
    linear = model.blocks["head"].linear
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(-(mean @ weight))
    return model.eval()


def normalised(images: Array, preprocessing: Preprocessing) -> torch.Tensor:
    """What a network reads of pixels, float32."""
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (preprocessing.mean, preprocessing.std)
    )
    return (torch.from_numpy(images).float() / 255 - mean) / std


def _features(model: ParNet, images: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the classifier reads, a few images at a time."""
    seen: list[torch.Tensor] = []
    hook = model.blocks["head"].linear.register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    with torch.inference_mode():
        for part in images.split(8):
            model(part)
            yield seen.pop().clone()
    hook.remove()


def _of_digits(name: str, run: Path) -> Network:
    preprocessing = load_checkpoint(run / "checkpoint.safetensors").facts.preprocessing
    if preprocessing is None:
        raise ValueError("a training says how images are prepared")
    test = open_data("digits").test
    as_pixels = replace(preprocessing, in_graph=True)
    images = [preprocess(test.image(place), as_pixels) for place in range(len(test))]
    return Network(
        name=name,
        checkpoint=run / "checkpoint.safetensors",
        calibrate="digits",
        images=256,
        test=np.concatenate(images),
        labels=np.array([test.label(place) for place in range(len(test))]),
    )


def call(*arguments: object) -> None:
    """Run parnet-deploy; what it prints is shown only where it fails."""
    command = [sys.executable, "-m", "parnet_deploy", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
