"""Embedding clips: the frames that stand for them, the encoders, what versions a vector, and a stage that loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.checks import failed
from pipelines.curation import clip_frames
from pipelines.curation.clip_frames import FrameSource, Sampling, image_sampling
from pipelines.curation.embedders.pixels import Geometry, resize_and_crop
from pipelines.curation.embedding import (
    EmbeddingSettings,
    build_embeddings,
    check_embeddings,
    directions,
    make_embedder,
    read_vectors,
    unit_rows,
    without_vector,
)
from pipelines.curation.recipe import stage_options
from pipelines.errors import InputError, MissingArtefact, Reject, StoreError
from pipelines.schemas import CLIPS, QUARANTINE, read_table, table_of, write_table
from pipelines.video.decode import timed_frames, to_array
from pipelines.video.encode import write_video

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = 8.0
SMALL = EmbeddingSettings(image_size=32, batch=5)


def shot(seed: int, frames: int, side: int = 36) -> np.ndarray:
    """(T, side, side + 12, 3) uint8: a bright square over a coarse background of its own, moving a little each frame."""
    random = np.random.default_rng(seed)
    background = np.kron(random.integers(0, 200, (side // 12, side // 12 + 1, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    film = np.repeat(background[None], frames, axis=0)
    for number in range(frames):
        film[number, 8:20, 2 + number % 20 : 14 + number % 20] = 255
    return film


def clip_rows(path: Path, borders: list[int]) -> list[dict[str, Any]]:
    """Rows of the clips table for the frames between the borders."""
    import av

    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    assert base is not None
    stamps = [pts for pts, _ in timed_frames(path)]
    stamps.append(2 * stamps[-1] - stamps[-2])
    return [
        {
            "clip_id": f"{path.stem}{first:04d}", "video_id": path.stem, "batch": "made-0001", "path": str(path), "source": "made",
            "start_pts": stamps[first], "end_pts": stamps[last], "time_base_num": base.numerator, "time_base_den": base.denominator,
        }
        for first, last in itertools.pairwise(borders)
    ]  # fmt: skip


def write_clips(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Thirteen clips of three videos."""
    folder = tmp_path_factory.mktemp("films")
    found: list[dict[str, Any]] = []
    for number, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", np.concatenate([shot(10 * number + part, 12) for part in range(5)]), RATE, gop=10, bframes=2)
        found += clip_rows(folder / f"{name}.mp4", [0, 12, 24, 36, 48, 60] if name != "c" else [0, 12, 30, 60])
    return found


@pytest.fixture(scope="module")
def clips_folder(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), rows)


@pytest.fixture(scope="module")
def embedded(clips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    build_embeddings(folder, clips_folder, config=SMALL, workers=1)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2 of 16 numbers, in a folder as published: short side 32 by bicubic filter, centre crop 28."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("hub") / "tiny-dinov2"
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv3 of 16 numbers with 4 registers, squeezed to 32 px by bilinear filter."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    folder = tmp_path_factory.mktemp("hub") / "tiny-dinov3"
    torch.manual_seed(1)
    DINOv3ViTModel(DINOv3ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, num_register_tokens=4,
    )).save_pretrained(folder)  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "DINOv3ViTImageProcessorFast", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
        "crop_size": None, "do_center_crop": None, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def vjepa2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random V-JEPA 2 encoder of 24 numbers in our own layout: 4 frames of 32 px."""
    import torch

    from models.encoder import EncoderConfig, VideoEncoder
    from models.weights import save_module

    folder = tmp_path_factory.mktemp("own") / "nano"
    torch.manual_seed(2)
    save_module(VideoEncoder(EncoderConfig(embed_dim=24, depth=2, num_heads=2, img_size=(32, 32), num_frames=4)), folder, "encoder")
    return folder


Named = Callable[..., EmbeddingSettings]


@pytest.fixture
def named(dinov2: Path, dinov3: Path, vjepa2: Path) -> Named:
    """Small settings of an encoder by the name of its family."""
    paths = {"dinov2": str(dinov2), "dinov3": str(dinov3), "vjepa2": str(vjepa2)}

    def settings_of(name: str, **options: Any) -> EmbeddingSettings:
        base = {"batch": 5, **({"image_size": 32, "encoder": "efficientnet-lite0"} if name == "efficientnet" else {"encoder": paths[name]})}
        return EmbeddingSettings(**{**base, **options})

    return settings_of


FAMILIES = ["efficientnet", "dinov2", "dinov3", "vjepa2"]


# Which frames


def test_frames_lie_where_the_settings_say() -> None:
    base = Fraction(1, 100)
    assert image_sampling(1).pts(1000, 1400, base) == [1200]
    assert image_sampling(3).pts(1000, 1400, base) == image_sampling(None).pts(1000, 1400, base) == [1100, 1200, 1300]
    assert image_sampling(4).pts(1000, 1400, base) == [1050, 1150, 1250, 1350]
    for wrong in ("clip", 0):
        with pytest.raises(InputError, match="cannot see"):
            image_sampling(wrong)


def test_window_lies_in_the_middle_and_a_short_clip_repeats_its_last_frame() -> None:
    window = Sampling(4, fps=4.0)
    assert window.pts(1000, 1300, Fraction(1, 100)) == [1100, 1125, 1150, 1175]  # 3 s: the window's 1 s starts after 1 s
    assert window.pts(1000, 1060, Fraction(1, 100)) == [1000, 1025, 1050, 1059]
    assert Sampling(4, fps=3.0).pts(0, 1333, Fraction(1, 1000)) == [0, 333, 667, 1000]  # 2/3 s is 667 ms in such files


@given(start=st.integers(-1000, 1000), length=st.integers(1, 5000), frames=st.integers(1, 40), fps=st.sampled_from([0.5, 4.0, 29.97]))
def test_wanted_frames_never_leave_the_clip(start: int, length: int, frames: int, fps: float) -> None:
    for sampling in (image_sampling(frames), Sampling(frames, fps=fps)):
        pts = sampling.pts(start, start + length, Fraction(1, 600))
        assert len(pts) == frames and pts == sorted(pts) and start <= pts[0] and pts[-1] < start + length


def test_vectors_are_the_mean_of_unit_vectors_of_the_frames_at_25_50_75_percent(rows: list[dict[str, Any]], embedded: Path) -> None:
    embedder = make_embedder(SMALL)
    films = {path: list(timed_frames(path)) for path in {row["path"] for row in rows}}
    for row, vector in zip(rows, read_vectors(embedded)[1], strict=True):
        wanted = [row["start_pts"] + int((row["end_pts"] - row["start_pts"]) * share) for share in (0.25, 0.5, 0.75)]
        shown = [[frame for pts, frame in films[row["path"]] if pts <= moment][-1] for moment in wanted]
        single = [embedder.embed(to_array(frame, (32, 32))[None, None])[0] for frame in shown]
        assert np.allclose(unit_rows(unit_rows(np.stack(single)).mean(axis=0, keepdims=True))[0], vector, atol=1e-6)


@pytest.mark.parametrize(("short_side", "size"), [(None, (32, 48)), (40, (32, 32))])
def test_pillow_resizes_as_the_antialiased_filter_of_torch_does(short_side: int | None, size: tuple[int, int]) -> None:
    import torch

    from models.preprocessing import resize

    picture = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    ours = resize_and_crop(picture, Geometry(*size, short_side, "bilinear", "even"))
    whole = size if short_side is None else (40, int(40 * 130 / 90))
    theirs = resize(torch.from_numpy(picture).permute(2, 0, 1)[None], whole)[0].permute(1, 2, 0).numpy()
    top, left = (round((found - wanted) / 2) for found, wanted in zip(whole, size, strict=True))
    assert np.abs(ours - theirs[top : top + size[0], left : left + size[1]]).max() <= 1


# Encoders


@pytest.mark.parametrize("family", FAMILIES)
def test_vector_depends_on_its_clip_alone(family: str, named: Named) -> None:
    embedder = make_embedder(named(family))
    geometry = embedder.geometry
    frames = np.random.default_rng(0).integers(0, 255, (7, embedder.sampling.frames, geometry.height, geometry.width, 3), dtype=np.uint8)
    features = embedder.embed(frames)
    assert features.shape == (7, embedder.dimensions) and features.dtype == np.float32
    assert np.array_equal(embedder.embed(frames[4:6]), features[4:6])
    assert np.array_equal(embedder.embed(frames[::-1]), features[::-1])
    assert len(np.unique(features, axis=0)) == 7 and embedder.embed(frames[:0]).shape == (0, embedder.dimensions)


@pytest.mark.parametrize("pooling", ["own", "patches"])
def test_dinov2_gives_what_transformers_gives_on_pixels_of_its_own_processor(pooling: str, named: Named) -> None:
    import torch
    from PIL import Image
    from transformers import Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    embedder = make_embedder(named("dinov2", frames=1, pooling=pooling))
    picture = np.random.default_rng(1).integers(0, 255, (50, 77, 3), dtype=np.uint8)
    ours = embedder.embed(resize_and_crop(picture, embedder.geometry)[None, None])[0]
    folder = named("dinov2").encoder
    pixels = BitImageProcessorPil.from_pretrained(folder)(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        tokens = Dinov2Model.from_pretrained(folder)(pixels).last_hidden_state[0]
    theirs = tokens[0] if pooling == "own" else tokens[1:].mean(dim=0)
    assert np.allclose(ours, unit_rows(theirs[None].numpy())[0], atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "patches"])
def test_dinov3_gives_what_transformers_gives_up_to_whole_grey_levels(pooling: str, named: Named) -> None:
    """Its processor needs torchvision: the formula is rescale, antialiased bilinear resize, normalise, all in float."""
    import torch
    import torch.nn.functional as F
    from transformers import DINOv3ViTModel

    embedder = make_embedder(named("dinov3", frames=1, pooling=pooling))
    picture = np.random.default_rng(1).integers(0, 255, (50, 77, 3), dtype=np.uint8)
    prepared = resize_and_crop(picture, embedder.geometry)
    resized = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, (32, 32), mode="bilinear", antialias=True)
    model = DINOv3ViTModel.from_pretrained(named("dinov3").encoder)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def theirs(values: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            tokens = model((values - mean) / std).last_hidden_state
        return unit_rows((tokens[:, 0] if pooling == "cls" else tokens[:, 5:].mean(dim=1)).numpy())[0]

    ours = embedder.embed(prepared[None, None])[0]
    assert np.allclose(ours, theirs(torch.from_numpy(prepared.copy()).permute(2, 0, 1)[None] / 255), atol=1e-6)
    assert float(ours @ theirs(resized)) > 0.999


def test_vjepa2_sees_the_window_that_tubelet_features_sees(named: Named, tmp_path: Path) -> None:
    from models.weights import load_encoder
    from pipelines.features.encoding import video_features

    # 36 px is the short side that 32 px are cut from: nothing is resized, so that nothing is rounded either.
    write_video(tmp_path / "one.mp4", shot(7, 8), RATE)
    config = named("vjepa2", frames="clip")
    build_embeddings(tmp_path, write_clips(tmp_path / "clips", clip_rows(tmp_path / "one.mp4", [0, 8])), config=config, workers=1)
    (features,) = video_features(load_encoder(config.encoder), tmp_path / "one.mp4")
    assert np.allclose(read_vectors(tmp_path)[1], unit_rows(features.values[None]), atol=1e-6)


def test_vjepa2_takes_other_windows_and_sizes_and_tells_it_in_their_names(named: Named) -> None:
    embedder = make_embedder(named("vjepa2", window_frames=6, fps=2, image_size=48))
    assert (embedder.sampling, embedder.geometry.short_side) == (Sampling(6, fps=2.0), 54)
    with pytest.raises(InputError, match="window_frames 4"):
        _ = make_embedder(named("vjepa2", window_frames=5)).digest
    with pytest.raises(InputError, match="image_size 32x32"):
        _ = make_embedder(named("vjepa2", image_size=33)).digest


@pytest.mark.parametrize(("family", "options", "match"), [
    ("vjepa2", {"frames": 3}, "is a clip encoder"), ("dinov2", {"frames": "clip"}, "cannot see clip frames"), ("efficientnet", {"frames": "clip"}, "cannot see"),
    ("vjepa2", {"pooling": "cls"}, "no class token"), ("efficientnet", {"pooling": "cls"}, "no class token"), ("dinov2", {"image_size": 30}, "divide into patches"),
    ("dinov2", {"encoder": "facebook/dinov2-large"}, "never uses the network"),
    ("dinov2", {"encoder": "resnet"}, "there is no encoder"),
])  # fmt: skip
def test_settings_that_an_encoder_cannot_meet_are_refused(family: str, options: dict[str, Any], match: str, named: Named) -> None:
    with pytest.raises(InputError, match=match):
        make_embedder(named(family, **options))


@pytest.mark.parametrize(("options", "match"), [({"device": "cuda"}, "no GPU"), ({"precision": "bf16"}, "bf16 is for GPUs"), ({"device": "abacus"}, "no device")])
def test_devices_that_are_not_there_are_refused(options: dict[str, Any], match: str, named: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for family in FAMILIES:
        with pytest.raises(InputError, match=match):
            embedder = make_embedder(named(family, **options))
            embedder.embed(np.zeros((1, embedder.sampling.frames, embedder.geometry.height, embedder.geometry.width, 3), np.uint8))


def test_artefact_names_are_looked_for_in_the_store(tmp_path: Path) -> None:
    from pipelines.store import Store

    Store.open(tmp_path / "store")
    with pytest.raises(MissingArtefact, match="neither a file here nor an artefact"):
        make_embedder(EmbeddingSettings(encoder="cooled_encoder[nano]"), tmp_path / "store")
    with pytest.raises(InputError, match="never uses the network"):
        make_embedder(EmbeddingSettings(encoder="facebook/dinov2-large"), tmp_path / "store")


def test_damaged_model_folders_are_refused_with_a_remedy(dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(change: Callable[[Path], Any]) -> EmbeddingSettings:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(dinov2, folder)
        change(folder)
        return EmbeddingSettings(encoder=str(folder))

    def preparation(**changes: Any) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            path = folder / "preprocessor_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return change

    def configuration(**changes: Any) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return change

    cases = [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "how pictures are prepared"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks its weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (configuration(model_type="clip"), "no encoder that clips can be embedded with"),
        (configuration(patch_size=None), "does not describe the model"),
        (preparation(size={"shortest_edge": 20}), "not done here"), (preparation(resample=1), "not done here"),
        (preparation(do_resize=False), "not done here"), (preparation(image_mean=[0.5]), "does not scale values"),
    ]  # fmt: skip
    for change, match in cases:
        with pytest.raises(InputError, match=match):
            _ = make_embedder(broken(change)).digest
    deeper = make_embedder(broken(configuration(num_hidden_layers=3)))
    with pytest.raises(InputError, match="lacks weights of its own configuration"):
        deeper.embed(np.zeros((1, 3, 28, 28, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="extra hf"):
        make_embedder(EmbeddingSettings(encoder=str(dinov2))).embed(np.zeros((1, 3, 28, 28, 3), np.uint8))


# What versions a vector


@pytest.mark.parametrize("family", FAMILIES)
def test_digest_changes_with_everything_that_changes_a_vector_and_with_nothing_else(family: str, named: Named, tmp_path: Path) -> None:
    clips = family == "vjepa2"
    options: list[dict[str, Any]] = [{"batch": 9}, {"threads": 2}, {"image_size": {"dinov2": 42, "efficientnet": 48}.get(family, 64)}, {"device": "cuda"}]
    options += [{"window_frames": 2}, {"fps": 2.0}] if clips else [{"frames": 1}, {"frames": 2}]
    options += [{"pooling": "patches"}] if family.startswith("dino") else []
    base = named(family)
    digests = [make_embedder(base).digest] + [make_embedder(named(family, **changed)).digest for changed in options if not (clips and "device" in changed)]
    assert len(set(digests)) == len(digests)
    assert make_embedder(named(family, licence="mine", frames="clip" if clips else 3)).digest == digests[0]
    if family == "efficientnet":
        return
    copy = shutil.copytree(base.encoder, tmp_path / "elsewhere")
    assert make_embedder(named(family, encoder=str(copy))).digest == digests[0]
    weights = next(copy.glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors[sorted(tensors)[0]] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert make_embedder(named(family, encoder=str(copy))).digest not in digests


def test_digest_changes_with_how_the_folder_says_pictures_are_prepared(dinov2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dinov2, tmp_path / "copy")
    digests = {make_embedder(EmbeddingSettings(encoder=str(copy))).digest}
    said = json.loads((copy / "preprocessor_config.json").read_text())
    for change in ({"resample": 2}, {"size": {"shortest_edge": 28}}, {"image_std": [1, 1, 1]}, {"rescale_factor": 1.0}):
        (copy / "preprocessor_config.json").write_text(json.dumps({**said, **change}))
        digests.add(make_embedder(EmbeddingSettings(encoder=str(copy))).digest)
    assert len(digests) == 5


def test_licences_reach_the_record_and_that_of_dinov3_always_does(dinov2: Path, dinov3: Path, tmp_path: Path) -> None:
    card = "---\nlanguage: en\nlicense: other\nlicense_name: {}\n---\n# A model\n"
    assert make_embedder(EmbeddingSettings()).licence == "Apache-2.0"
    assert make_embedder(EmbeddingSettings(encoder=str(dinov2))).licence == "not stated"
    assert make_embedder(EmbeddingSettings(encoder=str(dinov2), licence="Apache-2.0")).licence == "Apache-2.0"
    assert make_embedder(EmbeddingSettings(encoder=str(dinov3))).licence == "DINOv3 License"
    assert make_embedder(EmbeddingSettings(encoder=str(dinov3), licence="MIT")).licence == "DINOv3 License; stated: MIT"
    copy = shutil.copytree(dinov3, tmp_path / "copy")
    (copy / "README.md").write_text(card.format("dinov3-license"))
    assert make_embedder(EmbeddingSettings(encoder=str(copy))).licence == "dinov3-license"
    copy = shutil.copytree(dinov2, tmp_path / "other")
    for text, licence in ((card.format("my-own"), "my-own"), ("---\nlicense: mit\n---\n", "mit"), ("# no front matter", "not stated"), ("---\n: [\n---\n", "not stated")):
        (copy / "README.md").write_text(text)
        assert make_embedder(EmbeddingSettings(encoder=str(copy))).licence == licence


def test_record_says_how_vectors_were_made_and_with_which_versions(embedded: Path) -> None:
    record = json.loads((embedded / "encoder.json").read_text())
    assert record["name"] == "efficientnet-lite0" and record["digest"] == make_embedder(SMALL).digest and record["licence"] == "Apache-2.0"
    assert record["sampling"] == {"rule": "at_or_before_shares", "frames": 3, "positions": [0.25, 0.5, 0.75]}
    assert record["geometry"]["resizer"] == "libswscale" and (record["batch"], record["threads"], record["precision"]) == (5, 1, "fp32")
    assert {"av", "libavcodec", "libswscale", "torch"} <= record["versions"].keys()


def test_settings_of_the_paper_are_dinov2_on_the_middle_frame(dinov2: Path) -> None:
    embedder = make_embedder(stage_options("vjepa2", "embedding", {"encoder": str(dinov2)}))
    assert embedder.sampling == Sampling(1, (0.5,)) and embedder.identity["pooling"] == "cls"


# The stage


def test_every_clip_has_a_unit_vector_in_the_order_of_the_clips(rows: list[dict[str, Any]], embedded: Path, clips_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    summary = build_embeddings(tmp_path, clips_folder, config=SMALL, progress=lambda done, total: told.append((done, total)), workers=1)
    clip_ids, vectors = read_vectors(tmp_path)
    assert vectors.shape == (summary["clips"], 1280) == (13, 1280) and vectors.dtype == np.float32
    assert clip_ids == [row["clip_id"] for row in rows] and not failed(check_embeddings(tmp_path))
    assert len(np.unique(vectors.round(5), axis=0)) == 13
    assert told[-1] == (13, 13) and told == sorted(told)
    assert summary["cost"]["items"] == 13 and summary["cost"]["cpu_s"] > 0 and (summary["rejected"], summary["codes"]) == (0, {})
    assert not without_vector(tmp_path) and np.array_equal(read_vectors(tmp_path, mapped=True)[1], vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip_ids.json", "embeddings.npy", "encoder.json", "quarantine.parquet"]


@pytest.mark.parametrize(("workers", "rows_per_part"), [(1, 256), (2, 4)])
def test_vectors_do_not_depend_on_workers_parts_or_order(workers: int, rows_per_part: int, rows: list[dict[str, Any]], embedded: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(rows))
    folder = write_clips(tmp_path / "clips", [rows[index] for index in order])
    build_embeddings(tmp_path, folder, config=SMALL, workers=workers, rows_per_part=rows_per_part)
    assert np.array_equal(read_vectors(tmp_path)[1], read_vectors(embedded)[1][order])


def test_clips_that_cannot_be_decoded_any_more_are_typed_rows_and_the_others_go_on(rows: list[dict[str, Any]], embedded: Path, tmp_path: Path) -> None:
    films = {Path(row["path"]).name: Path(shutil.copy(row["path"], tmp_path)) for row in rows}
    moved = [{**row, "path": str(films[Path(row["path"]).name])} for row in rows]
    films["a.mp4"].unlink()
    films["b.mp4"].write_bytes(b"once upon a time")
    write_video(films["c.mp4"], shot(20, 12), RATE)  # shorter than it was: the first clip is there, the others are not
    for name in ("clips", "embedded"):
        (tmp_path / name).mkdir()
    summary = build_embeddings(tmp_path / "embedded", write_clips(tmp_path / "clips", moved), config=SMALL, workers=1)
    rejects = read_table(tmp_path / "embedded" / "quarantine.parquet", QUARANTINE).to_pylist()
    assert (summary["clips"], summary["rejected"]) == (1, 12) and summary["codes"] == {"decode_error": 7, "unreadable": 5}
    assert read_vectors(tmp_path / "embedded")[0] == ["c0000"]
    by_name = {Path(row["path"]).name: row for row in rejects}
    assert by_name["a.mp4"]["code"] == Reject.UNREADABLE and by_name["a.mp4"]["bytes"] is None
    assert by_name["b.mp4"]["code"] == Reject.DECODE_ERROR and by_name["b.mp4"]["bytes"] == 16
    assert "has changed" in by_name["c.mp4"]["detail"] and not any(row["poison"] for row in rejects)
    assert without_vector(tmp_path / "embedded") == {(row["clip_id"], row["path"]) for row in moved if row["clip_id"] != "c0000"}
    assert set(failed(check_embeddings(tmp_path / "embedded"))) == {"not_empty"}  # most of the batch is gone


def test_hung_decoder_costs_the_clips_of_its_file_only(
    rows: list[dict[str, Any]], clips_folder: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_decoder.py").write_text(
        "import time\nfrom pipelines.curation.clip_frames import frames_of\n"
        "def frames(job):\n    if job.path.endswith('a.mp4'):\n        time.sleep(600)\n    return frames_of(job)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(clip_frames, "FRAMES", "hanging_decoder:frames")
    (tmp_path / "out").mkdir()
    summary = build_embeddings(tmp_path / "out", clips_folder, config=SMALL, timeout_s=3.0, workers=1)
    rejects = read_table(tmp_path / "out" / "quarantine.parquet", QUARANTINE).to_pylist()
    assert summary["codes"] == {"timeout": 5} and all(row["poison"] and row["attempts"] == 2 for row in rejects)
    kept = [number for number, row in enumerate(rows) if not row["path"].endswith("a.mp4")]
    assert np.array_equal(read_vectors(tmp_path / "out")[1], read_vectors(embedded)[1][kept])


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.curation.embedding import EmbeddingSettings, build_embeddings

def progress(done, total):
    if done >= 7:  # in the middle of the third part of three clips: two are finished
        os.kill(os.getpid(), signal.SIGKILL)

build_embeddings(Path(sys.argv[2]), Path(sys.argv[1]), config=EmbeddingSettings(image_size=32, batch=5), work=Path(sys.argv[3]), workers=1, rows_per_part=3, progress=progress)
"""


def test_killed_stage_goes_on_after_its_last_finished_part_and_ends_with_the_same_bytes(clips_folder: Path, embedded: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(clips_folder), str(out), str(work)], env=environment, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    finished = sorted(path.name for path in work.glob("vectors-*"))
    assert finished == ["vectors-000000", "vectors-000001"] and not list(out.iterdir())
    summary = build_embeddings(out, clips_folder, config=SMALL, work=work, rows_per_part=3, workers=1)
    assert (summary["cost"]["parts"], summary["cost"]["parts_found"]) == (5, 2)
    for name in ("embeddings.npy", "clip_ids.json", "encoder.json", "quarantine.parquet"):
        assert (out / name).read_bytes() == (embedded / name).read_bytes(), name


def test_empty_table_of_clips_gives_an_artefact_that_fails_its_check(tmp_path: Path) -> None:
    summary = build_embeddings(tmp_path, write_clips(tmp_path / "clips", []), config=SMALL)
    assert summary["clips"] == 0 and read_vectors(tmp_path)[1].shape == (0, 1280)
    assert set(failed(check_embeddings(tmp_path))) == {"not_empty"}


def test_pictures_that_wait_are_bounded_whatever_their_size(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    one_file = [row for row in rows if row["path"].endswith("a.mp4")]
    monkeypatch.setattr(clip_frames, "BYTES_PER_JOB", 2 * 3 * 16 * 16 * 3 + 1)  # room for two clips
    with FrameSource(image_sampling(3), Geometry(16, 16), workers=1) as source:
        groups = list(source.groups(one_file))
    assert [group.rows for group in groups] == [[0, 1], [2, 3], [4]] and all(group.frames.shape[1:] == (3, 16, 16, 3) for group in groups)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_directions_are_unit_vectors_even_of_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    features = (random.normal(size=(6, 8)) * 10.0 ** random.uniform(-6, 6, (6, 1))).astype(np.float32)
    features[[1, 4]] = 0
    vectors, empty = directions(features)
    assert empty == 2 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[1], np.eye(8, dtype=np.float32)[0]) and np.array_equal(vectors[1], vectors[4])
    assert np.array_equal(vectors[[0, 2, 3, 5]], unit_rows(features[[0, 2, 3, 5]]))


def test_black_clips_are_embedded_like_others(tmp_path: Path) -> None:
    write_video(tmp_path / "black.mp4", np.zeros((12, 36, 48, 3), np.uint8), RATE)
    build_embeddings(tmp_path, write_clips(tmp_path / "clips", clip_rows(tmp_path / "black.mp4", [0, 6, 12])), config=SMALL, workers=1)
    assert not failed(check_embeddings(tmp_path))
    assert np.allclose(np.diff(read_vectors(tmp_path)[1], axis=0), 0, atol=1e-3)


def test_damaged_vectors_fail_their_check(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32))
    (tmp_path / "clip_ids.json").write_text('["a", "b"]')
    assert set(failed(check_embeddings(tmp_path))) == {"not_empty"}
    (tmp_path / "clip_ids.json").write_text('["a"]')
    with pytest.raises(StoreError, match="is damaged"):
        read_vectors(tmp_path)


def test_features_that_are_not_finite_stop_the_run(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(dinov2, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["layernorm.weight"][0] = float("nan")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        make_embedder(EmbeddingSettings(encoder=str(copy))).embed(np.zeros((1, 3, 28, 28, 3), np.uint8))
