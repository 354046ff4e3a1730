"""What a test set cannot tell: differences below one image, and starts from which all images come out right."""

from collections.abc import Sequence

from agop_jax.results.moderation import RESOLUTION
from agop_jax.results.summary import Summary
from agop_jax.results.verdicts import POINT

CEILING = 0.05  # at most: one image of a small test set is a large part of it

Parts = list[tuple[str, str]]  # (a few words that lead in, the rest of the sentence)


def size_in_points(fraction: float) -> str:
    """A size in percentage points, with two digits where it is small."""
    return f"{100 * fraction:.1f}" if fraction >= POINT else f"{100 * fraction:.2g}"


def resolution_words(images: int, margin: float) -> str:
    """How many images there are and what one is worth; '' where the number is not known.

    Args:
      images: of the test set, 0 where unknown.
      margin: the largest difference that does not matter, as a fraction.
    """
    if not images:
        return ""
    if images == 1:
        text = "The test set has 1 image, which is right or wrong."
    else:
        text = f"The test set has {images:,} images, so one is {size_in_points(1 / images)} points."
    if 1 / images > margin + RESOLUTION:
        points = f"{100 * margin:g} point{'s' if margin != POINT else ''}"
        text += f" That is more than the margin of {points}, so no start is called equivalent or no worse."
    return text


def at_ceiling(lines: Sequence[Summary], images: int) -> list[Summary]:
    """The inits whose recipients get all test images right, or all but one in the mean over seeds."""
    missed = min(1 / images, CEILING) if images else 0.0
    return [line for line in lines if line.trains and 1 - line.test_accuracy <= missed + RESOLUTION]


def most_at_ceiling(lines: Sequence[Summary], images: int) -> bool:
    """Whether more than half of the inits that train are at the ceiling, and there are two to be told apart."""
    top = at_ceiling(lines, images)
    return len(top) > max(1, sum(line.trains for line in lines) / 2)


def ceiling_words(lines: Sequence[Summary], images: int) -> Parts:
    """One sentence where most inits of a setting are at the ceiling; nothing else."""
    if not most_at_ceiling(lines, images):
        return []
    top = at_ceiling(lines, images)
    whole = all(1 - line.test_accuracy <= RESOLUTION for line in top)
    right = "every test image right" if whole else "every test image right, or all but one"
    text = f"{len(top)} of {len(lines)} initialisations get {right}. This task cannot tell these starts apart"
    return [("At the ceiling", f"{text}: take harder data, fewer training images or fewer steps.")]


def too_coarse(images: int) -> bool:
    """Whether one test image is more than one percentage point, so that no number of seeds shows one."""
    return bool(images) and 1 / images > POINT + RESOLUTION
