"""A ParNet as a picture: streams side by side, stages as tinted regions, cuts with their bytes.

picture  what is to be drawn
text     how wide a text is, without a font at hand
grid     where everything stands: a row per stream, a column per depth
routes   the ways between blocks
style    colours, for light and dark surroundings
svg      the picture as SVG
"""

from parnet_deploy.diagram.picture import Picture, PictureStage
from parnet_deploy.diagram.svg import draw

__all__ = ["Picture", "PictureStage", "draw"]
