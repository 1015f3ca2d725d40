"""Portraits drawn by a program: the data set that comes with the project and belongs to nobody."""

from demo.portraits import draw_face, draw_faces
from demo.traits import ATTRIBUTES, Person, draw_person

__all__ = ["ATTRIBUTES", "Person", "draw_face", "draw_faces", "draw_person"]
