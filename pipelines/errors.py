"""The error family of the stages: a bad run is one of these exceptions; a bad item is a row with a `Reject` code."""

from __future__ import annotations

import enum

from models.errors import TubeletError


class StoreError(TubeletError):
    """The store cannot be read or written as it must be (missing, read-only, full, another version, damaged)."""


class MissingArtefact(StoreError):
    """An artefact that a stage needs has not been made, or was made and did not pass its checks."""


class InputError(TubeletError):
    """What a person handed in (a folder, a recipe, an option) cannot be used."""


class TrainingError(TubeletError):
    """A training run ended without what it was started for."""


class Reject(enum.StrEnum):
    """Why one file or clip was not taken: the only codes a `quarantine` row may carry."""

    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    TRUNCATED = "truncated"
    DECODE_ERROR = "decode_error"
    NO_FRAMES = "no_frames"
    TOO_SHORT = "too_short"
    TIMEOUT = "timeout"
    WORKER_DIED = "worker_died"
    UNREADABLE = "unreadable"
    POISON = "poison"
    SOURCE_PROBLEM = "source_problem"


class Removal(enum.StrEnum):
    """Why a good clip is not in the distinct set: the only reasons a `removals` row may carry."""

    EXACT = "exact"
    FINGERPRINT = "fingerprint"
    NEAR_DUPLICATE = "near_duplicate"
    MIRRORED = "mirrored"
    EVALUATION_LEAK = "evaluation_leak"
    TAKEN_DOWN = "taken_down"
    FILTERED_STATIC = "filtered_static"
    FILTERED_BLACK = "filtered_black"
    FILTERED_MOTION = "filtered_motion"
    FILTERED_SHORT = "filtered_short"
    FILTERED_SMALL = "filtered_small"
