"""The trainer: config, models, losses, the loop, checkpoints. Start it with `accelerate launch train/run.py`.

`from train import FaceVAE` gives the class that loads a trained model; torch is imported at that moment.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.models import FaceVAE as FaceVAE

__all__ = ["FaceVAE"]


def __getattr__(name: str) -> Any:
    if name == "FaceVAE":
        from train.models import FaceVAE

        return FaceVAE
    raise AttributeError(f"module 'train' has no attribute '{name}'")
