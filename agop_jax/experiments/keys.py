"""Everything random has a role, and every role its own stream: no two of them see the same random numbers."""

import enum
import zlib

import jax
import numpy as np

from agop_jax.core.types import PRNGKey

APART = 1000  # between the recipients' seeds of two donors, and so the most that one donor may have


class Role(enum.Enum):
    """What random numbers are for. Recipients of one seed share theirs, whatever their init: that pairs them."""

    VALIDATION_SPLIT = "validation split"
    DONOR_START = "donor initialisation"
    DONOR_IMAGES = "order of the donor's images"
    DONOR_LABELS = "random order of the donor's labels"
    DONOR_TRAINING = "donor's batches, augmentation and dropout"
    DONOR_FILTERS = "donor's filters from recursive feature machines"
    FEATURE_PROBES = "random cotangents of the features"
    ANSATZ = "null and bootstrap of the ansatz"
    RECIPIENT_START = "recipient's own parameters"
    RECIPIENT_DRAW = "draws of a recipient's selected layers"
    RECIPIENT_IMAGES = "choice of a recipient's images"
    RECIPIENT_TRAINING = "recipient's batches, augmentation and dropout"


def stream(role: Role, seed: int) -> int:
    """The seed of a role's own stream: a hash of its name and the experiment's or recipient's seed, below 2^32."""
    return int(np.random.SeedSequence((seed, zlib.crc32(role.name.encode()))).generate_state(1)[0])


def key(role: Role, seed: int) -> PRNGKey:
    """The key of JAX for a role and a seed."""
    return jax.random.key(np.uint32(stream(role, seed)))


def recipient_seeds(donor: int, own: int, number: int) -> range:
    """The seeds of a donor's recipients: no two donors share one, so that recipients are nested in donors.

    Args:
      donor: the donor's seed.
      own: the experiment's, whose donor has the recipients 0, 1, ...
      number: of recipients of each init.
    """
    start = 0 if donor == own else APART * (donor + 1)
    return range(start, start + number)
