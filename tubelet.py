"""The front door: `tubelet demo | ui | doctor | reconcile | lineage | report`.

Nothing but the standard library is imported until a command needs more, so `python tubelet.py doctor` works before
anything is installed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def build_app():  # type: ignore[no-untyped-def]
    """The typer application; typer is imported here because `doctor` must work without it."""
    import typer

    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="V-JEPA 2 from raw video to a moving robot.")
    store_option = typer.Option(None, "--store", help="Store folder; default TUBELET_STORE, or store/ here.")

    tables_option = typer.Option(None, "--tables", help="Also write checkpoints and exposures as Parquet into this folder.")
    videos_option = typer.Option(None, "--videos", help="A folder of your own videos to add to the pool.")

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

        try:
            code = run_demo(DemoOptions(store_root(), videos, recipe, corpus_scale))
        except KeyboardInterrupt:
            typer.echo("tubelet: stopped; run make demo again to go on, what was finished is kept", err=True)
            code = 130
        raise typer.Exit(code)

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
    def lineage(
        name: str = typer.Argument("robot_deployment[sim]", help="asset, asset[partition], or the start of a digest."),
        store: Path | None = store_option,
        tables: Path | None = tables_option,
    ) -> None:
        """Print what an artefact was made from, down to seconds of source video, from files alone."""
        enter(store)
        from assets.resources import store_root
        from pipelines.lineage.ledger import episode_seconds, find, render_text, source_seconds, trace, write_tables
        from pipelines.lineage.render import episodes_text, seconds_text
        from pipelines.store import Store

        opened = Store.open(store_root(), create=False)
        artefact = find(opened, name)
        typer.echo(render_text(trace(opened, artefact)))
        typer.echo(seconds_text(source_seconds(opened, artefact)))
        typer.echo(episodes_text(episode_seconds(opened, artefact)))
        for path in write_tables(opened, artefact, tables) if tables else []:
            typer.echo(f"wrote {path}")

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

    return app


def enter(store: Path | None) -> None:
    """Set the environment that every part and child process reads, and let the project speak on standard error."""
    from assets.resources import export_environment, store_root
    from pipelines.reporting import configure_logging

    export_environment(store or store_root())
    configure_logging()


def examine() -> int:
    from pipelines.doctor import examine_machine

    return examine_machine(sys.stdout, Path(os.environ.get("TUBELET_STORE") or Path(__file__).resolve().parent / "store"))


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
