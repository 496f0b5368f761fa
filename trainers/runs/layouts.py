"""Samples for the prompts of a benchmark, in the folders that the benchmark's own program reads.

The sample k of prompt n has the same noise whatever the layout, the number of samples of a prompt, and the number of
processes. Prompts are sampled in fixed groups, so a resumed command makes the same pictures to the bit.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.encoders.protocols import TextEncoder
from distill.errors import UserError, require
from distill.random import Random
from distill.records import read_record
from trainers.data.batches import unit_noise
from trainers.data.benchmark_prompts import BenchmarkPrompt, read_prompts
from trainers.io.atomic import atomic_file
from trainers.io.images import denoiser_of, grid, has_no_decoder, to_images
from trainers.recipe.strict_yaml import dump
from trainers.runs.draw import Drawable, embed_null

_TOGETHER = 20  # samples of a group, at most, unless a single prompt has more
_WINDOW = 512  # prompts whose embeddings are in memory at once; the encoder is freed before they are sampled
_MOST = 2**12  # of a prompt
_LONGEST_NAME = 200  # bytes of a picture's name without its ending, since it is written beside under a longer one

Place = tuple[Path, tuple[int, ...]]
"""A picture's file within the folder, and the numbers of the samples of its prompt that it shows."""


@dataclass(frozen=True)
class PictureLayout:
    """The folder of one benchmark.

    Attributes:
        samples: The number of samples of a prompt that the benchmark's authors take.
        places: (number of the prompt, prompt, samples of a prompt) -> its pictures.
        texts: (prompts, samples of a prompt) -> the texts of further files, by their places.
        check: (prompts, samples of a prompt) -> None. It raises UserError where the benchmark cannot take these.
    """

    samples: int
    places: Callable[[int, BenchmarkPrompt, int], Sequence[Place]]
    texts: Callable[[Sequence[BenchmarkPrompt], int], Mapping[Path, str]]
    check: Callable[[Sequence[BenchmarkPrompt], int], None]


def _plain_places(number: int, prompt: BenchmarkPrompt, samples: int) -> Sequence[Place]:
    return [(Path(f"{number * samples + k:06d}.png"), (k,)) for k in range(samples)]


def _plain_texts(prompts: Sequence[BenchmarkPrompt], samples: int) -> Mapping[Path, str]:
    lines = []
    for number, prompt in enumerate(prompts):
        for file, _ in _plain_places(number, prompt, samples):
            entry = {"file_name": "", **prompt.entry, "prompt": prompt.text} | {"file_name": file.name}
            lines.append(json.dumps(entry, ensure_ascii=False))
    return {Path("prompts.jsonl"): "".join(f"{line}\n" for line in lines)}


def _geneval_places(number: int, prompt: BenchmarkPrompt, samples: int) -> Sequence[Place]:
    return [(Path(f"{number:05d}/samples/{k:04d}.png"), (k,)) for k in range(samples)]


def _geneval_texts(prompts: Sequence[BenchmarkPrompt], samples: int) -> Mapping[Path, str]:
    return {Path(f"{number:05d}/metadata.jsonl"): f"{prompt.line}\n" for number, prompt in enumerate(prompts)}


def _geneval_check(prompts: Sequence[BenchmarkPrompt], samples: int) -> None:
    for prompt in prompts:
        if not prompt.line or not {"tag", "include"} <= prompt.entry.keys():
            raise UserError(
                "layout: geneval reads the tag and the objects of each prompt; give evaluation_metadata.jsonl"
            )


def _dpg_places(number: int, prompt: BenchmarkPrompt, samples: int) -> Sequence[Place]:
    return [(Path(f"{prompt.name}.png"), tuple(range(samples)))]


def _dpg_check(prompts: Sequence[BenchmarkPrompt], samples: int) -> None:
    require(samples in (1, 4), f"layout: dpg takes 1 sample a prompt, or a square of 4, got {samples}")
    for prompt in prompts:
        name = prompt.name
        plain = name.isprintable() and Path(name).name == name and "." not in name
        if not name or not plain or len(name.encode()) > _LONGEST_NAME:
            raise UserError(
                "layout: dpg names a picture as the prompt's file; give the folder of prompts, or a file with a column"
                f" id of plain names, got {prompt.name!r:.80}"
            )
    require(
        len({one.name for one in prompts}) == len(prompts),
        "layout: dpg names a picture as the prompt's file, and a name comes twice",
    )


LAYOUTS: dict[str, PictureLayout] = {
    "plain": PictureLayout(1, _plain_places, _plain_texts, lambda prompts, samples: None),
    # README.md of github.com/djghosh13/geneval: four samples, and the line of each prompt as it was
    "geneval": PictureLayout(4, _geneval_places, _geneval_texts, _geneval_check),
    # dpg_bench/compute_dpg_bench.py of github.com/TencentQQGYLab/ELLA: the four quarters of one picture, row by row
    "dpg": PictureLayout(4, _dpg_places, lambda prompts, samples: {}, _dpg_check),
}


@dataclass(frozen=True)
class WrittenLayout:
    """The result of `write_layout`.

    Attributes:
        prompts: The number of prompts.
        samples: The number of samples of each prompt.
        made: The number of pictures that were made now.
        kept: The number of pictures of this part that were there already.
    """

    prompts: int
    samples: int
    made: int
    kept: int


def write_layout(
    trained: Drawable,
    prompts: str | Path,
    out: str | Path,
    layout: str = "plain",
    samples: int | None = None,
    seed: int = 0,
    teacher: bool = False,
    part: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = lambda step: None,
) -> WrittenLayout:
    """Write samples for the prompts of a benchmark. A picture that is there and readable is not made again.

    The file OUT.json beside the folder says what the pictures are of, and a folder of other pictures is refused.

    Args:
        trained: The trained model, whose teacher takes prompts.
        prompts: The published file or folder of prompts (`read_prompts`).
        out: The folder to write.
        layout: plain (numbered pictures and prompts.jsonl), geneval or dpg.
        samples: The number of samples of a prompt. None for the layout's.
        seed: The seed of the noise.
        teacher: Whether to sample the teacher in place of the student.
        part: (p, n) for the p-th of n parts of the prompts, from 0, each of which a process of its own may make. The
            first writes the files beside the pictures.
        say: A function that is told each step.

    Raises:
        UserError: The model takes no prompts or makes no pictures, the prompts do not fit the layout, or the folder
            holds other pictures.
    """
    require(layout in LAYOUTS, f"layout: must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    form, read, out = LAYOUTS[layout], read_prompts(prompts), Path(out)
    count = form.samples if samples is None else samples
    require(1 <= count <= _MOST, f"samples: must be 1 to {_MOST:,} a prompt, got {count}")
    require(0 <= part[0] < part[1], f"part: must be one of 0 to {part[1] - 1}, got {part[0]}")
    form.check(read, count)
    encoder, draw = _text_encoder(trained), _draw(trained, teacher)
    try:
        _claim(out, _origin(trained, read, layout, count, seed, teacher))
        for place, text in form.texts(read, count).items() if part[0] == 0 else ():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(out / place) as staging:
                staging.write_text(text, encoding="utf-8")
        groups = list(_groups(len(read), count))[part[0] :: part[1]]
        asked = {n: form.places(n, read[n], count) for group in groups for n in group}
        missing = {file for places in asked.values() for file, _ in places if not _is_there(out / file)}
        todo = [group for group in groups if any(file in missing for n in group for file, _ in asked[n])]
        for window in _windows(todo):
            say(f"prompts {window[0][0] + 1:,} to {window[-1][-1] + 1:,} of {len(read):,}: embedded")
            conds = _embedded(encoder, [[read[n].text for n in group] for group in window], trained, teacher)
            for group, cond in zip(window, conds, strict=True):
                say(f"prompt {group[0] + 1:,} of {len(read):,}")
                for n, images in zip(group, draw(group, cond, count, seed), strict=True):
                    _save(images, {file: shown for file, shown in asked[n] if file in missing}, out)
    except OSError as error:
        raise UserError(f"out: cannot write '{out}': {error}") from error
    return WrittenLayout(len(read), count, len(missing), sum(map(len, asked.values())) - len(missing))


def _text_encoder(trained: Drawable) -> TextEncoder:
    """Return the encoder of prompts. Raise UserError if there is none, or if the samples are no pictures."""
    network = denoiser_of(trained.model).network
    if network.text_encoder is None:
        raise UserError("prompts: the teacher takes no prompts")
    if has_no_decoder(trained.model):
        raise UserError(
            "layout: the samples are latents and have no decoder; a vae/ in the teacher's folder decodes them"
        )
    if len(shape := denoiser_of(trained.model).image_shape or ()) != 3:
        raise UserError(f"layout: takes pictures (C, H, W), the model makes {shape}")
    encoder: TextEncoder = network.text_encoder
    encoder.device = trained.device
    return encoder


def _draw(trained: Drawable, teacher: bool) -> Callable[[range, Condition, int, int], Tensor]:
    """Return a function (numbers of G prompts, their condition, K samples of each, seed) -> images [G, K, C, H, W]."""
    sampler = trained.teacher_sampler if teacher else trained.sampler
    if sampler is None:
        raise UserError("teacher: this run is itself a teacher's")
    shape = denoiser_of(trained.model).network.shape

    def draw(group: range, cond: Condition, samples: int, seed: int) -> Tensor:
        numbers = torch.tensor(group, device=trained.device)
        # The first sample of prompt n has the noise of sample n of `distill sample`, and later ones have far numbers.
        index = (numbers[:, None] + torch.arange(samples, device=trained.device) * 2**32).flatten()
        noise = unit_noise(shape, Random.at(seed, index).stream("sample"))
        rows = torch.arange(len(group)).repeat_interleave(samples)
        images: Tensor = to_images(sampler(noise, cond.rows(rows)), trained.model).cpu()
        return images.reshape(len(group), samples, *images.shape[1:])

    return draw


def _embedded(
    encoder: TextEncoder, groups: Sequence[Sequence[str]], trained: Drawable, teacher: bool
) -> list[Condition]:
    """Return the conditions of groups of prompts. The encoder's memory is freed before anything is sampled."""
    if (sampled := trained.teacher if teacher else trained.model) and isinstance(sampled, Denoiser):
        embed_null(trained, sampled.network)  # guidance needs the null condition
    conds = [Condition(encoder.encode(list(texts))) for texts in groups]
    encoder.free()
    return conds


def _groups(prompts: int, samples: int) -> Iterator[range]:
    """Yield the numbers of the prompts that are sampled together."""
    size = max(1, _TOGETHER // samples)
    for first in range(0, prompts, size):
        yield range(first, min(first + size, prompts))


def _windows(groups: Sequence[range]) -> Iterator[Sequence[range]]:
    """Yield neighbouring groups of at most _WINDOW prompts together."""
    size = max(1, _WINDOW // max((len(group) for group in groups), default=1))
    for first in range(0, len(groups), size):
        yield groups[first : first + size]


def _is_there(file: Path) -> bool:
    """Return whether a picture can be read to its end."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):  # as Pillow says that a file is missing, cut short or no picture
        return False
    return True


def _save(images: Tensor, places: Mapping[Path, tuple[int, ...]], out: Path) -> None:
    """Write pictures of the images [K, C, H, W] of a prompt: single ones, or the four quarters of a square.

    Args:
        images: The images.
        places: {file within the folder: the numbers of the images that it shows}.
        out: The folder.
    """
    for file, shown in places.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / file) as staging:
            grid(images[list(shown)], 1 if len(shown) == 1 else 2, least=1, border=0).save(staging, format="png")


def _origin(
    trained: Drawable, prompts: Sequence[BenchmarkPrompt], layout: str, samples: int, seed: int, teacher: bool
) -> dict[str, Any]:
    """Return what the pictures are of, as plain values."""
    digest = hashlib.sha256(json.dumps([[one.name, one.text] for one in prompts]).encode()).hexdigest()
    model = "teacher" if teacher else {"images": trained.images, "average": trained.average}
    run = {"run": trained.run.name, "folder": trained.folder.name, "model": model}
    if teacher or isinstance(trained.model, Denoiser):
        run["sampler"] = dump(trained.run)["sampler"]
    return {**run, "layout": layout, "samples": samples, "seed": seed, "prompts": digest}


def _claim(out: Path, origin: Mapping[str, Any]) -> None:
    """Write what the pictures in a folder are of. Raise UserError if they are of something else."""
    record = out.with_name(f"{out.name}.json")
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):  # the processes of all parts may begin at once
        if record.is_file():
            before = read_record(record)
            if other := [key for key, value in origin.items() if before.get(key) != value]:
                raise UserError(f"out: '{out}' holds pictures of another {other[0]}; name another folder, or remove it")
            return
        require(not any(out.iterdir()), f"out: '{out}' is not empty, and no '{record.name}' says what it holds")
        with atomic_file(record) as staging:
            staging.write_text(json.dumps(origin, indent=2) + "\n")
