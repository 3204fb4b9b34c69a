import subprocess
import sys

from typer.testing import CliRunner

from jobs.cli import JOBS, app

runner = CliRunner()


def test_help_teaches_every_command():
    text = runner.invoke(app, ["--help"]).output
    assert all(name in text for name in [*JOBS, "inspect", "verify", "configs/demo.yaml"])
    assert "--set" in runner.invoke(app, ["clean", "--help"]).output


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("workspace: w\nembeder: {kind: dlib}\n")
    for line in (["raypipe", "build"], ["jobs.build"]):
        start = [sys.executable, "-m", "jobs.cli", line[1]] if len(line) > 1 else None
        command = start or [sys.executable, "-m", line[0]]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.strip() == (
            f"error {path}: unknown key 'embeder'; did you mean 'embedder'?"
        )


def test_evaluate_takes_a_configuration_or_files_and_says_which_is_missing(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("workspace: w\nembedder: {kind: dlib}\n")
    for arguments, message in (
        (["none.onnx", "lfw.bin"], "none.onnx: no such file"),
        (["lfw.bin"], "neither a configuration"),
        ([str(config), "lfw.bin"], "a configuration goes with no other path"),
        (["none.onnx", "lfw.bin", "--follow"], "--follow and --set need a configuration"),
        ([str(config), "--follow"], "train.keep_every is 0"),
    ):
        result = runner.invoke(app, ["evaluate", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_looking_at_what_is_not_there(tmp_path):
    for command in ("inspect", "verify"):
        result = runner.invoke(app, [command, str(tmp_path)])
        assert result.exit_code == 2
        assert "no manifest.json" in result.stderr
