"""Looking at what the jobs made: `raypipe inspect` and `raypipe verify`."""

from rich.table import Table

from jobs.progress import Bar, console
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest, summarise
from raypipe.reasons import explain
from raypipe.verifying import Verification, verify_files


def _finished(path: str) -> Manifest:
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(f"{path}: no manifest.json in it; not made by raypipe, or not finished yet")
    return manifest


def print_inspection(path: str) -> None:
    """Prints what is in a folder: origin, counts by source, rejections by reason.

    Raises:
        UserError: where the folder is not one that raypipe made.
    """
    manifest = _finished(path)
    origin = manifest.origin
    console.print(f"[bold]{path}[/]  made by {origin.job!r} of raypipe {origin.version}")
    console.print(f"content {manifest.content_digest}")
    for name, digest in origin.inputs.items():
        console.print(f"read    {name} {digest}")
    for name, digest in origin.models.items():
        console.print(f"weights {name} {digest}")
    if "sources" not in manifest.counts:
        table = Table("count", "value")
        for name, value in sorted(manifest.counts.items()):
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        console.print(table)
        return
    counts, _ = summarise(path)
    table = Table("source", *(["identities", "kept", "images", "kept"]))
    for source, numbers in sorted(counts.sources.items()):
        keys = ("identities", "identities_kept", "images", "images_kept")
        table.add_row(source, *(f"{numbers[key]:,}" for key in keys))
    console.print(table)
    reasons = Table("rejected", "identities", "images", "why")
    both = counts.rejected_identities | counts.rejected_images
    for reason in sorted(both):
        reasons.add_row(
            reason,
            f"{counts.rejected_identities[reason]:,}",
            f"{counts.rejected_images[reason]:,}",
            explain(reason),
        )
    if both:
        console.print(reasons)
    console.print(f"{counts.bytes / 2**20:,.1f} MiB")


def print_verification(path: str) -> bool:
    """Checks a folder against its manifest and prints what is wrong; True where nothing is.

    Raises:
        UserError: where the folder is not one that raypipe made.
    """
    manifest = _finished(path)
    if "files" in manifest.extra:
        problems = verify_files(path, manifest)
        checked = f"{len(manifest.extra['files']):,} files"
    else:
        verification = Verification(path, manifest)
        total = manifest.counts["identities"]["total"]
        with Bar("verify", total, lambda: (verification.rows, "")):
            problems = verification.run()
        checked = f"{verification.rows:,} identities"
    for problem in problems:
        console.print(f"[red]wrong[/] {problem}", soft_wrap=True)
    if not problems:
        console.print(f"{path}: {checked} are what the manifest says")
    return not problems
