"""One question to the ledger and its answer: about what a name means, or about all videos of a source, an uploader or a licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.errors import InputError
from pipelines.lineage.answers.artefact import about_artefact
from pipelines.lineage.answers.seen_by import Group, about_group
from pipelines.lineage.answers.source import about_clip, about_video
from pipelines.lineage.answers.subject import subject_of
from pipelines.lineage.render import answer_text, render_text
from pipelines.lineage.trainings import Training, Trainings
from pipelines.lineage.tree import ancestors, trace
from pipelines.store import Artefact, Store

DEPLOYED = "robot_deployment[sim]"


@dataclass(frozen=True, eq=False)
class Answer:
    """`content` has every number; `artefacts` are what was asked about and what it was made from (for an artefact), `trainings` those
    that the answer is about."""

    store: Store
    content: dict[str, Any]
    artefacts: tuple[Artefact, ...]
    trainings: tuple[Training, ...]

    @property
    def text(self) -> str:
        tree = [render_text(trace(self.store, self.artefacts[0])), ""] if self.artefacts else []
        return "\n".join([*tree, answer_text(self.content)])


def ask(store: Store, name: str | None, groups: dict[Group, str | None]) -> Answer:
    """Answer about `name`, or about the one of `groups` that is given; with neither, about the simulated robot's deployment.

    Raises `InputError` when more than one thing is asked, or nothing has that name.
    """
    asked = {column: value for column, value in groups.items() if value is not None}
    if len(asked) + (name is not None) > 1:
        raise InputError(
            "more than one question at once", expected="a name, or one of --source, --uploader and --licence",
            found=", ".join([*([name] if name else []), *(f"--{column} {value}" for column, value in asked.items())]), remedy="ask one after the other",
        )  # fmt: skip
    trainings = Trainings(store)
    for column, value in asked.items():
        return _of_sources(store, about_group(store, column, value, trainings), trainings)
    subject = subject_of(store, name or DEPLOYED)
    if subject.artefact is not None:
        content = about_artefact(store, subject.artefact, trainings)
        behind = [] if content["untold"] else trainings.behind(subject.artefact)
        return Answer(store, content, tuple(ancestors(store, subject.artefact)), tuple(behind))
    about = about_clip if subject.kind == "clip" else about_video
    return _of_sources(store, about(store, subject.name, trainings), trainings)


def _of_sources(store: Store, content: dict[str, Any], trainings: Trainings) -> Answer:
    digests = {row["digest"] for row in content["checkpoints"]}
    return Answer(store, content, (), tuple(one for one in trainings.opened if one.checkpoint.digest in digests))
