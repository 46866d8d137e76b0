"""The front door: `tubelet demo | curate | adapt | curation | ui | doctor | reconcile | scrub | lineage | takedown | report | shards | features | weights`.

Nothing but the standard library is imported until a command needs more, so `python tubelet.py doctor` works before
anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path


def build_app():  # type: ignore[no-untyped-def]
    """The typer application; typer is imported here because `doctor` must work without it."""
    import typer

    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="V-JEPA 2 from raw video to a moving robot.")
    store_option = typer.Option(None, "--store", help="Store folder; default TUBELET_STORE, or store/ here.")

    lineage_argument = typer.Argument(None, help="An artefact (asset, asset[partition], digest, folder), a clip_id or video_id or 8 characters of its start, or a video's path or file name; left out: the deployed bundle, robot_deployment[sim].")
    lineage_out_option = typer.Option(None, "--out", help="Folder for index.html and lineage.json; default lineage/NAME in the store.")
    tables_option = typer.Option(None, "--tables", help="Also write checkpoints, exposures, selections and shards as Parquet into this folder.")
    json_option = typer.Option(None, "--json", help="Also write everything as JSON into this file.")
    assets_option = typer.Option([], "--asset", help="Look at this asset, or asset[partition], only; may be repeated.")
    videos_option = typer.Option(None, "--videos", help="Your own videos to add to the pool: a folder, a CSV or Parquet manifest, or tars.")
    pool_argument = typer.Argument(None, help="A folder, a CSV or Parquet manifest, tars, or a data set's annotations; left out: what is registered already.")
    own_videos_argument = typer.Argument(help="Your videos: a folder, a CSV or Parquet manifest, or tars.")
    set_option = typer.Option([], "--set", help="One value of a stage: selection.repeat_cap=2; may be repeated.")
    root_option = typer.Option(None, "--root", help="Where a manifest's paths start, or the folder of the videos that annotations name.")
    checkpoint_argument = typer.Argument(help="A .pt or .safetensors file, a folder (Hugging Face's or ours), or an artefact such as cooled_encoder[nano].")
    tars_argument = typer.Argument(help="A folder of uncompressed tars with videos or pictures.")
    shards_argument = typer.Argument(None, help="A folder of shards; left out: the store's current training_shards.")
    source_argument = typer.Argument(help="A video, or a folder that is searched with all folders below.")
    destination_argument = typer.Argument(help="A new folder; for --to official a .pt file, or .safetensors for one part.")
    out_option = typer.Option(None, "--out", help="Folder, or for one video a .npy or .parquet file; default NAME-features here.")
    layer_option = typer.Option([], "--layer", help="A block's output instead of the last; 0-based, -1 the last; may be repeated.")
    parts_option = typer.Option([], "--part", help="Convert this part only; may be repeated. Names the encoder for Hugging Face.")

    @app.command()
    def demo(
        store: Path | None = store_option,
        videos: Path | None = videos_option,
        recipe: str = typer.Option("nano", "--recipe", help="A recipe by name."),
        corpus_scale: str = typer.Option("demo", "--corpus-scale", help="Size of the built-in corpus: demo or smoke."),
    ) -> None:
        """Run the whole graph, or what is missing of it, and write the report."""
        enter(store)
        from assets.demo import DemoOptions, run_demo
        from assets.resources import store_root

        with stoppable("make demo"):
            raise typer.Exit(run_demo(DemoOptions(store_root(), videos, recipe, corpus_scale)))

    @app.command()
    def ui(
        store: Path | None = store_option,
        port: int = typer.Option(3000, "--port", help="Port on 127.0.0.1."),
    ) -> None:
        """Open the Dagster UI and its daemon on the store."""
        enter(store)
        from assets.interface import serve

        raise typer.Exit(serve(port))

    @app.command()
    def doctor() -> None:
        """Say what this machine has and lacks (standard library only)."""
        raise typer.Exit(examine())

    @app.command()
    def reconcile(store: Path | None = store_option) -> None:
        """End runs whose process is gone, and free what they hold."""
        enter(store)
        from assets.reconcile import reconcile_store
        from assets.resources import store_root
        from pipelines.store import Store

        raise typer.Exit(reconcile_store(Store.open(store_root(), create=False)))

    @app.command()
    def scrub(
        asset: list[str] = assets_option,
        quick: bool = typer.Option(False, "--quick", help="Sizes and tables only: no file is read for its digest."),
        json_file: Path | None = json_option,
        store: Path | None = store_option,
    ) -> None:
        """Read every artefact against its manifest and every table against the others; 1 when something does not agree."""
        enter(store)
        from assets.resources import store_root
        from assets.scrub import scrub_store
        from pipelines.lineage.scrub.text import scrub_json, scrub_text
        from pipelines.store import make_folder, write_atomic

        if json_file is not None:
            make_folder(json_file.parent)  # before the long work, not after it
        found = scrub_store(store_root(), asset, quick)
        if json_file is not None:
            write_atomic(json_file, scrub_json(found))
        typer.echo(scrub_text(found))
        raise typer.Exit(1 if found.findings else 0)

    @app.command()
    def lineage(
        name: str | None = lineage_argument,
        source: str | None = typer.Option(None, "--source", help="Ask instead which checkpoints saw videos of this source."),
        uploader: str | None = typer.Option(None, "--uploader", help="The same of this uploader; unknown: of those without."),
        licence: str | None = typer.Option(None, "--licence", help="The same of this licence; unknown: of those without."),
        out: Path | None = lineage_out_option,
        tables: Path | None = tables_option,
        store: Path | None = store_option,
    ) -> None:
        """What an artefact was made from, down to seconds of source video, and who saw a clip, a video or a group of videos. From files alone."""
        enter(store)
        from assets.lineage import dagster_says
        from assets.resources import store_root
        from pipelines.lineage.answers.ask import ask
        from pipelines.lineage.answers.page import write_answer
        from pipelines.lineage.answers.tables import write_tables
        from pipelines.store import Store

        opened = Store.open(store_root(), create=False)
        answer = ask(opened, name, {"source": source, "uploader": uploader, "licence": licence})
        if answer.artefacts:
            answer.content["dagster"] = dagster_says(opened.root, answer.artefacts)
        typer.echo(answer.text)
        for path in (*write_answer(opened, answer.content, out), *(write_tables(opened, answer.trainings, tables) if tables else [])):
            typer.echo(f"wrote {path}")
        raise typer.Exit(2 if answer.content["untold"] else 0)

    @app.command()
    def takedown(
        video: str | None = typer.Option(None, "--video", help="A video_id, or the path of a file that was taken in or holds the same stream."),
        source: str | None = typer.Option(None, "--source", help="Every video whose source's name, or whose path, begins so."),
        uploader: str | None = typer.Option(None, "--uploader", help="Every video of this uploader."),
        licence: str | None = typer.Option(None, "--licence", help="Every video of this licence."),
        reason: str = typer.Option(..., "--reason", help="For whoever asks later."),
        compact: bool = typer.Option(False, "--compact", help="Also overwrite the bytes in all shards; trainings that read go on."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Tell everything and write nothing."),
        store: Path | None = store_option,
    ) -> None:
        """Take videos down: they and their near-duplicates are never used again; a report tells all that has touched them."""
        speak()
        from pipelines.lineage.takedown.match import selector_of
        from pipelines.lineage.takedown.report import report_text
        from pipelines.lineage.takedown.take_down import take_down
        from pipelines.store import Store

        selector = selector_of(video=video, source=source, uploader=uploader, licence=licence)
        told = take_down(Store.open(store_folder(store), create=False), selector, reason, compact=compact, dry_run=dry_run)
        typer.echo(report_text(told))
        raise typer.Exit(2 if told.get("redaction", {}).get("damaged") else 0)

    @app.command()
    def report(
        store: Path | None = store_option,
        recipe: str = typer.Option("nano", "--recipe", help="A recipe by name."),
    ) -> None:
        """Write the HTML report again from the store's files, and check it against its thresholds."""
        enter(store)
        from assets.demo import conclude
        from assets.resources import store_root
        from pipelines.store import Store

        raise typer.Exit(conclude(Store.open(store_root(), create=False), recipe, worked=True, seconds=0.0))

    @app.command()
    def curate(
        videos: Path | None = pool_argument,
        targets: str = typer.Option("none", "--targets", help="Target sets: a folder, a YAML file (presets/targets), builtin; none: a balanced selection."),
        preset: str = typer.Option("nano", "--preset", help="A curation recipe by name (nano, vjepa2) or a YAML file."),
        options: list[str] = set_option,
        kind: str | None = typer.Option(None, "--kind", help="folder, manifest, tars, kinetics, ssv2, coin, epic_kitchens, yt_temporal_1b; found out by itself where possible."),
        root: Path | None = root_option,
        name: str | None = typer.Option(None, "--name", help="Name of the source; default made from the path."),
        licence: str | None = typer.Option(None, "--licence", help="Of every video that has none of its own; left out: as registered."),
        uploader: str | None = typer.Option(None, "--uploader", help="Of every video that has none of its own; left out: as registered."),
        refit: bool = typer.Option(False, "--refit", help="Give up the frozen codebook and cluster anew."),
        shards: bool = typer.Option(False, "--shards", help="Also cut the selection into WebDataset shards."),
        retry_poison: bool = typer.Option(False, "--retry-poison", help="Open files once more that hung or killed their worker every time."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Forecast videos, hours, bytes and minutes from a sample; nothing is written."),
        store: Path | None = store_option,
    ) -> None:
        """From your own videos to a weighted, explained training set: probe, cut, compare, cluster, select. Trains nothing."""
        enter(store)
        from assets.curate import CurateOptions, forecast_text_of, parse_options, run_curation
        from assets.resources import store_root

        chosen = CurateOptions(
            root=store_root(), videos=videos, kind=kind, video_root=root, name=name, licence=licence, uploader=uploader,
            targets="" if targets == "builtin" else targets, preset=preset, options=parse_options(options), refit=refit, shards=shards, retry_poison=retry_poison,
        )  # fmt: skip
        if dry_run:
            typer.echo(forecast_text_of(chosen))
            return
        with stoppable("the same command"):
            run_curation(chosen)

    @app.command()
    def adapt(
        checkpoint: str = checkpoint_argument,
        videos: Path = own_videos_argument,
        targets: str = typer.Option("none", "--targets", help="Labelled sets to judge by (a folder or a YAML file); left out: some of your videos are held out instead."),
        recipe: str = typer.Option("adapt-vitl16", "--recipe", help="A recipe that leaves its start open, by name."),
        preset: str = typer.Option("nano", "--preset", help="A curation recipe by name (nano, vjepa2) or a YAML file."),
        options: list[str] = set_option,
        kind: str | None = typer.Option(None, "--kind", help="As for curate; found out by itself where possible."),
        root: Path | None = root_option,
        name: str | None = typer.Option(None, "--name", help="Name of the source; default made from the path."),
        licence: str | None = typer.Option(None, "--licence", help="Of every video that has none of its own; left out: as registered."),
        uploader: str | None = typer.Option(None, "--uploader", help="Of every video that has none of its own; left out: as registered."),
        store: Path | None = store_option,
    ) -> None:
        """Go on from released weights on your own videos: curate, train, cool down, probe before and after, say whether it got better."""
        enter(store)
        from assets.adapt import AdaptOptions, run_adaptation
        from assets.curate import CurateOptions, parse_options
        from assets.resources import store_root

        curation = CurateOptions(
            root=store_root(), videos=videos, kind=kind, video_root=root, name=name, licence=licence, uploader=uploader, targets=targets,
            preset=preset, options=parse_options(options),
        )  # fmt: skip
        with stoppable("the same command"):
            run_adaptation(AdaptOptions(checkpoint, curation, recipe))

    @app.command()
    def features(
        checkpoint: str = checkpoint_argument,
        videos: Path = source_argument,
        out: Path | None = out_option,
        part: str | None = typer.Option(None, "--part", help="Which encoder, where the checkpoint has several: encoder or target_encoder."),
        pool: str = typer.Option("clip", "--pool", help="clip: one vector a window; frame: one a tubelet; dense: every token (npy only)."),
        file_format: str | None = typer.Option(None, "--format", help="npy (default): an array a video; parquet: a row a window."),
        frames: int | None = typer.Option(None, "--frames", help="Frames in a window; default the encoder's own."),
        fps: float = typer.Option(4.0, "--fps", help="Frames a second to sample; 4 is the rate of training."),
        stride_seconds: float | None = typer.Option(None, "--stride-seconds", help="From one window to the next; default a window's length: no overlap."),
        limit_seconds: float | None = typer.Option(None, "--limit-seconds", help="Read only the beginning of each video."),
        size: str | None = typer.Option(None, "--size", help="Pixels: 256, or 180x320 (height x width); default the encoder's own."),
        mode: str = typer.Option("short_side_crop", "--mode", help="short_side_crop (upstream's evaluation), squash (the whole picture), official_droid_crop."),
        antialias: bool = typer.Option(True, help="Filter pictures that shrink; upstream's video probes do not."),
        layer: list[int] = layer_option,
        dtype: str = typer.Option("float32", "--dtype", help="Numbers in the files: float32 or float16."),
        precision: str = typer.Option("fp32", "--precision", help="Arithmetic: fp32, or bf16 on a GPU."),
        device: str | None = typer.Option(None, "--device", help="cpu, cuda, cuda:1; default a GPU where there is one."),
        batch: int | None = typer.Option(None, "--batch", min=1, help="Windows to encode together; default by their tokens."),
        workers: int = typer.Option(2, "--workers", min=1, help="Videos to decode side by side."),
        heads: int | None = typer.Option(None, "--heads", help="Attention heads, for official weights of no released size."),
        store: Path | None = store_option,
    ) -> None:
        """Features of your videos from a frozen encoder, with the times of each window and a record of how they were made."""
        speak()
        from pipelines.features.report import outcome_text
        from pipelines.features.run import FeatureRequest, extract_features

        options = {
            "pool": pool, "frames": frames, "fps": fps, "stride_seconds": stride_seconds, "limit_seconds": limit_seconds, "size": size, "mode": mode,
            "antialias": antialias, "layers": layer, "stored": dtype, "precision": precision,
        }  # fmt: skip
        outcome = extract_features(FeatureRequest(
            checkpoint=checkpoint, source=videos, store=store_folder(store), out=out, part=part, file_format=file_format, device=device,
            batch=batch, workers=workers, heads=heads, options=options,
        ))  # fmt: skip
        typer.echo(outcome_text(outcome))
        raise typer.Exit(outcome.exit_code)

    weights = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into weight files, and convert them.")
    app.add_typer(weights, name="weights")

    @weights.command()
    def inspect(
        checkpoint: str = checkpoint_argument,
        as_json: bool = typer.Option(False, "--json", help="For machines."),
        store: Path | None = store_option,
    ) -> None:
        """Print what a checkpoint holds, what is wrong with it, and what one can do with it."""
        speak()
        from models.weights import inspect_checkpoint
        from pipelines.weights.describe import inspection_json, inspection_text, is_sound
        from pipelines.weights.locate import locate

        inspection = inspect_checkpoint(locate(checkpoint, store_folder(store)))
        typer.echo(inspection_json(inspection) if as_json else inspection_text(inspection))
        raise typer.Exit(0 if is_sound(inspection) else 2)

    @weights.command("convert")
    def convert_weights(
        checkpoint: str = checkpoint_argument,
        destination: Path = destination_argument,
        to: str = typer.Option(..., "--to", help="tubelet, official or huggingface."),
        part: list[str] = parts_option,
        image_size: int | None = typer.Option(None, "--image-size", help="Pixels the weights were made for, where the file does not tell; 256 for most."),
        heads: int | None = typer.Option(None, "--heads", help="Attention heads of an encoder of no released size."),
        predictor_heads: int | None = typer.Option(None, "--predictor-heads", help="Attention heads of a predictor of no released size."),
        probe_heads: int | None = typer.Option(None, "--probe-heads", help="Attention heads of a probe of no released size."),
        overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is there; of a folder the weight files only."),
        store: Path | None = store_option,
    ) -> None:
        """Convert weights between the official layout, Hugging Face and ours; what was written is read back and compared."""
        speak()
        from pipelines.weights.convert import Conversion, convert
        from pipelines.weights.describe import converted_text
        from pipelines.weights.locate import locate
        from pipelines.weights.parts import Hints

        hints = Hints(heads=heads, predictor_heads=predictor_heads, probe_heads=probe_heads, image_size=image_size)
        typer.echo(converted_text(convert(Conversion(
            source=locate(checkpoint, store_folder(store)), destination=destination, to=to, parts=tuple(part), hints=hints, overwrite=overwrite
        ))))  # fmt: skip

    curation = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What became of your videos: look, and compare.")
    app.add_typer(curation, name="curation")
    page_option = typer.Option(None, "--out", help="Folder to write into; default curation/ in the store.")

    @curation.command("page")
    def curation_page(store: Path | None = store_option, out: Path | None = page_option) -> None:
        """Write the curation page: what was dropped and why, what is kept, clusters, distribution, drift, cost."""
        speak()
        from pipelines.curation.report.page import write_curation_page
        from pipelines.store import Store

        opened = Store.open(store_folder(store), create=False)
        typer.echo(f"wrote {write_curation_page(opened, out or opened.root / 'curation')}")

    @curation.command("compare")
    def curation_compare(
        before: str = typer.Argument("previous", help="The older one: previous, current, or the start of a digest of curated_clips."),
        after: str = typer.Argument("current", help="The newer one."),
        listed: bool = typer.Option(False, "--list", help="Only list the selections in the store."),
        store: Path | None = store_option,
        out: Path | None = page_option,
    ) -> None:
        """Compare two selections: what both draw, who gained, who lost, and why."""
        speak()
        from pipelines.curation.report.comparison import compare, curations, described
        from pipelines.curation.report.comparison_page import comparison_text, write_comparison
        from pipelines.store import Store

        opened = Store.open(store_folder(store), create=False)
        if listed:
            typer.echo("\n".join(map(described, curations(opened))) or "no selection yet")
            return
        found = compare(opened, before, after)
        typer.echo(comparison_text(found))
        typer.echo(f"wrote {write_comparison(opened, found, out or opened.root / 'curation' / 'comparison')}")

    shards = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The training set on disk.")
    app.add_typer(shards, name="shards")

    @shards.command("index")
    def index_shards(
        folder: Path = tars_argument,
        source: str = typer.Option("", "--source", help="Name of the source, for the lineage."),
        licence: str = typer.Option("", "--licence", help="Of everything in these tars."),
        uploader: str = typer.Option("", "--uploader", help="Of everything in these tars."),
    ) -> None:
        """Write the index of WebDataset tars that others made, so that a mixture can draw from them as they are."""
        speak()
        from pipelines.shards.found import index_tars

        made = index_tars(folder, source, licence, uploader)
        typer.echo(f"indexed {made['clips']} clips ({made['pictures']} pictures) in {made['tars']} tars; {made['rejected']} rejected (quarantine.parquet)")

    @shards.command("verify")
    def verify_shards(
        folder: Path | None = shards_argument,
        store: Path | None = store_option,
    ) -> None:
        """Read every byte of the shards against their index, and name what does not agree; exit code 1 when something does not."""
        speak()
        from pipelines.shards.verify import verification

        text, sound = verification(folder, store_folder(store))
        typer.echo(text)
        raise typer.Exit(0 if sound else 1)

    return app


def speak() -> None:
    """Let the project speak on standard error, for commands that need no store."""
    from pipelines.reporting import configure_logging

    configure_logging()


def store_folder(store: Path | None = None) -> Path:
    """The store that was named, or TUBELET_STORE, or store/ here; nothing is opened or made."""
    return store or Path(os.environ.get("TUBELET_STORE") or Path(__file__).resolve().parent / "store")


def enter(store: Path | None) -> None:
    """Set the environment that every part and child process reads, and let the project speak on standard error."""
    from assets.resources import export_environment, store_root
    from pipelines.reporting import configure_logging

    export_environment(store or store_root())
    configure_logging()


@contextlib.contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Ctrl-C ends work that can go on with a line that says how, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        import typer

        typer.echo(f"tubelet: stopped; run {command} again to go on, what was finished is kept", err=True)
        raise typer.Exit(130) from None


def examine() -> int:
    from pipelines.doctor import examine_machine

    return examine_machine(sys.stdout, store_folder())


def listen_to_signals() -> None:
    """Undo an ignored SIGINT. A shell leaves it so for what it starts in the background, and Dagster copies the handler to
    SIGTERM: without this neither Ctrl-C nor a polite kill would end a run."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Entry point: errors of the family become one message and exit code 2, or 130 when a person stopped a run."""
    listen_to_signals()
    if sys.argv[1:2] == ["doctor"] and "--help" not in sys.argv:
        raise SystemExit(examine())
    from models.errors import TubeletError

    try:
        build_app()(standalone_mode=True)
    except TubeletError as error:
        print(f"tubelet: {error}", file=sys.stderr)
        raise SystemExit(130 if type(error).__name__ == "RunInterrupted" else 2) from None


if __name__ == "__main__":
    main()
