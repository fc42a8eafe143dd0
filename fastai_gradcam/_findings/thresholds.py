"""When something is a finding."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """When something is a finding. All shares and probabilities are in 0…1.

    >>> from fastai_gradcam.findings import Thresholds
    >>> Thresholds(confident=0.9).confident
    0.9
    """

    confident: float = 0.8
    """`shortcut`, `outside`, `wrong`: a prediction counts as confident from this probability."""
    mostly: float = 0.5
    """`mostly_wrong`: more than this share of the panel is wrong, however confident."""
    dense: float = 2.0
    """`shortcut`: below this density of the attention on the object relative to beside it (per area; 1 is even
    attention), the object hardly decides. The median of an honest training on the fish demo was 2.3 to 10. With tags it
    was 0.2 to 1.5 if the tag had taken over, and up to 2.7, without a finding, in pretrained networks that still used
    the fish as well. Needs the mask's area."""
    dense_images: int = 5
    """`shortcut`: at least this many confident and right images are needed, at least half of them below `dense`. One
    image alone says little: honest networks look beside the object at times."""
    on_object: float = 0.2
    """`outside`, `left_object`, `corner`, `border`: an image with less of its attention inside the mask looks outside
    the object. Meant for objects that cover a tenth to a third of the picture; used if no area is given."""
    over_chance: float = 0.75
    """The same if the mask's area is given: less than this times the area. 1 is what evenly spread attention gives."""
    likely: float = 0.5
    """`corner`, `border`: predictions of a lower probability are passed over."""
    class_images: int = 3
    """`corner`, `border`: at least this many images of a class must agree. In the other kinds, classes of fewer images
    share a row."""
    class_share: float = 0.6
    """`corner`, `border`: at least this share of the images of a class must agree."""
    corner: float = 0.3
    """`corner`: on both axes the centroid is this near to an edge of the picture (0.5 is the middle)."""
    border: float = 0.9
    """`border`: this much of the attention is in the outermost ring of cells; used if no shape is given."""
    border_excess: float = 0.6
    """Used if the map's shape is known. 0 = evenly spread, 1 = all on the border; a finding from this value."""
    fall: float = 0.3
    """`left_object`: the share inside the mask is lower by this than in two successive frames of the training in which
    the image was not wrong. In one frame alone it may have been there by chance. The attention must also have ended
    outside the object, by `over_chance` or `on_object` …"""
    fall_to: float = 0.5
    """… and be at most this part of its earlier value."""
    late: float = 1 / 3
    """`unsettled`: the last part of the frames that counts as late, at least two of them."""
    late_frames: int = 5
    """`unsettled`: runs with fewer frames are passed over."""
    late_share: float = 0.25
    """`unsettled`: at least this share of the panel must still move; a few images move in any training."""
    settled_similarity: float = 0.5
    """`unsettled`: the mean correlation of a frame's map with the one before is below this …"""
    settled_shift: float = 0.15
    """… or the mean shift of the centroid is above this, in 0…1 of the picture."""
    classes: int = 3
    """If more classes than this share a kind of finding, one row speaks for all of them."""
    rows: int = 12
    """The table has at most this many rows."""
