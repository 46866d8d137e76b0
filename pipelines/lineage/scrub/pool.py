"""Scrub, the pool: distinct clips against their batches, clusters and selections against the distinct clips."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import Removal
from pipelines.lineage.scrub.batches import CLIP_FILE, ENCODER, clips_without_vector
from pipelines.lineage.scrub.finding import Kind, Told, several, words_of
from pipelines.lineage.scrub.rows import Comparison, insist_on_unique, missing_from, rows_at, unequal
from pipelines.lineage.scrub.shelf import Item, Shelf, Unjudged
from pipelines.schemas import ASSIGNMENTS, CLIPS, REMOVALS, SELECTION

SUM_TOLERANCE = 1e-6
REMOVAL_FILE, SELECTION_FILE = "removals.parquet", "selection.parquet"
ASSIGNED = (("assignments.parquet", "distinct_clips"), ("target_assignments.parquet", "target_videos"))
BY_TWIN = (Removal.EXACT, Removal.FINGERPRINT, Removal.NEAR_DUPLICATE, Removal.MIRRORED)
BESIDE = "\n"  # between the parts of a key: in no id, and in no path that a stage would take


def check_encoders(shelf: Shelf, item: Item) -> Told:
    """All vectors of the pool and of its targets are of one encoder: the one that most of them name."""
    sources = [item, *shelf.inputs(item, "clip_embeddings"), *shelf.inputs(item, "target_embeddings")]
    digests = {source.place: str(shelf.json(source, ENCODER, dict)["digest"]) for source in sources}
    usual = Counter(digests.values()).most_common(1)[0][0]
    for source in sources:
        if digests[source.place] != usual:
            yield source.finding(Kind.ENCODER, ENCODER, f"encoder {usual}, as the rest of {item.name}", f"encoder {digests[source.place]}", "embed it with that encoder, then materialize distinct_clips again")


def check_fan_in(shelf: Shelf, item: Item) -> Told:
    """The batches that were merged are recorded one by one, as they were."""
    clips = {parent.partition: parent.manifest.files[CLIP_FILE].sha256[:16] for parent in shelf.inputs(item, "clips") if CLIP_FILE in parent.manifest.files}
    recorded = [("batches.json", shelf.json(item, "batches.json", dict), clips)]
    if "batch_digests" in item.manifest.summary:
        vectors = {parent.partition: parent.manifest.digest for parent in shelf.inputs(item, "clip_embeddings")}
        recorded.append(("", item.manifest.summary["batch_digests"], vectors))
    for name, found, wanted in recorded:
        other = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if other:
            yield item.finding(Kind.FAN_IN, name, f"the digests of its {len(wanted)} batches", f"others of {several(other)}")


def check_nothing_lost(shelf: Shelf, item: Item) -> Told:
    """Every clip of the batches that has a vector, and whose file has not changed since, is kept or removed, once."""
    superseded = item.manifest.config.get("superseded", {})
    embeddings = {parent.partition: parent for parent in shelf.inputs(item, "clip_embeddings")}
    entering: list[pa.ChunkedArray] = []
    for batch in shelf.inputs(item, "clips"):
        if batch.partition not in embeddings:
            raise Unjudged(f"{batch.key} has no vectors among its inputs")
        table = shelf.table(batch, CLIP_FILE, CLIPS, ["clip_id", "path"])
        out = pa.array([f"{one}{BESIDE}{path}" for one, path in clips_without_vector(shelf, embeddings[batch.partition])], pa.string())
        gone = pc.or_(pc.is_in(_keys(table), value_set=out), pc.is_in(table.column("path"), value_set=pa.array(superseded.get(batch.partition, []), pa.string())))
        entering.append(table.filter(pc.invert(gone)).column("clip_id"))
    kept = shelf.table(item, CLIP_FILE, CLIPS, ["clip_id"]).column("clip_id")
    removed = shelf.table(item, REMOVAL_FILE, REMOVALS, ["clip_id"]).column("clip_id")
    sides = [pa.chunked_array([chunk for column in entering for chunk in column.chunks], pa.string()), kept, removed]
    coded = pa.chunked_array([chunk for side in sides for chunk in side.chunks], pa.string()).combine_chunks().dictionary_encode()
    codes, ids = coded.indices.to_numpy(), coded.dictionary
    balance = np.bincount(codes[: len(sides[0])], minlength=len(ids)) - np.bincount(codes[len(sides[0]) :], minlength=len(ids))
    if (balance > 0).any():
        yield item.finding(Kind.CLIPS_LOST, CLIP_FILE, "every clip of the batches kept or removed", f"neither: {several(ids.filter(pa.array(balance > 0)))}")
    if (balance < 0).any():
        yield item.finding(Kind.CLIPS_TWICE, CLIP_FILE, "clips of the batches, each kept or removed once", f"more often than they came in: {several(ids.filter(pa.array(balance < 0)))}")


def _keys(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table.column("clip_id"), table.column("path"), BESIDE)


def check_kept_rows(shelf: Shelf, item: Item) -> Told:
    """A distinct clip's row is its row in the batch that brought it."""
    kept = shelf.table(item, CLIP_FILE, CLIPS)
    batches = pa.concat_tables([CLIPS.empty_table(), *(shelf.table(batch, CLIP_FILE, CLIPS) for batch in shelf.inputs(item, "clips"))])
    batches = batches.append_column("key", _keys(batches))
    kept = kept.append_column("key", _keys(kept))
    kept = kept.filter(pc.is_in(kept.column("key"), value_set=batches.column("key").combine_chunks()))  # others: `check_nothing_lost`
    came = rows_at(batches, "key", kept.column("key"))
    # A file that was taken in again has its row in two batches; the first of them may be of the file as it was.
    again = {path for paths in item.manifest.config.get("superseded", {}).values() for path in paths}
    other = [name for name in CLIPS.names if name != "batch" or not again]
    differ = pa.array(np.zeros(len(kept), bool))
    for name in other:
        differ = pc.or_(differ, unequal(kept.column(name), came.column(name)))
    differ = pc.and_(differ, pc.invert(pc.is_in(kept.column("path"), value_set=pa.array(sorted(again), pa.string()))))
    if pc.any(differ).as_py():
        yield item.finding(Kind.CLIP_ROWS, CLIP_FILE, "the rows of the batches", f"other rows of {several(kept.column('clip_id').filter(differ))}")


def check_twins(shelf: Shelf, item: Item) -> Told:
    """Every duplicate names a twin that was kept, every leak an evaluation clip."""
    removals = shelf.table(item, REMOVAL_FILE, REMOVALS, ["clip_id", "reason", "twin_id"])
    kept = shelf.table(item, CLIP_FILE, CLIPS, ["clip_id"]).column("clip_id")
    copies = removals.filter(pc.is_in(removals.column("reason"), value_set=pa.array([reason.value for reason in BY_TWIN])))
    gone = set(missing_from(copies.column("twin_id"), kept))
    removed = gone & set(removals.column("clip_id").to_pylist())
    if removed:
        yield item.finding(Kind.TWIN_REMOVED, REMOVAL_FILE, "twins that were kept", f"twins that were removed too: {several(sorted(removed))}")
    leaks = removals.filter(pc.equal(removals.column("reason"), Removal.EVALUATION_LEAK.value)).column("twin_id")
    unknown = gone - removed
    if len(leaks):
        unknown |= set(missing_from(leaks, shelf.table(shelf.input(item, "target_videos"), CLIP_FILE, CLIPS, ["clip_id"]).column("clip_id")))
    if unknown:
        yield item.finding(Kind.TWIN_UNKNOWN, REMOVAL_FILE, "twins among the kept clips, or for leaks among the targets' clips", f"others: {several(sorted(unknown))}")


def check_clusters(shelf: Shelf, item: Item) -> Told:
    """The clips and the targets are assigned, each in its place, to leaves that the codebook has, and its statistics say the same.

    What an earlier one of these finds leaves the later ones nothing to say.
    """
    from pipelines.curation.codebook import Codebook
    from pipelines.curation.increment import check_increment

    tables = {name: shelf.table(item, name, ASSIGNMENTS) for name, _ in ASSIGNED}
    insist_on_unique(tables[ASSIGNED[0][0]], item, ASSIGNED[0][0])
    sound = True
    for name, asset in ASSIGNED:
        wanted = shelf.table(shelf.input(item, asset), CLIP_FILE, CLIPS, ["clip_id"]).column("clip_id")
        found = tables[name].column("clip_id")
        if not found.combine_chunks().equals(wanted.combine_chunks()):
            sound = False
            lost, strange = missing_from(wanted, found), missing_from(found, wanted)
            words = f"none of {several(lost)}, and {several(strange)} that are not there" if lost or strange else "the same in another order"
            yield item.finding(Kind.ASSIGNMENTS, name, f"the {len(wanted)} clips of {asset}, in their order", words)
    if any(where.startswith(item.place + "/") for where in shelf.damaged):
        raise Unjudged("a file of the codebook may be damaged")
    try:
        codebook = Codebook.load(item.folder)
    except Exception as error:  # whatever damaged arrays make of their reader
        yield item.finding(Kind.UNREADABLE, "codebook.json", "a codebook whose levels fit together", words_of(error))
        return
    top = codebook.ancestors(-1)
    for name, table in tables.items():
        leaf, coarse = table.column("cluster").to_numpy(), table.column("coarse_cluster").to_numpy()
        inside = (leaf >= 0) & (leaf < len(top))
        right = inside & (top[np.where(inside, leaf, 0)] == coarse)
        if not right.all():
            sound = False
            names = several(table.column("clip_id").filter(pa.array(~right)))
            yield item.finding(Kind.CLUSTER, name, f"one of {len(top)} leaves, under that leaf's ancestor", f"others for {names}")
    if sound and "leaf_statistics.npz" in item.manifest.files:
        check = check_increment(item.folder)["statistics_agree"]
        if not check.passed:
            yield item.finding(Kind.STATISTICS, "leaf_statistics.npz", check.expected, check.found, check.remedy)


def check_selection(shelf: Shelf, item: Item) -> Told:
    """A selection is of distinct clips, of their videos."""
    distinct = shelf.table(shelf.input(item, "distinct_clips"), CLIP_FILE, CLIPS, ["clip_id", "video_id"])
    chosen = shelf.table(item, SELECTION_FILE, SELECTION, ["clip_id", "video_id"])
    unknown = missing_from(chosen.column("clip_id"), distinct.column("clip_id"))
    if unknown:
        yield item.finding(Kind.UNKNOWN_CLIP, SELECTION_FILE, "distinct clips", f"clips that are none: {several(unknown)}")
    chosen = chosen.filter(pc.is_in(chosen.column("clip_id"), value_set=distinct.column("clip_id").combine_chunks()))
    differ = unequal(chosen.column("video_id"), rows_at(distinct, "clip_id", chosen.column("clip_id")).column("video_id"))
    if pc.any(differ).as_py():
        yield item.finding(Kind.UNKNOWN_VIDEO, SELECTION_FILE, "the clips' own videos", f"other videos for {several(chosen.column('clip_id').filter(differ))}")


def check_weights(shelf: Shelf, item: Item) -> Told:
    """Weights are a distribution: finite, none negative, sum 1."""
    table = shelf.table(item, SELECTION_FILE, SELECTION, ["clip_id", "weight"])
    insist_on_unique(table, item, SELECTION_FILE)
    weight = table.column("weight").to_numpy()
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        yield item.finding(Kind.WEIGHTS, SELECTION_FILE, "finite weights, none negative", f"others for {several(table.column('clip_id').filter(pa.array(bad)))}")
    elif not abs(weight.sum() - 1) <= SUM_TOLERANCE:
        yield item.finding(Kind.WEIGHTS, SELECTION_FILE, f"weights with sum 1 to within {SUM_TOLERANCE:g}", f"sum {weight.sum():.9f}")


COMPARISONS = (
    Comparison("encoders of the pool", ("distinct_clips",), check_encoders),
    Comparison("batches of the pool", ("distinct_clips",), check_fan_in),
    Comparison("clips kept and removed", ("distinct_clips",), check_nothing_lost),
    Comparison("rows of the kept clips", ("distinct_clips",), check_kept_rows),
    Comparison("twins of the removed clips", ("distinct_clips",), check_twins),
    Comparison("clusters", ("clip_clusters",), check_clusters),
    Comparison("clips of the selection", ("curated_clips",), check_selection),
    Comparison("weights of the selection", ("curated_clips",), check_weights),
)
