"""Small pictures of a curation for the Dagster UI: the funnel, what is kept, and what was removed beside its twin.

They lie in the stages' artefacts, so they are made from folders, before a stage is sealed. Each stays below the size up
to which the UI shows pictures inline.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.curation.report.funnel import FunnelRow, counted
from pipelines.curation.report.losses import find_clips, place_of, removal_rows
from pipelines.curation.report.pool import drawn_most_and_least, read_pool
from pipelines.curation.report.thumbnails import Thumbnail, ThumbnailConfig, thumbnails
from pipelines.errors import Removal

MOST_BYTES = 95_000  # below assets/bodies.py's limit for inline pictures
SIZES = ((140, 192), (128, 128), (128, 64), (112, 48), (96, 32), (80, 16))  # (side of a picture in px, colours), tried in this order
COLUMNS = 6
# A tile that is grey because the machine was busy would change an artefact's digest: sheets wait far longer than a page.
PATIENT = ThumbnailConfig(seconds_per_clip=120.0, budget_s=3600.0)
PAPER, INK, SOFT, GREY = (255, 255, 255), (29, 36, 48), (93, 104, 120), (227, 231, 237)
CAPTION = 30  # px below a picture: two lines of words
MARGIN = 8

Cell = tuple[Thumbnail, str, str]
"""A picture with two lines of words."""


def draw_funnel(path: Path, rows: Sequence[FunnelRow]) -> None:
    """The funnel as horizontal bars: kept, lost and parts in three colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.6 + 0.24 * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    colours = {"kept": "#2f6fde", "lost": "#c43c3c", "part": "#9db8ee"}
    places = range(len(rows))
    panel.barh(places, [row.count for row in rows], color=[colours[row.kind] for row in rows], height=0.7)
    panel.set_yticks(places, [f"{row.stage} {row.reason}" if row.kind == "kept" else row.reason for row in rows], fontsize=8)
    for place, row in zip(places, rows, strict=True):
        panel.annotate(counted(row.count, row.unit), (row.count, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)
    panel.invert_yaxis()
    panel.margins(x=0.22, y=0.01)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.set_xticks([])
    figure.savefig(path, dpi=90, metadata={"Software": None})


def draw_contact_kept(path: Path, distinct: Path, selection: Path, config: ThumbnailConfig = PATIENT, count: int = 24) -> None:
    """The clips that a selection draws most, each from another cluster where there are enough, with how often and for whom."""
    pool = read_pool(distinct, None, selection)
    assert pool.weight is not None and pool.target is not None
    most, least = drawn_most_and_least(pool, count - count // 4)
    chosen = [*most, *least[: count - len(most)]]
    clips = {name: rows[0] for name, rows in find_clips([distinct], set(chosen)).items()}
    taken = thumbnails(clips.values(), None, config)
    cells = []
    for name in chosen:
        row = pool.ids.index(name).as_py()
        target = pool.target.names[pool.target.codes[row]]
        cells.append((taken[name], place_of(clips[name]), f"x {pool.weight[row] * len(pool):.2f}" + ("" if target == "uniform" else f" for {target}")))
    write_sheet(path, cells, COLUMNS)


def draw_contact_removed(
    path: Path, distinct: Path, clips: Sequence[Path], targets: Path, config: ThumbnailConfig = PATIENT, count: int = 12
) -> None:
    """Removed clips, each with what stayed (or the evaluation clip it shows) on its right, reasons in turn, least alike first."""
    by_reason = [list(rows) for reason, _, rows in removal_rows(distinct, clips, targets, count) if reason != Removal.TAKEN_DOWN]
    rows = [row for turn in range(count) for rows in by_reason if turn < len(rows) for row in [rows[turn]]][:count]
    pictured = [clip for row in rows for clip in (row["clip"], row["twin"]) if clip is not None]
    taken = thumbnails(pictured, None, config)
    cells: list[Cell] = []
    for row in rows:
        cells.append((_of(row["clip"], taken), _name(row["clip"]), f"removed: {row['reason'].replace('_', ' ')}"))
        alike = f" {row['similarity']:.3f}" if row["twin"] is not None and row["similarity"] is not None else ""
        other = "shows this" if row["reason"] == "evaluation_leak" else "kept"
        cells.append((_of(row["twin"], taken), _name(row["twin"]), f"{other}{alike}") if row["twin_id"] else (Thumbnail(missing="no twin"), "", "filtered"))
    write_sheet(path, cells, COLUMNS, paired=True)


def _of(clip: Mapping[str, Any] | None, taken: Mapping[str, Thumbnail]) -> Thumbnail:
    return taken[clip["clip_id"]] if clip is not None else Thumbnail(missing="in no table")


def _name(clip: Mapping[str, Any] | None) -> str:
    return place_of(clip) if clip is not None else ""


def write_sheet(path: Path, cells: Sequence[Cell], columns: int, paired: bool = False) -> None:
    """Pictures in a grid as one PNG of at most MOST_BYTES; with `paired`, pairs of neighbours stand closer together."""
    for side, colours in SIZES:
        data = _sheet(cells, columns, side, colours, paired)
        if len(data) <= MOST_BYTES:
            break
    path.write_bytes(data)


def _sheet(cells: Sequence[Cell], columns: int, side: int, colours: int, paired: bool) -> bytes:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    height = side * 3 // 4
    rows = max(1, -(-len(cells) // columns))
    gaps = [0 if paired and column % 2 else MARGIN for column in range(columns)]
    width = columns * side + sum(gaps) + MARGIN + (columns // 2 if paired else 0)
    page = Image.new("RGB", (width, rows * (height + CAPTION + MARGIN) + MARGIN), PAPER)
    drawing, font = ImageDraw.Draw(page), ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 9)
    for place, (thumbnail, first, second) in enumerate(cells):
        row, column = divmod(place, columns)
        left = column * side + sum(gaps[: column + 1]) + (column // 2 + column % 2 if paired else 0)
        top = MARGIN + row * (height + CAPTION + MARGIN)
        drawing.rectangle((left, top, left + side - 1, top + height - 1), fill=GREY if thumbnail.missing else (16, 20, 27))
        if thumbnail.missing:
            drawing.text((left + 6, top + height // 2 - 6), thumbnail.missing, SOFT, font)
        else:
            image = Image.open(io.BytesIO(thumbnail.data))
            image.thumbnail((side, height), Image.Resampling.LANCZOS)
            page.paste(image, (left + (side - image.width) // 2, top + (height - image.height) // 2))
        drawing.text((left, top + height + 1), _fitted(drawing, first, font, side - 4), SOFT, font)
        drawing.text((left, top + height + 14), _fitted(drawing, second, font, side - 4), INK, font)
    if not cells:
        drawing.text((MARGIN, MARGIN), "nothing", SOFT, font)
    buffer = io.BytesIO()
    page.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitted(drawing: Any, words: str, font: Any, width: int) -> str:
    """As much of the end of `words` as fits: names differ at their ends."""
    if drawing.textlength(words, font) <= width:
        return words
    while words and drawing.textlength("..." + words, font) > width:
        words = words[1:]
    return "..." + words
