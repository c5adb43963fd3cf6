"""The command line: parse, call the library, show. Holds no arithmetic and decides nothing that a Python caller could
not."""
import json
import sys
from pathlib import Path

import click
import numpy as np

from . import terminal
from .calibrate import Calibration, calibrate
from .cli_generate import generate_command
from .compensate import compensate
from .errors import CqError
from .formats import load, save
from .quantize import quantize
from .report import samples
from .report.bench import bench
from .report.compare import compare, default_strategies
from .report.evaluate import ENCODER, LM
from .report.inputs import needs_samples
from .report.mix import mix
from .report.order import check_order
from .report.plot import check_plot, plot
from .report.training import train_folder
from .report.trials import best_of, in_words
from .rotate import rotate
from .strategies import OBSERVERS, QAT, STRATEGIES, Mixed, Scheme, Static, Training
from .system import info

_CALIBRATION_SAMPLES = 500  # evenly spread over the files given: more change little and take longer
_STABLE = 0.05  # of a range, in the median over places: a step of the scale that is 5 % off costs 10 % of error, 0.4 dB
_EMBED_AT_ONCE = 256  # texts between two moves of the progress bar


_rotated = click.option("--rotate", "rotated", is_flag=True, help="Turn the hidden features of a Llama-type model first, so that "
                        "none stands out: less is lost in int8.")
_learning_rate = click.option("--learning-rate", type=float, help="For qat: at its peak; without it, "
                              f"{QAT.learning_rate:g}, as found on MiniLM.")


@click.group(cls=terminal.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cquant", prog_name="cq", message="%(prog)s %(version)s")
def main() -> None:
    """Small and fast int8 transformers on ordinary CPUs."""


main.add_command(generate_command)


@main.command("compare", short_help="Measure float32 and every strategy side by side.")
@click.argument("model", required=False)
@click.option("--data", multiple=True, metavar="FILE", help=".tsv of sentence pairs (score, sentence, sentence) or .txt; a "
              "folder or a glob of them. Without it: the text that ships with cq.")
@click.option("--calibration", multiple=True, metavar="FILE", help="Such files again, others than the data, to calibrate "
              f"static on, and to train on; at most {_CALIBRATION_SAMPLES} samples are taken, evenly spread.")
@click.option("--metric", type=click.Choice(["perplexity", "bits_per_token", "top1", "kl", "flips", "spearman", "cosine"]),
              help="Accuracy to report.")
@click.option("--strategy", "names", multiple=True, type=click.Choice(list(STRATEGIES)), help="Only these; may be repeated.")
@click.option("--qat", type=click.IntRange(min=1), metavar="STEPS", help="Also train behind static int8, for so many steps "
              "on the calibration samples: minutes rather than seconds.")
@_learning_rate
@click.option("--mix", "mix_file", metavar="FILE", help="Also the mix in the record that `cq quantize --strategy mixed` wrote.")
@click.option("--with", "ready", multiple=True, metavar="FILE", help="Also this checkpoint, which `cq quantize` made of MODEL; "
              "may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N samples of the data, evenly spread.")
@click.option("--layers", is_flag=True, help="Also quantize each layer alone: what it costs, why, and what would help.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw accuracy against speed and memory, and the layers, as .svg, .png "
              "or .pdf; needs the extra cquant[plot].")
@click.option("--check-order", "ordered", is_flag=True, help="Fail unless accuracy falls from weight-only to dynamic to static "
              "where schemes are equal, in SQNR, and rises with --qat.")
@_rotated
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is stdout.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the report as Markdown; - is stdout.")
def compare_command(model, data, calibration, metric, names, qat, learning_rate, mix_file, ready, limit, layers, plot_file,
                    ordered, rotated, json_file, markdown_file) -> None:
    """float32 and every strategy side by side: size, memory, speed and accuracy.

    MODEL is a Hugging Face folder, .safetensors, .npz, .gguf or a cq checkpoint; without it, the small model in the
    wheel, beside which lies what quantization-aware training made of it."""
    if json_file == markdown_file == "-":
        raise click.UsageError("only one of --json and --markdown can go to stdout")
    if learning_rate is not None and not qat:
        raise click.UsageError("--learning-rate is for --qat")
    for target in (json_file, markdown_file, plot_file):
        _check_target(target)
    if plot_file:
        check_plot(plot_file)
    name = model or samples.shipped_model().name
    if model is None or not data:
        calibration = calibration or [samples.shipped_model() / "calibration.txt"]
    data = data or [samples.shipped_model() / "evaluation.txt"]
    if model is None and not (names or qat or rotated):
        ready = (samples.shipped_model() / "qat.safetensors", *ready)
    model = _opened(model or samples.shipped_model(), rotated)
    chosen = [s for s in default_strategies(qat, QAT.learning_rate if learning_rate is None else learning_rate)
              if not names or s.name in names or isinstance(s, QAT)]
    chosen += [best_of(mix_file)] if mix_file else []
    chosen += map(Path, ready)
    with terminal.progress() as progress:
        data = samples.read([Path(path) for path in data], model)
        data = data.limit(limit) if limit else data
        report = compare(model, data, chosen, _calibration(calibration, model), metric, progress,
                         layers=layers or bool(plot_file)).named(name)
    _write(json_file, report.to_json() + "\n")
    _write(markdown_file, report.to_markdown())
    if plot_file:
        plot(report, plot_file)
    if "-" not in (json_file, markdown_file):
        terminal.console().print(report.table(), *([report.layers.show()] if layers else []))
    if ordered:
        click.echo(check_order(report, chosen), err="-" in (json_file, markdown_file))


@main.command("bench", short_help="Time a model, beside what the machine can do.")
@click.argument("model", required=False)
@click.option("--strategy", "names", multiple=True, type=click.Choice(["float32", *STRATEGIES]), help="Only these; may be "
              "repeated. Without it: all, static only where there is something to calibrate on.")
@click.option("--shape", "shapes", multiple=True, type=terminal.Shape(), metavar="SEQUENCESxLENGTH", help="Batches to time, of "
              "random tokens; may be repeated. Without it: 1x16 and 8x128.")
@click.option("--calibration", multiple=True, metavar="FILE", help="For static: .tsv or .txt files, folders or globs.")
@click.option("--profile", "profiled", is_flag=True, help="Also show where one forward pass spends its time, part by part.")
@click.option("--json", "json_file", metavar="FILE", help="Write the numbers as JSON; - is stdout.")
def bench_command(model, names, shapes, calibration, profiled, json_file) -> None:
    """Milliseconds, tokens per second and percent of the machine's peak, strategy by strategy.

    MODEL is a Hugging Face folder, .safetensors, .npz, .gguf or a cq checkpoint (one quantized is timed as it is); without
    it, the small model that ships with cq. OMP_NUM_THREADS sets the number of threads."""
    _check_target(json_file)
    title = model or samples.shipped_model().name
    calibration = calibration or (() if model else [samples.shipped_model() / "calibration.txt"])
    model = load(model or samples.shipped_model())
    if model.strategy and (names or calibration):
        raise click.UsageError(f"{title} is already quantized ({model.strategy.name}): --strategy and --calibration are for "
                               "its float32 original")
    with terminal.progress() as progress:
        models = {model.strategy.name: model} if model.strategy else _strategies(model, names, calibration, progress)
        report = bench(title, models, shapes or [(1, 16), (8, 128)], profiled, progress)
    _write(json_file, report.to_json() + "\n")
    if json_file != "-":
        terminal.console().print(report.show())


def _strategies(model, names, calibration, progress) -> dict:
    """Name → the float32 model, and it quantized by each strategy named, or by all that can be."""
    names = names or ["float32", *(name for name in STRATEGIES if name != "static" or calibration)]
    if calibration and "static" not in names:
        raise click.UsageError("--calibration is for static, which --strategy leaves out")
    found = {}
    for name in dict.fromkeys(names):
        given = _calibration(calibration, model) if name == "static" else None
        found[name] = model if name == "float32" else quantize(model, STRATEGIES[name](), given,
                                                               lambda done, total: progress("calibrate", done, total))
    return found


@main.command("quantize")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--strategy", required=True, type=click.Choice([*STRATEGIES, "qat", "mixed"]), help="mixed: of each layer the "
              "fastest that keeps to --budget, found by measuring.")
@click.option("--target", type=click.Choice(list(STRATEGIES)), help="For qat: what it is converted to; without it, static.")
@click.option("--steps", type=click.IntRange(min=1), help=f"For qat: of the optimizer; without it, {QAT.steps}.")
@_learning_rate
@click.option("--textbook", is_flag=True, help="Affine per-tensor int8 for weights, bias and activations, min-max ranges.")
@click.option("--calibration", multiple=True, metavar="FILE", help="For static: .tsv or .txt files, folders or globs; at "
              f"most {_CALIBRATION_SAMPLES} samples are taken, evenly spread. For qat: such files to train on, all samples.")
@click.option("--data", multiple=True, metavar="FILE", help="For mixed: such files to judge by, others than --calibration's.")
@click.option("--budget", type=click.FloatRange(min=0), help="For mixed: how much of the metric may be lost against float32, in "
              "its own units, as 0.1 of Spearman ×100.")
@click.option("--metric", type=click.Choice([*LM, *ENCODER]), help="For mixed: as in `cq compare`.")
@click.option("--record", metavar="FILE", help="For mixed: a JSON file that keeps every trial, and from which a search goes on; "
              "without it, OUT with .json after it.")
@click.option("--observer", metavar="NAME", help=f"For static: how a range is found from the samples: {', '.join(OBSERVERS)}; "
              "some take a setting, like percentile:99.9.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only layers whose name matches, like 'layers.*.ffn.*'.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep layers whose name matches in float32.")
@_rotated
@click.option("--compensate", "compensated", is_flag=True, help="Round weights so that they take back each other's errors on the "
              "samples of --calibration; for weight-only, dynamic and static.")
@click.option("--strict", is_flag=True, help="Fail, naming each layer and why, where one that was to be quantized cannot be.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def quantize_command(model, out, strategy, target, steps, learning_rate, textbook, calibration, data, budget, metric, record,
                     observer, include, exclude, rotated, compensated, strict, force) -> None:
    """Quantize MODEL and save it as OUT."""
    _check_target(out)
    if out.suffix != ".safetensors":
        raise click.UsageError(f"OUT must end in .safetensors, got {out}")
    if out.exists() and not force:
        raise CqError(f"{out} exists: choose another name or add --force")
    source, goal = Path(model).resolve(), out.resolve()
    if out.exists() and (source.is_relative_to(goal) or goal.is_relative_to(source)):
        raise CqError(f"{out} is the model itself or a part of it: choose another name")
    if strategy == "mixed" and (not data or budget is None):
        raise click.UsageError("mixed needs --data to judge by, and a --budget")
    if strategy != "mixed" and (data or metric or record or budget is not None):
        raise click.UsageError(f"--data, --budget, --metric and --record are for mixed, not for {strategy}")
    if compensated and (not calibration or strategy not in STRATEGIES):
        raise click.UsageError("--compensate needs --calibration, and one of " + ", ".join(STRATEGIES))
    seen = () if compensated and strategy != "static" else calibration
    training = {name: value for name, value in (("steps", steps), ("learning_rate", learning_rate)) if value is not None}
    strategy = _strategy(strategy, target, training, textbook, seen, observer, include, exclude)
    record = record or out.with_suffix(".mix.json")
    _check_target(record)
    before, found = _size(Path(model)), None
    model = _opened(model, rotated)
    with terminal.progress() as progress:
        given = _calibration(calibration, model, None if isinstance(strategy, QAT) else _CALIBRATION_SAMPLES)
        if compensated:
            model = compensate(model, given, lambda done, total: progress("compensate", done, total))
            given = given if strategy.name == "static" else None
        if isinstance(strategy, list):
            found = mix(model, samples.read([Path(path) for path in data], model), budget, strategy, given, metric, record,
                        progress=progress)
            strategy, given = found.strategy, given if needs_samples(found.strategy) else None
        if isinstance(strategy, Static):
            given = given and calibrate(model, given, strategy.observer, lambda done, total: progress("calibrate", done, total))
        what = "train" if isinstance(strategy, QAT) else "quantize"
        quantized = quantize(model, strategy, given, lambda done, total: progress(what, done, total), strict=strict)
    save(quantized, out)
    console = terminal.console()
    coverage = quantized.coverage()
    console.print(terminal.placements(coverage))
    console.print(coverage.summary)
    if found:
        console.print(found.table())
        console.print(f"{record}: every trial; cq compare --mix takes it")
    if isinstance(given, Calibration):
        console.print(_movement(given, strategy.scheme))
    console.print(f"{out}: {before / 1e6:.2f} MB → {_size(out) / 1e6:.2f} MB")


def _strategy(name, target, training, textbook, calibration, observer, include, exclude):
    """The strategy that the options of `cq quantize` ask for, or the list of those that a mix is made of."""
    if name == "mixed":
        if include or exclude:
            raise click.UsageError("--include and --exclude are not for mixed, which chooses for every layer")
        static = {"static": (calibration, observer)} if calibration else {}
        return [_strategy(kind, target, training, textbook, *static.get(kind, ((), None)), (), ())
                for kind in STRATEGIES if kind != "static" or static]
    if name != "qat" and (target or training):
        raise click.UsageError(f"--target, --learning-rate and --steps are for qat, not for {name}")
    becomes = (target or "static") if name == "qat" else name
    if (observer and becomes != "static") or (calibration and name not in ("static", "qat")):
        raise click.UsageError(f"--calibration or --observer is for static; {becomes} needs no samples")
    choices = {"include": include or ("*",), "exclude": exclude}
    if textbook:
        choices["scheme"] = Scheme.textbook()
    if observer or (textbook and becomes == "static"):
        choices["observer"] = observer or "minmax"
    strategy = STRATEGIES[becomes](**choices)
    return QAT(target=strategy, **training) if name == "qat" else strategy


@main.command()
@click.argument("model")
@click.option("--tokens", type=click.IntRange(min=1), help="Length of the sequence whose multiply-adds count; without it, 128 or "
              "all positions if fewer.")
def inspect(model, tokens) -> None:
    """What MODEL is made of, where each of its layers runs, and how far its integer sums stay below int32's end."""
    model = load(model)
    coverage, console = model.coverage(tokens), terminal.console()
    console.print("\n".join(f"{key}: {value}" for key, value in model.config.to_dict().items()))
    console.print(f"strategy: {model.strategy.name if model.strategy else 'none (float32)'}")
    if isinstance(model.strategy, Mixed):
        console.print(f"  {in_words(model.strategy)}")
    elif model.strategy:
        choices = model.strategy.to_dict()
        choices |= choices.pop("scheme")
        console.print("\n".join(f"  {key}: {_listing(value)}" for key, value in choices.items() if key != "name"))
    console.print(terminal.placements(coverage, model.headroom()))
    console.print(coverage.summary)
    console.print(f"weights in memory: {model.nbytes / 1e6:.2f} MB")


@main.command("train", short_help="Train a small language model from a text, and quantization-aware after it.")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--like", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder whose config.json and "
              "tokenizer.json say what to train; without it, those of the model that ships with cq, which reads bytes.")
@click.option("--steps", type=click.IntRange(min=1), default=2600, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=12, show_default=True, help="Windows of one step.")
@click.option("--learning-rate", type=float, default=3e-3, show_default=True, help="At its peak.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--half", is_flag=True, help="Store float16, half the size.")
@click.option("--qat", type=click.IntRange(min=1), metavar="STEPS", help="Then train behind int8 for so many steps, against the "
              "float32 model's own logits, and save OUT/qat.safetensors.")
@click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), help="A .safetensors file to save the training "
              "to on the way, and to go on from where it exists.")
@click.option("--force", is_flag=True, help="Overwrite what OUT holds.")
def train_command(text, out, like, steps, batch_size, learning_rate, seed, half, qat, checkpoint, force) -> None:
    """Train a language model on the first 90 % of TEXT and write it as the folder OUT.

    The next 5 % are written to OUT/calibration.txt, the last to OUT/evaluation.txt, and OUT/training.json says what came out."""
    _check_target(out / "model.safetensors" if out.exists() else out)
    if (out / "model.safetensors").exists() and not force:
        raise CqError(f"{out} holds a model: choose another name or add --force")
    training = Training(steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=min(100, steps // 10), seed=seed)
    with terminal.progress() as progress:
        record = train_folder(text, out, like or samples.shipped_model(), training, half, qat, checkpoint, progress)
    terminal.console().print("\n".join(f"{name}: {_listing(value)}" for name, value in record.items()))


@main.command("info")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info_command(as_json) -> None:
    """This CPU, the instructions in use, threads, versions."""
    facts = info()
    lines = "\n".join(f"{key}: {_listing(value)}" for key, value in facts.items())
    click.echo(json.dumps(facts, indent=1) if as_json else lines)


@main.command()
@click.argument("model")
@click.argument("text", nargs=-1)
@click.option("--input", "input_file", type=click.File("r", encoding="utf-8"), help="One text per line; - is stdin.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write one (texts, dim) float32 array as "
              ".npy; without it, a JSON object per text goes to stdout.")
def embed(model, text, input_file, output) -> None:
    """One vector per TEXT, in order."""
    try:
        texts = list(text) + [line.rstrip("\n") for line in input_file or ()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--input is not UTF-8 text: {error.reason}") from None
    if not texts:
        raise click.UsageError("no texts: give TEXT, or --input with a file of lines, - for stdin")
    if output and output.suffix != ".npy":
        raise click.UsageError(f"--output writes .npy, got {output}")
    _check_target(output)
    model = load(model)
    arrays = []
    with terminal.progress(hidden=not output and sys.stdout.isatty()) as progress:
        for start in range(0, len(texts), _EMBED_AT_ONCE):
            part = texts[start:start + _EMBED_AT_ONCE]
            arrays.append(model.embed(part))
            if not output:
                for one, vector in zip(part, arrays.pop()):
                    click.echo(json.dumps({"text": one, "embedding": [float(str(x)) for x in vector]}, ensure_ascii=False))
            progress("embed", start + len(part), len(texts))
    if output:
        with open(output, "wb") as file:
            np.save(file, np.concatenate(arrays))


def _opened(path, rotated: bool):
    model = load(path)
    return rotate(model) if rotated else model


def _calibration(paths, model, most: int | None = _CALIBRATION_SAMPLES) -> samples.Samples | None:
    """At most so many, unlabeled: single sentences even where the files hold pairs."""
    if not paths:
        return None
    found = samples.read([Path(path) for path in paths], model)
    found = samples.Samples(found.tokens, sources=found.sources)
    return found if most is None else found.limit(most)


def _movement(calibration: Calibration, scheme: Scheme) -> str:
    """Whether the samples were enough, in a sentence."""
    moved = calibration.movement(scheme.activation_dtype, scheme.activation_symmetric)
    if not moved:
        return "calibrated on 1 sample: too few to say whether the ranges are stable"
    median, site = float(np.median(list(moved.values()))), max(moved, key=moved.get)
    advice = "stable" if median <= _STABLE else "not stable yet: more samples would help"
    return (f"calibrated on {calibration.samples} samples: half of them give ranges that differ by {median:.1%} in the median "
            f"and by {moved[site]:.1%} at {site}; {advice}")


def _listing(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _size(path: Path) -> int:
    """Bytes of a model's file, or of the weights in its folder."""
    return sum(file.stat().st_size for file in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size


def _check_target(target: str | Path | None) -> None:
    """Fails before the work is done rather than after it."""
    if target not in (None, "-") and not Path(target).parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: no such folder {Path(target).parent}")
    if target not in (None, "-") and Path(target).is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")


def _write(target: str | None, text: str) -> None:
    if target == "-":
        click.echo(text, nl=False)
    elif target:
        Path(target).write_text(text, encoding="utf-8", errors="backslashreplace")
