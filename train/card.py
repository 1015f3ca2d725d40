"""The model card of a finished model: what it is, on what it was trained, what it can do, and how to load it."""

from typing import Any

from train.pretrained import CURVES_FILE, GRID_FILE

_HEADER = """---
library_name: leanstream
pipeline_tag: unconditional-image-generation
tags:
- vae
- faces
- pytorch
- safetensors
---
"""
_FIGURES = {
    "psnr_db": ("PSNR of the reconstruction from the posterior mean", "{:.2f} dB"),
    "ssim": ("structural similarity of the same", "{:.3f}"),
    "mse": ("mean squared error of the same, intensities in [0, 1]", "{:.5f}"),
    "sharpness": ("sharpness of the same, 1 is that of the images", "{:.2f}"),
    "rate_nats": ("rate: KL divergence from the prior", "{:.1f} nats an image"),
    "distortion_nats": ("distortion: negative log-density of the image", "{:.0f} nats an image"),
    "bits_per_dimension": ("rate and distortion together", "{:.3f} bits a dimension"),
    "active_units": ("latent dimensions in use", "{:,}"),
    "images": ("images scored", "{:,}"),
}
"""Figures that have a caption; any other is shown by its name."""


def model_card(name: str, facts: dict[str, Any], training: dict[str, Any], pictures: set[str]) -> str:
    """README.md of a model folder.

    `facts` and `training` are the contents of config.json (with its architecture) and training.json; `pictures` names
    the picture files that lie beside the card.
    """
    architecture, data = facts["architecture"], training["data"]
    sections = [
        _HEADER,
        f"# {name}\n",
        f"A variational autoencoder of faces, {architecture['image_size']} x {architecture['image_size']} pixels, "
        f"with {training['parameters']:,} parameters and {architecture['latent']} latent dimensions.\n",
        _usage(),
        "## Figures\n",
        _figures(facts["scores"]),
        "## Pictures\n" if pictures else "",
        f"![Originals over reconstructions, and new faces]({GRID_FILE})\n" if GRID_FILE in pictures else "",
        f"![The course of the training]({CURVES_FILE})\n" if CURVES_FILE in pictures else "",
        "## Data\n",
        _data(data),
        "## Training\n",
        _training(facts, training),
        "## Limits\n",
        "The model knows faces like those of its data and no others, and shares their biases. Faces are personal data: "
        "do not use it to identify or to imitate a person.\n",
    ]
    return "\n".join(section for section in sections if section)


def _usage() -> str:
    return (
        "```python\n"
        "from train import FaceVAE\n\n"
        'model = FaceVAE.from_pretrained("this folder, or its Hugging Face repository")\n'
        "faces = model.sample(16)  # uint8 [16, 3, H, W]\n"
        "mean, logvar = model.encode(images)  # images: float [B, 3, H, W] in [0, 1]\n"
        "again = model.decode(mean)\n"
        "```\n"
    )


def _table(rows: list[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    lines = [head, ("---", "---"), *rows]
    return "".join(f"| {left} | {right} |\n" for left, right in lines)


def _figures(scores: dict[str, dict[str, float]]) -> str:
    if not scores:
        return "The data had no held-out images: nothing was measured.\n"
    text = "Averaged weights, means over the images of the split.\n\n"
    for split, values in scores.items():
        rows = []
        for key, value in values.items():
            caption, form = _FIGURES.get(key, (key.replace("_", " "), "{:.4g}"))
            rows.append((caption, form.format(value) if value is not None else "none"))
        text += _table(rows, (f"`{split}` split", ""))
    return text


def _data(data: dict[str, Any]) -> str:
    splits = ", ".join(f"{count:,} in `{split}`" for split, count in data["samples"].items())
    rows = [
        ("shard set", f"`{data['name']}`"),
        ("images", splits),
        ("size, encoding", f"{data['image_size']} px, {data['encoding']}"),
        ("fingerprint", f"`{data['fingerprint']}`"),
    ]
    if data["attributes"]:
        rows.insert(2, ("attributes", f"{data['attributes']}, not used"))
    return _table(rows)


def _model(architecture: dict[str, Any]) -> str:
    blocks = f", {architecture['depth']} blocks a stage" if architecture.get("depth", 1) > 1 else ""
    return f"`{architecture['kind']}`, widths {', '.join(map(str, architecture['widths']))}{blocks}"


def _training(facts: dict[str, Any], training: dict[str, Any]) -> str:
    config = training["config"]
    optim, train = config["optim"], config["train"]
    rows = [
        ("model", _model(facts["architecture"])),
        ("objective", f"`{facts['objective']}`, standard deviation of the decoder {facts['sigma']:.4f}"),
        (
            "length",
            f"{training['position']:,} images, {training['epochs']:.2f} epochs, {training['updates']:,} updates",
        ),
        ("batch", f"{train['batch_size']}"),
        ("optimizer", f"AdamW, rate {optim['learning_rate']:g} ({optim['schedule']}), betas {optim['betas']}"),
        ("weights", f"averaged, half-life {train['ema_halflife_images']:,} images"),
        ("precision, device", f"{training['precision']}, {training['device']} x {training['processes']}"),
        ("time", training["time"]),
        ("seed", f"{config['run']['seed']}"),
        ("torch", training["torch"]),
    ]
    if train.get("init_from"):
        rows.insert(1, ("first weights", f"`{train['init_from']}`"))
    return _table(rows)
