"""The command line: one command a job, and a few to look at what they made."""

import importlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

import raypipe
from jobs.progress import console
from raypipe.config import Build, load
from raypipe.errors import UserError
from raypipe.formats.detect import FORMATS

app = typer.Typer(
    name="raypipe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Make face-recognition training sets of people who do not exist, and train on them.\n\n"
        "Every job reads one YAML and writes one folder of the workspace. "
        "[bold]raypipe build CONFIG[/] runs all of them and picks up where it stopped; "
        "each job is also a command of its own.\n\n"
        "Try: [bold]raypipe build configs/demo.yaml[/]"
    ),
)

JOBS = {
    "sample": "Make a world with known truth: a base set with planted faults, a gallery, pairs.",
    "ingest": "Read a set of any format into a face set; what cannot be read is kept and counted.",
    "embed": "Turn every image into a vector.",
    "clean": "Find images that show somebody else, and people who stand in the set twice.",
    "judge": "Ask further experts, a vision model among them, which images show somebody else.",
    "vectors": "Draw vectors of people who do not exist, every two of them far enough apart.",
    "seed": "Draw references of people who do not exist, with a text-to-image model.",
    "screen": "Refuse identities that are in a public gallery, or too much like each other.",
    "expand": "Make many images of every new person, and check that each is that person.",
    "assemble": "Refill, order by the curriculum, write Parquet and WebDataset.",
    "train": "Train a recognizer on the assembled set, in the order of a curriculum.",
    "evaluate": "Score a recognizer, of a build or anyone's, on verification sets.",
    "report": "Write one HTML file that shows all of it.",
    "train_cemiface": "Train CemiFace on a face set with features, to make semi-hard faces with.",
    "train_diffusion": "Train a small Stable Diffusion on a face set, to draw references with.",
    "train_generator": "Train Vec2Face on a face set with features, to make more faces with.",
    "train_estimator": "Train a small network that tells how a face looks: quality, yaw, pitch.",
    "build": "Run every job of a configuration, and pick up where a run stopped.",
}

Config = Annotated[str, typer.Argument(help="YAML of the build, for example configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a key: --set clean.min_images=12"),
]


def guarded(action: Callable[[], Any]) -> Any:
    """Runs something; a user's mistake ends the program with its one line and status 2."""
    try:
        return action()
    except UserError as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("stopped; run the same command again to go on where it was")
        raise SystemExit(130) from None


def run_job(name: str, config: Build) -> Any:
    """Runs the job of a module `jobs.NAME`; modules are imported only when they run."""
    return importlib.import_module(f"jobs.{name}").run(config)


def main_for(name: str) -> None:
    """`python -m jobs.NAME CONFIG --set KEY=VALUE`, for `ray job submit`."""
    single = typer.Typer(pretty_exceptions_enable=False)
    single.command(help=JOBS[name])(_command(name))
    single()


def _evaluate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG | WEIGHTS... SETS...",
            help="YAML of a build; or recognizers (.onnx, .safetensors, .pt, .pth, .ckpt) and the "
            "verification sets to score them on (.bin, .xz, Parquet, folders, IJB)",
        ),
    ],
    overrides: Overrides = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="CONFIG: score every epoch as soon as train keeps it")
    ] = False,
    out: Annotated[str | None, typer.Option(help="WEIGHTS: JSON file for the results")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="WEIGHTS: embed on a GPU")] = False,
) -> None:
    def action() -> None:
        if paths[0].endswith((".yaml", ".yml")):
            if len(paths) > 1 or out is not None or gpu:
                raise UserError(
                    "evaluate: a configuration goes with no other path, nor --out or --gpu; it "
                    "names its sets (evaluate.sets) and GPUs (evaluate.pool) itself"
                )
            from jobs import evaluate

            config = load(paths[0], overrides)
            _print_counts("evaluate", (evaluate.follow if follow else evaluate.run)(config))
            return
        if follow or overrides:
            raise UserError("evaluate: --follow and --set need a configuration (.yaml)")
        from jobs import evaluate_files

        evaluate_files.run(paths, out, gpu)

    guarded(action)


def _command(name: str) -> Callable[..., None]:
    if name == "evaluate":
        return _evaluate

    def command(config: Config, overrides: Overrides = None) -> None:
        def action() -> None:
            result = run_job(name, load(config, overrides))
            if name != "build":
                _print_counts(name, result)

        guarded(action)

    return command


def _print_counts(name: str, manifest: Any) -> None:
    counts = manifest.counts
    if "identities" in counts and "total" in counts["identities"]:
        people, images = counts["identities"], counts["images"]
        console.print(
            f"{name}: {people['kept']:,} of {people['total']:,} identities and "
            f"{images['kept']:,} of {images['total']:,} images kept"
        )
    else:
        console.print(f"{name}: done")


for _name, _help in JOBS.items():
    app.command(_name, help=_help)(_command(_name))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="cluster file of Ray's autoscaler or of KubeRay; none: cluster.yaml where the "
            "configuration asks for GPUs, else this machine"
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="nodes of a type at most; none: all the pools can use")
    ] = None,
    assumptions: Annotated[
        bool, typer.Option("--assumptions", help="print what is assumed, and why")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="measure the speed here first, on a few made people"),
    ] = False,
) -> None:
    """Say before a run what it takes: images, bytes, time, hours of machines, questions, dollars.

    Nothing is run, and no weights are opened. What was not measured is marked as assumed.
    """
    from jobs.plan import run as run_plan

    def action() -> None:
        build = load(config, overrides)
        if calibrate:
            from jobs.calibrate import run as run_calibrate

            run_calibrate(build)
        run_plan(build, cluster_file=cluster, nodes=nodes, assumptions=assumptions)

    guarded(action)


@app.command()
def order(
    config: Config,
    epoch: Annotated[int, typer.Option(min=1, help="epoch, from 1")] = 1,
    rank: Annotated[int, typer.Option(min=0, help="worker, from 0")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="how many; none: configured")] = None,
    overrides: Overrides = None,
) -> None:
    """Print what a worker trains on in an epoch, image by image, without training."""
    from jobs.train import order as run_order

    def action() -> None:
        build = load(config, overrides)
        for position, name in run_order(build, epoch, rank, workers or build.train.num_workers):
            typer.echo(f"{position}\t{name}")

    guarded(action)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="training set or verification set, of any format")],
    target: Annotated[str, typer.Argument(help="file, folder or URI that is not there yet")],
    format: Annotated[str, typer.Option("--format", help=f"one of {', '.join(FORMATS)}")],
    mask: Annotated[
        str | None, typer.Option(help=".npy file with the indices of the records to take (LMDB)")
    ] = None,
) -> None:
    """Turn a set of one format into another; every image stays the bytes it was.

    What the source is, its content tells. Where part of it is damaged the rest is converted, the
    damage is named with its byte offset, and the exit status is 1.
    """
    from jobs.convert import convert as run_convert

    result = guarded(lambda: run_convert(source, target, format, mask))
    console.print(result.text, soft_wrap=True)
    for fault in result.faults:
        console.print(f"[bold red]left out[/] {escape(fault)}", soft_wrap=True)
    if result.faults:
        raise SystemExit(1)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="weights of a recognizer, of raypipe or anyone's")],
    path: Annotated[str, typer.Argument(help=".onnx file to write")],
) -> None:
    """Write a recognizer as ONNX, as insightface and onnxruntime load it, and check it is equal."""
    from raypipe.onnx_export import export_onnx

    guarded(lambda: export_onnx(weights, path))
    console.print(f"{path}: equal to {weights}", soft_wrap=True)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="folder or URI of a face set")],
) -> None:
    """Say what is in a face set, by source and by reason of rejection."""
    from jobs.inspection import print_inspection

    guarded(lambda: print_inspection(path))


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="folder or URI of a face set, or of a training set")],
) -> None:
    """Check digests, counts, decodability and conservation; name the bad row."""
    from jobs.inspection import print_verification

    if not guarded(lambda: print_verification(path)):
        raise SystemExit(1)


Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the dashboard of a cluster's head"),
]
_ADDRESS = "http://127.0.0.1:8265"  # the forwarded port of `ray dashboard`


@app.command()
def submit(
    job: Annotated[str, typer.Argument(help="build, or any other job")],
    config: Config,
    overrides: Overrides = None,
    address: Address = _ADDRESS,
    submission_id: Annotated[
        str | None, typer.Option("--id", help="what to call the run; none: a name and a number")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="environment variable the run gets; no secret"),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="print the ID and leave the run alone")
    ] = False,
) -> None:
    """Run a job on a cluster, with the working directory; its log follows, ctrl-C leaves it alone.

    The exit status is that of the run. Submitted again, it goes on where it was. What was submitted
    every user of the cluster can see, so no secret goes with it: keys are set on the nodes.
    """

    def action() -> int:
        from jobs import submit as server

        name = server.submit(
            job, config, overrides or [], address, submission_id=submission_id, variables=variables
        )
        if no_wait:
            typer.echo(name)
            return 0
        console.print(f"submitted: [bold]{name}[/]", soft_wrap=True)
        return server.follow(server.connect(address), address, name)

    raise SystemExit(guarded(action))


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[ID | CONFIG]", help="a run, or YAML of a build")
    ] = None,
    overrides: Overrides = None,
    address: Address = _ADDRESS,
    follow: Annotated[
        bool, typer.Option("--follow", help="ID: show the log until the run ends")
    ] = False,
) -> None:
    """Say what runs on a cluster, how far a run is or, without any cluster, a workspace."""

    def action() -> int:
        from jobs import status as shown

        if run is not None and run.endswith((".yaml", ".yml")):
            if follow:
                raise UserError("status: --follow needs the ID of a run; `raypipe status` has them")
            shown.print_workspace(load(run, overrides))
            return 0
        if overrides or (follow and run is None):
            raise UserError("status: --set needs a configuration, and --follow the ID of a run")
        if run is None:
            shown.print_runs(address)
            return 0
        return shown.print_run(address, run, follow)

    raise SystemExit(guarded(action))


@app.command()
def stop(
    run: Annotated[str, typer.Argument(metavar="ID", help="a run; `raypipe status` lists them")],
    address: Address = _ADDRESS,
) -> None:
    """Stop a run on a cluster, and wait until it is stopped; what it did is kept."""

    def action() -> None:
        from jobs import submit as server

        server.stop(address, run)

    guarded(action)


@app.command()
def prompts(
    preview: Annotated[int, typer.Option(min=1, help="prompts to show")] = 20,
    grammar: Annotated[
        str | None, typer.Option(help="YAML of a grammar, or faces or portraits; none: faces")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the run")] = 0,
) -> None:
    """Show prompts of a grammar, and the balance declared and achieved."""
    from jobs.prompts import preview as run_preview

    guarded(lambda: run_preview(preview, grammar, seed))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raypipe {raypipe.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()
