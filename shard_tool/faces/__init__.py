"""Portraits drawn by a program: the data set that comes with the project and belongs to nobody."""

from shard_tool.faces.folder import draw_faces
from shard_tool.faces.portrait import draw_face
from shard_tool.faces.traits import ATTRIBUTES, Person, draw_person

__all__ = ["ATTRIBUTES", "Person", "draw_face", "draw_faces", "draw_person"]
