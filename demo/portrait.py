"""A portrait from back to front."""

from __future__ import annotations

from PIL import Image

from demo import hair, hats, head, wear
from demo.scene import set_scene
from demo.traits import Person, draw_person
from pipeline.errors import UserError

SMALLEST, LARGEST = 32, 2048


def draw_face(index: int, *, size: int = 600, seed: int = 0) -> tuple[Image.Image, dict[str, int]]:
    """Draw face `index`: an RGB image [size, size], and its attributes (CelebA's names, 0 or 1).

    Both are a pure function of (seed, index); the picture is the same at every size but for its detail. Attributes are
    drawn independently, apart from the hair colour, of which everyone has exactly one.

    Raises:
        UserError: the size is not between 32 and 2048.
    """
    person = draw_person(index, seed=seed)
    return paint_portrait(person, size=size), dict(person.attributes)


def paint_portrait(person: Person, *, size: int = 600) -> Image.Image:
    """Paint a person, RGB [size, size]."""
    check_size(size)
    scene = set_scene(person, size)
    combed, neckline = hair.comb(person), wear.neckline(person)
    hair.paint_back_hair(scene, combed)
    wear.paint_clothes(scene, neckline)
    head.paint_neck(scene, neckline)
    wear.paint_necklace(scene)
    head.paint_ears(scene)

    face, soft = head.shape_face(scene), scene.coarse()
    head.paint_skin(soft)
    head.paint_cheeks(soft)
    head.paint_nose(soft)
    hair.shade_forehead(soft, combed)
    scene.lay(soft, face.mask)

    head.paint_nostrils(scene)
    head.paint_freckles(scene, face)
    head.paint_eyes(scene, face)
    hair.paint_beard(scene)
    head.paint_mouth(scene)
    hair.paint_mustache(scene)
    head.paint_brows(scene)
    wear.paint_glasses(scene, face)
    hair.paint_front_hair(scene, combed)
    hats.paint_hat(scene, face)
    wear.paint_earrings(scene)
    return scene.canvas.image


def check_size(size: int) -> None:
    """Raise UserError unless a portrait can be painted at this size."""
    if not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"the size of a face must be between {SMALLEST} and {LARGEST} pixels; got {size}. "
            "Choose 600, or leave it out."
        )
