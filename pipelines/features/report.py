"""What `tubelet features` says when it is done."""

from __future__ import annotations

from models.assembly import listed
from pipelines.features.files import is_one_file
from pipelines.features.work import Outcome

_SHOWN = 8


def outcome_text(outcome: Outcome) -> str:
    """A few lines for a person: what was written and where, what was skipped, what was refused and why."""
    lines = [_written(outcome)]
    if outcome.written:
        lines += _files(outcome)
    if outcome.skipped:
        lines.append(f"{_count(outcome.skipped, 'video')} had features with these settings already")
    if outcome.filled:
        lines.append(f"{_count(outcome.filled, 'window')} longer than what was left of the video: the last frame repeated (filled says how often)")
    if outcome.stills:
        lines.append(f"{_count(outcome.stills, 'video')} with one sampled frame only (a still image, or too short for a second one): it fills the window")
    if outcome.gone:
        lines.append(f"{_count(outcome.gone, 'video')} in the index, no longer in the folder: features and rows are kept")
    if outcome.others:
        lines.append(f"{_count(len(outcome.others), 'file')} left alone, not videos by name: {listed(outcome.others)}")
    if outcome.rejected:
        lines.append(f"WARNING: {_count(len(outcome.rejected), 'video')} gave no features" + ("" if is_one_file(outcome.out) else f", listed in {outcome.out / 'rejected.csv'}") + "; the next run tries again")
        lines += [f"  {video.name}: {reason.found}. {reason.remedy}" for video, reason in outcome.rejected[:_SHOWN]]
    if len(outcome.rejected) > _SHOWN:
        lines.append(f"  and {len(outcome.rejected) - _SHOWN} more")
    if outcome.stopped:
        lines.append("stopped; the files written are whole, and the same command goes on from here")
    return "\n".join(lines)


def _written(outcome: Outcome) -> str:
    if not outcome.written:
        return f"nothing new written to {outcome.out}"
    return f"{_count(outcome.written, 'video')}, {outcome.seconds:.1f} s, {_count(outcome.windows, 'window')} -> {outcome.out}"


def _files(outcome: Outcome) -> list[str]:
    settings = outcome.settings
    axes = (["layer"] if settings.layers else []) + {"clip": ["D"], "frame": ["time", "D"], "dense": ["time", "row", "column", "D"]}[settings.pool]
    shape = f"({', '.join(['window', *axes])}) = (W, {', '.join(map(str, outcome.shape))})"
    content = f"{settings.stored} {shape}" if outcome.file_format == "npy" else f"one row a {'tubelet' if settings.pool == 'frame' else 'window'}, {settings.stored}"
    if is_one_file(outcome.out):
        return [f"  {outcome.out.name}  {content}", f"  {outcome.out.name}.json  weights, settings, and the times of each window"]
    return [
        f"  features/<video>.{outcome.file_format}  {content}",
        "  index.parquet   video, file, window, start_s, end_s, filled", "  features.json   weights with digest, preprocessing, settings, versions",
    ]  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
