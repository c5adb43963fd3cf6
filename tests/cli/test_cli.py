"""The command line: results on stdout, one sentence on stderr for every failure, exit codes, nothing overwritten
unasked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from interrupts import heed_interrupts

import cq
from cq.cli import main
from cq.report import timing
from cq.report.samples import read
from cq.report.trials import best_of


@pytest.fixture
def run(short_turns, monkeypatch):
    monkeypatch.setattr(timing, "_BATCH_TOKENS", 64)

    def invoke(*arguments, code=0, stdin=None):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == code, result.output + str(result.exception)
        if code:
            assert result.stderr.startswith("cq: ") and result.stderr.count("\n") == 1 and result.stdout == ""
        return result.stderr if code else result.stdout

    return invoke


def test_version_and_help(run):
    assert run("--version") == f"cq {cq.info()['version']}\n"
    for arguments in ([], ["compare"], ["bench"], ["quantize"], ["inspect"], ["info"], ["embed"]):
        assert "Usage:" in run(*arguments, "--help")


def test_info_as_text_and_as_pure_json(run):
    assert json.loads(run("info", "--json")) == cq.info()
    assert f"isa: {cq.info()['isa']}\n" in run("info")


def test_compare_shows_a_table(run, tiny_encoder, pairs, prose):
    text = run("compare", tiny_encoder, "--data", pairs, "--calibration", prose)
    for word in ("float32", "weight-only", "dynamic", "static textbook", "Spearman", "cosine", "SQNR", "cores"):
        assert word in text


def test_compare_trains_where_asked_to(run, tiny_encoder, pairs, prose):
    found = json.loads(
        run(
            "compare",
            tiny_encoder,
            "--data",
            pairs,
            "--calibration",
            prose,
            "--strategy",
            "static",
            "--qat",
            2,
            "--learning-rate",
            1e-4,
            "--json",
            "-",
        )
    )
    assert [row["name"] for row in found["rows"]] == ["float32", "static", "qat", "static textbook", "qat textbook"]
    assert found["rows"][2]["strategy"] == "qat" and "steps=2" in found["rows"][2]["choices"]
    assert all("learning_rate=0.0001" in found["rows"][i]["choices"] for i in (2, 4))


def test_compare_takes_what_was_quantized_before(run, tiny_encoder, pairs, prose, tmp_path):
    out = tmp_path / "trained.safetensors"
    run("quantize", tiny_encoder, out, "--strategy", "qat", "--steps", 2, "--calibration", prose)
    shown = run(
        "compare",
        tiny_encoder,
        "--data",
        pairs,
        "--strategy",
        "dynamic",
        "--strategy",
        "weight-only",
        "--with",
        out,
        "--check-order",
        "--json",
        tmp_path / "report.json",
    )
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in found["rows"]][-1] == "trained.safetensors" and found["rows"][-1][
        "strategy"
    ] == "file"
    assert "trained" in shown and "in all 2 pairs" in shown


def test_compare_writes_pure_json_and_markdown(run, tiny_lm, prose, tmp_path):
    file = tmp_path / "report.md"
    found = json.loads(
        run(
            "compare",
            tiny_lm,
            "--data",
            prose,
            "--strategy",
            "dynamic",
            "--strategy",
            "weight-only",
            "--limit",
            5,
            "--metric",
            "kl",
            "--json",
            "-",
            "--markdown",
            file,
        )
    )
    assert [row["name"] for row in found["rows"]] == [
        "float32",
        "weight-only",
        "dynamic",
        "weight-only textbook",
        "dynamic textbook",
    ]
    assert found["data"]["samples"] == 5 and found["metrics"] == ["kl"] and found["model"] == tiny_lm.name
    assert file.read_text().startswith(f"### {tiny_lm.name}\n") and "| dynamic textbook |" in file.read_text()


def test_calibration_takes_500_sentences_at_most(run, tiny_encoder, pairs, tmp_path):
    file = tmp_path / "many.tsv"
    file.write_text("".join(f"\tsentence {i}\tother {i}\n" for i in range(400)))
    found = json.loads(
        run("compare", tiny_encoder, "--data", pairs, "--calibration", file, "--strategy", "static", "--json", "-")
    )
    assert found["calibration"]["samples"] == 500


def test_compare_shows_layers_draws_and_checks_the_order(run, tiny_encoder, pairs, prose, tmp_path):
    shown = run(
        "compare",
        tiny_encoder,
        "--data",
        pairs,
        "--limit",
        6,
        "--calibration",
        prose,
        "--strategy",
        "dynamic",
        "--strategy",
        "weight-only",
        "--layers",
        "all",
        "--plot",
        tmp_path / "plot.svg",
        "--check-order",
    )
    for words in (
        "each layer alone",
        "layers.1.attention.scores",
        "layers.0.ffn.down: ",
        "fine as it is",
        "as theory predicts",
    ):
        assert words in shown
    picture = (tmp_path / "plot.svg").read_text()
    assert ">dynamic textbook<" in picture and ">layers.1.ffn.down<" in picture


def test_compare_fails_where_the_order_is_broken(tiny_encoder, pairs, monkeypatch, short_turns):
    monkeypatch.setattr("cq.report.expected_order._TOLERANCE_DB", -100.0)  # nothing is that much worse
    result = CliRunner().invoke(
        main,
        [
            "compare",
            str(tiny_encoder),
            "--data",
            str(pairs),
            "--limit",
            "3",
            "--strategy",
            "dynamic",
            "--strategy",
            "weight-only",
            "--check-order",
        ],
    )
    assert result.exit_code == 1 and "speed" in result.stdout and result.stderr.count("\n") == 1
    assert result.stderr.startswith("cq: order: not what theory predicts: dynamic has ")


def test_quantize_finds_a_mix_that_compare_and_inspect_show(run, tiny_encoder, pairs, prose, tmp_path):
    out = tmp_path / "out.safetensors"
    shown = run(
        "quantize",
        tiny_encoder,
        out,
        "--strategy",
        "mixed",
        "--data",
        pairs,
        "--calibration",
        prose,
        "--budget",
        1,
        "--metric",
        "cosine",
    )
    assert "best" in shown and "Trials" in shown and "cq compare --mix takes it" in shown
    record = tmp_path / "out.mix.json"
    mixed = cq.load(out).strategy
    assert isinstance(mixed, cq.Mixed) and best_of(record) == mixed
    assert "strategy: mixed" in run("inspect", out)
    found = json.loads(
        run(
            "compare",
            tiny_encoder,
            "--data",
            pairs,
            "--limit",
            4,
            "--calibration",
            prose,
            "--strategy",
            "dynamic",
            "--mix",
            record,
            "--json",
            "-",
        )
    )
    assert [row["name"] for row in found["rows"]] == ["float32", "dynamic", "dynamic textbook", "mixed"]


def test_compare_without_a_model_or_without_data_uses_what_ships(run, less_that_ships, tiny_encoder, prose):
    found = json.loads(run("compare", "--limit", 2, "--json", "-"))
    assert found["model"] == "shakespeare" and [row["name"] for row in found["rows"]][-2:] == [
        "static textbook",
        "qat.safetensors",
    ]
    assert found["metrics"] == ["perplexity", "bits_per_token"] and found["data"]["samples"] == 2
    assert found["calibration"]["files"] == ["calibration.txt"]
    found = json.loads(run("compare", "--data", prose, "--limit", 2, "--strategy", "static", "--json", "-"))
    assert found["calibration"]["files"] == ["calibration.txt"]
    assert found["data"]["files"] == [prose.name] and len(found["rows"]) == 3
    found = json.loads(run("compare", tiny_encoder, "--limit", 20, "--json", "-"))
    assert found["metrics"] == ["cosine"] and found["data"]["files"] == ["evaluation.txt"]


@pytest.fixture
def quick_bench(monkeypatch):
    module = sys.modules["cq.report.bench"]
    for name, value in (("_ROUNDS", 1), ("_PEAK_TRIES", 1)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(timing, "_TURN_SECONDS", 0.0)


def test_bench_shows_speed_and_where_it_goes(run, quick_bench, tiny_encoder, prose):
    text = run("bench", tiny_encoder, "--shape", "2x16", "--shape", "1×8", "--calibration", prose, "--profile")
    for words in (
        "float32",
        "weight-only",
        "dynamic",
        "static",
        "2×16",
        "1×8",
        "% of",
        "static, 2×16: one pass by parts",
    ):
        assert words in text
    assert "static" not in run("bench", tiny_encoder, "--shape", "1x8")  # nothing to calibrate on


def test_bench_writes_pure_json(run, quick_bench, tiny_lm, tmp_path):
    found = json.loads(run("bench", tiny_lm, "--strategy", "dynamic", "--shape", "1x8", "--json", "-"))
    assert [(row["name"], row["shape"], row["profile"]) for row in found["rows"]] == [("dynamic", [1, 8], None)]
    assert found["model"] == str(tiny_lm) and found["machine"]["isa"] == cq.info()["isa"]


def test_bench_times_a_quantized_model_as_it_is(run, quick_bench, tiny_encoder, prose, tmp_path):
    out = tmp_path / "out.safetensors"
    run("quantize", tiny_encoder, out, "--strategy", "dynamic")
    found = json.loads(run("bench", out, "--shape", "1x8", "--json", "-"))
    assert [row["name"] for row in found["rows"]] == ["dynamic"]
    assert "already quantized" in run("bench", out, "--strategy", "static", code=2)
    assert "already quantized" in run("bench", out, "--calibration", prose, code=2)


def test_bench_without_a_model_times_what_ships(run, quick_bench, less_that_ships):
    found = json.loads(run("bench", "--shape", "1x16", "--json", "-"))
    assert found["model"] == "shakespeare" and [row["name"] for row in found["rows"]] == [
        "float32",
        "weight-only",
        "dynamic",
        "static",
    ]


@pytest.mark.parametrize("strategy", ["weight-only", "dynamic", "static"])
def test_quantize_saves_what_the_library_would(run, tiny_encoder, prose, tmp_path, strategy):
    out = tmp_path / "out.safetensors"
    calibration = ["--calibration", prose] if strategy == "static" else []
    text = run("quantize", tiny_encoder, out, "--strategy", strategy, *calibration)
    assert "layers.1.ffn.down" in text and strategy in text and "MB → " in text
    quantized = cq.load(out)
    assert quantized.strategy.name == strategy
    if strategy != "static":
        expected = cq.quantize(cq.load(tiny_encoder), {"weight-only": cq.WeightOnly, "dynamic": cq.Dynamic}[strategy]())
        np.testing.assert_array_equal(quantized.embed(["a text"]), expected.embed(["a text"]))


def test_rotate_is_what_the_library_does(run, tiny_lm, tiny_encoder, prose, tmp_path):
    run("quantize", tiny_lm, tmp_path / "a.safetensors", "--strategy", "dynamic", "--rotate")
    cq.save(cq.quantize(cq.rotate(cq.load(tiny_lm)), cq.Dynamic()), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    plain, turned = (
        json.loads(
            run("compare", tiny_lm, "--data", prose, "--strategy", "dynamic", "--limit", 3, "--json", "-", *more)
        )
        for more in ((), ("--rotate",))
    )
    assert plain["rows"][1]["sqnr_db"] != turned["rows"][1]["sqnr_db"]
    assert "rotation" in run(
        "quantize", tiny_encoder, tmp_path / "c.safetensors", "--strategy", "dynamic", "--rotate", code=1
    )


@pytest.mark.parametrize("strategy", ["weight-only", "dynamic", "static"])
def test_compensate_is_what_the_library_does(run, tiny_lm, prose, tmp_path, strategy):
    text = tmp_path / "text.txt"
    text.write_bytes(prose.read_bytes()[:320])
    options = ["--strategy", strategy, "--calibration", text, "--rotate", "--compensate"]
    run("quantize", tiny_lm, tmp_path / "a.safetensors", *options)
    model = cq.rotate(cq.load(tiny_lm))
    texts = read([text], model).limit(500)
    chosen = {"weight-only": cq.WeightOnly, "dynamic": cq.Dynamic, "static": cq.Static}[strategy]()
    q = cq.quantize(cq.compensate(model, texts), chosen, texts if strategy == "static" else None)
    for ours, theirs in zip(
        cq.load(tmp_path / "a.safetensors").logits(texts.tokens[:3]), q.logits(texts.tokens[:3]), strict=True
    ):
        assert ours.tobytes() == theirs.tobytes()


def test_compensate_without_samples_is_refused(run, tiny_lm, tmp_path):
    for options in (["--strategy", "dynamic"], ["--strategy", "qat", "--calibration", "a.txt"]):
        assert "--compensate needs --calibration" in run(
            "quantize", tiny_lm, tmp_path / "a.safetensors", "--compensate", *options, code=2
        )


def test_quantize_static_by_an_observer(run, tiny_encoder, prose, tmp_path):
    """The choice is kept in the checkpoint, and the user hears whether the samples were enough."""
    out = tmp_path / "static.safetensors"
    for options, observer in (
        (["--observer", "percentile:99.9"], "percentile:99.9"),
        (["--textbook"], "minmax"),
        (["--textbook", "--observer", "entropy"], "entropy"),
        ([], "mse"),
    ):
        text = run("quantize", tiny_encoder, out, "--strategy", "static", "--calibration", prose, "--force", *options)
        assert "calibrated on" in text and "samples: half of them give ranges that differ by" in text
        assert cq.load(out).strategy.observer == observer
    single = tmp_path / "one.txt"
    single.write_text("one line\n")
    text = run("quantize", tiny_encoder, out, "--strategy", "static", "--calibration", single, "--force")
    assert "calibrated on 1 sample: too few to say" in text


@pytest.mark.parametrize("target", [cq.Static(), cq.Dynamic()], ids=["static", "dynamic"])
def test_quantize_trains(run, tiny_encoder, prose, tmp_path, target):
    out, model = tmp_path / "q.safetensors", cq.load(tiny_encoder)
    chosen = [] if target == cq.Static() else ["--target", target.name]
    run("quantize", tiny_encoder, out, "--strategy", "qat", *chosen, "--steps", 3, "--calibration", prose)
    expected = cq.quantize(model, cq.QAT(target=target, steps=3), read(prose, model))
    found, tokens = cq.load(out), [np.arange(9)]
    assert found.strategy == target and np.array_equal(found.forward(tokens)[0], expected.forward(tokens)[0])


def test_quantize_trains_a_language_model_from_its_best(run, tiny_lm, prose, tmp_path):
    out, model = tmp_path / "q.safetensors", cq.load(tiny_lm)
    given = ["--effort", "best", "--steps", 2, "--batch-size", 1, "--learning-rate", "1e-3", "--calibration", prose]
    run("quantize", tiny_lm, out, "--strategy", "qat", *given)
    strategy = cq.QAT(target=cq.Static(effort="best"), steps=2, batch_size=1, learning_rate=1e-3)
    expected, tokens = cq.quantize(model, strategy, read(prose, model)), [np.arange(9)]
    np.testing.assert_array_equal(cq.load(out).logits(tokens)[0], expected.logits(tokens)[0])


def test_quantize_textbook_include_exclude(run, tiny_encoder, tmp_path):
    out = tmp_path / "out.safetensors"
    run(
        "quantize",
        tiny_encoder,
        out,
        "--strategy",
        "dynamic",
        "--textbook",
        "--include",
        "layers.*",
        "--exclude",
        "*.down",
    )
    quantized = cq.load(out)
    assert quantized.strategy == cq.Dynamic(scheme=cq.Scheme.textbook(), include=("layers.*",), exclude=("*.down",))
    assert {place.runs_in for place in quantized.coverage() if place.name.endswith(".down")} == {"float32"}
    assert {place.runs_in for place in quantized.coverage() if place.name.endswith(".up")} == {"dynamic"}


def test_quantize_overwrites_only_by_force_and_never_the_model(run, tiny_encoder, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert "add --force" in run("quantize", tiny_encoder, out, "--strategy", "dynamic", code=1)
    assert out.read_text() == "precious"
    run("quantize", tiny_encoder, out, "--strategy", "dynamic", "--force")
    assert cq.load(out).strategy.name == "dynamic"
    before = tiny_encoder.read_bytes()
    folder = tiny_encoder.parent
    for source in (tiny_encoder, folder):
        assert "is the model itself" in run(
            "quantize", source, tiny_encoder, "--strategy", "dynamic", "--force", code=1
        )
    assert "it is a folder" in run("quantize", tiny_encoder, folder, "--strategy", "dynamic", "--force", code=1)
    assert "must end in .safetensors" in run(
        "quantize", tiny_encoder, tmp_path / "a.npz", "--strategy", "dynamic", code=2
    )
    assert tiny_encoder.read_bytes() == before


def test_inspect_shows_configuration_and_placement(run, tiny_encoder, tmp_path):
    text = run("inspect", tiny_encoder)
    for words in ("hidden_size: 64", "strategy: none (float32)", "layers.0.attention.query", "64 × 128"):
        assert words in text
    out = tmp_path / "out.safetensors"
    run("quantize", tiny_encoder, out, "--strategy", "weight-only", "--exclude", "*.query")
    lines = run("inspect", out).splitlines()
    query = next(line for line in lines if "layers.0.attention.query" in line)
    assert "float32" in query and "exclude" in query
    assert "weight-only" in next(line for line in lines if "layers.0.attention.key" in line)
    assert any("int8: 0.00% of" in line and "one sequence of 64 tokens" in line for line in lines)
    run("quantize", tiny_encoder, out, "--strategy", "dynamic", "--strict", "--force")
    lines = run("inspect", out, "--tokens", 10).splitlines()
    bits = cq.load(out).headroom()
    for name in ("layers.0.attention.query", "layers.1.attention.scores"):
        assert f"{bits[name]:.1f} bits" in next(line for line in lines if name in line)
    assert any("int8: 100.00% of" in line and "one sequence of 10 tokens" in line for line in lines)
    assert "tokens: need a length from 1 to 64" in run("inspect", out, "--tokens", 65, code=1)


def test_embed_writes_a_json_object_per_text(run, tiny_encoder):
    lines = run("embed", tiny_encoder, "one text", "größer").splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["text"] for one in found] == ["one text", "größer"]
    vectors = np.array([one["embedding"] for one in found], np.float32)
    np.testing.assert_array_equal(vectors, cq.load(tiny_encoder).embed(["one text", "größer"]))


def test_embed_reads_lines_and_writes_npy(run, tiny_encoder, tmp_path):
    texts, lines, out = [f"line {i}" for i in range(300)], tmp_path / "lines", tmp_path / "vectors.npy"
    lines.write_text("\n".join(texts) + "\n")
    assert run("embed", tiny_encoder, "first", "--input", lines, "--output", out) == ""
    expected = cq.load(tiny_encoder).embed(["first", *texts])
    np.testing.assert_array_equal(np.load(out), expected)
    assert run("embed", tiny_encoder, "--input", "-", "--output", out, stdin="line 0\nline 1") == ""
    np.testing.assert_array_equal(np.load(out), cq.load(tiny_encoder).embed(["line 0", "line 1"]))


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["nonsense"], 2, "No such command"),
        (["compare", "--metric", "beauty"], 2, "--metric"),
        (["compare", "--limit", "0"], 2, "--limit"),
        (["compare", "--json", "-", "--markdown", "-"], 2, "only one of --json and --markdown"),
        (["compare", "no/such/model"], 1, "no/such/model"),
        (["compare", "MODEL", "--data", "no*.tsv"], 1, "no file matches"),
        (["compare", "MODEL", "--data", "PAIRS"], 1, "--calibration on the command line"),
        (["compare", "MODEL", "--data", "PAIRS", "--calibration", "PAIRS"], 1, "never calibrate on what is reported"),
        (["compare", "MODEL", "--data", "PAIRS", "--json", "no/such/file.json"], 1, "cannot write no/such/file.json"),
        (["compare", "MODEL", "--data", "PAIRS", "--markdown", "."], 1, "it is a folder"),
        (["compare", "MODEL", "--data", "PAIRS", "--strategy", "dynamic", "--metric", "perplexity"], 1, "does not fit"),
        (["bench", "MODEL", "--shape", "8"], 2, "SEQUENCESxLENGTH"),
        (["bench", "MODEL", "--shape", "0x8"], 2, "SEQUENCESxLENGTH"),
        (["bench", "MODEL", "--shape", "1x65"], 1, "1 to 64 tokens"),
        (["bench", "MODEL", "--strategy", "static"], 1, "calibrat"),
        (["bench", "MODEL", "--strategy", "dynamic", "--calibration", "PAIRS"], 2, "is for static"),
        (["bench", "no/such/model"], 1, "no/such/model"),
        (["bench", "MODEL", "--json", "no/such/file.json"], 1, "cannot write no/such/file.json"),
        (["quantize", "MODEL"], 2, "OUT"),
        (["quantize", "MODEL", "no/such/out", "--strategy", "dynamic"], 1, "cannot write no/such/out"),
        (["quantize", "MODEL", "out.safetensors", "--strategy", "static"], 1, "calibrat"),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "dynamic", "--calibration", "PAIRS"],
            2,
            "is for static",
        ),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "dynamic", "--observer", "mse"],
            2,
            "--observer is for static",
        ),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "static", "--steps", "3"],
            2,
            "are for qat, not for static",
        ),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "dynamic", "--learning-rate", "1e-4"],
            2,
            "are for qat, not for dynamic",
        ),
        (
            [
                "quantize",
                "MODEL",
                "out.safetensors",
                "--strategy",
                "qat",
                "--calibration",
                "PAIRS",
                "--learning-rate",
                "0",
            ],
            1,
            "learning_rate must be a positive number",
        ),
        (["compare", "MODEL", "--data", "PAIRS", "--learning-rate", "1e-4"], 2, "--learning-rate is for --qat"),
        (["quantize", "MODEL", "out.safetensors", "--strategy", "qat"], 1, "QAT trains on samples"),
        (
            ["compare", "MODEL", "--data", "PAIRS", "--strategy", "dynamic", "--qat", "2"],
            1,
            "qat needs samples to calibrate on",
        ),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "static", "--observer", "best"],
            1,
            "minmax, moving_average",
        ),
        (["quantize", "MODEL", "out.safetensors", "--strategy", "mixed", "--data", "PAIRS"], 2, "mixed needs --data"),
        (["quantize", "MODEL", "out.safetensors", "--strategy", "mixed", "--budget", "1"], 2, "mixed needs --data"),
        (
            ["quantize", "MODEL", "out.safetensors", "--strategy", "dynamic", "--budget", "0"],
            2,
            "are for mixed, not for dynamic",
        ),
        (
            [
                "quantize",
                "MODEL",
                "out.safetensors",
                "--strategy",
                "mixed",
                "--data",
                "PAIRS",
                "--budget",
                "1",
                "--exclude",
                "head",
            ],
            2,
            "chooses for every layer",
        ),
        (["compare", "MODEL", "--data", "PAIRS", "--mix", "no/such.json"], 1, "no/such.json"),
        (["compare", "MODEL", "--data", "PAIRS", "--mix", "MODEL"], 1, "model.safetensors"),
        (["compare", "MODEL", "--data", "PAIRS", "--plot", "plot.gif"], 1, "must end in .svg"),
        (["compare", "MODEL", "--data", "PAIRS", "--plot", "no/such/plot.svg"], 1, "cannot write no/such/plot.svg"),
        (["inspect", "PAIRS"], 1, "pairs.tsv"),
        (["embed", "MODEL"], 2, "no texts"),
        (["embed", "MODEL", "a", "--output", "a.txt"], 2, "--output writes .npy"),
        (["embed", "MODEL", "--input", "no/such/lines"], 2, "no/such/lines"),
    ],
)
def test_every_failure_is_one_sentence(run, tiny_encoder, pairs, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    arguments = [{"MODEL": tiny_encoder, "PAIRS": pairs}.get(argument, argument) for argument in arguments]
    assert message in run(*arguments, code=code)
    assert not os.listdir(tmp_path)


def test_input_that_is_not_text(run, tiny_encoder, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in run("embed", tiny_encoder, "--input", tmp_path / "bytes", code=2)


_PROGRAM = "from cq.cli import main; print('started', flush=True); main(prog_name='cq')"


def _command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        preexec_fn=heed_interrupts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_real_process_keeps_stdout_pure(tiny_encoder):
    process = _command("embed", tiny_encoder, "a text")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0 and stderr == b""
    assert json.loads(stdout.removeprefix(b"started\n"))["text"] == "a text"
    process = _command("embed", "no-such-model", "a text", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 1 and stdout == b"started\n"
    assert stderr.startswith(b"cq: no-such-model") and b"Traceback" not in stderr


def test_ctrl_c_exits_130(tiny_encoder):
    process = _command("embed", tiny_encoder, "--input", "-")  # waits for lines
    assert process.stdout.readline() == b"started\n"
    asleep, end = 0, time.monotonic() + 200
    while asleep < 5 and time.monotonic() < end:  # until it is seen waiting five times in a row
        time.sleep(0.05)
        asleep = asleep + 1 if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" else 0
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 130 and stdout == b"" and stderr.strip() == b"cq: interrupted"


def test_rank_shows_the_librarys_order(run, tmp_path, random_model, byte_tokenizer):
    config = random_model("bert")[0].config.to_dict() | dict(
        labels=["yes"], classifier="tanh", pair_activation="sigmoid", vocab_size=256, max_length=33
    )
    config = cq.Config(**config)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes().items()}
    model = cq.Transformer(config, weights, byte_tokenizer)
    cq.save(model, tmp_path / "cross.safetensors")
    texts = ["one", "two", "three"]
    rows = [json.loads(line) for line in run("rank", tmp_path / "cross.safetensors", "which?", *texts).splitlines()]
    wanted = model.rank("which?", texts)
    assert rows == [row | {"text": texts[row["corpus_id"]]} for row in wanted]
    (tmp_path / "texts.csv").write_text("id,answer\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    for more in ("--input", "-"), ("--input", tmp_path / "texts.csv", "--column", "answer"):
        shown = run("rank", tmp_path / "cross.safetensors", "which?", *more, stdin="\n".join(texts))
        assert [json.loads(line) for line in shown.splitlines()] == rows


def test_rank_names_what_is_none(run, tiny_encoder):
    assert "cross-encoder" in run("rank", tiny_encoder, "which?", "one", code=1)


def test_embed_puts_prompts_before_texts(run, tiny_encoder):
    lines = [run("embed", tiny_encoder, *more) for more in (("a text",), ("text", "--prompt", "a "))]
    first, second = (json.loads(line)["embedding"] for line in lines)
    assert first == second
    assert "none of" in run("embed", tiny_encoder, "text", "--prompt-name", "query", code=1)
