"""Builds a configuration beside a local judge that knows the planted truth.

    python tests/demo_judge.py configs/demo.yaml

For the whole way without a paid service: the world is made first, and a judge on loopback is told
which of its images show somebody else. It is wrong about one face in twenty, and one call in ten
fails. Everything else is what a real service sees: the real client, sheets, question, limits.
"""

import os
import subprocess
import sys
from pathlib import Path

# The tests' own folder raypipe stands before the package otherwise.
sys.path.append(str(Path(__file__).parents[1]))

from local_judge import KEY, Behaviour, LocalJudge
from raypipe import storage
from raypipe.config import load
from raypipe.images import decode

_FAULTS = {"429": 0.05, "500": 0.03, "malformed": 0.02}


def main() -> int:
    configuration, *rest = sys.argv[1:]
    raypipe = str(Path(sys.executable).parent / "raypipe")
    code = subprocess.call([raypipe, "sample", configuration, *rest])
    if code:
        return code
    overrides = [text for text in rest if text != "--set"]
    root = storage.join(load(configuration, overrides).workspace, "sample")
    truth = storage.read_json(storage.join(root, "truth.json"))
    faces, strangers = [], []
    for path, file in truth["files"].items():
        if file["fault"] in ("corrupt", "truncated"):
            continue
        faces.append(decode(storage.read_bytes(storage.join(root, "base", path)), source=path))
        strangers.append(file["person"] != truth["identities"][path.split("/")[0]]["person"])
    with LocalJudge(faces, strangers, Behaviour(wrong=0.05, faults=_FAULTS)) as judge:
        settings = [
            *("--set", "judge.kind=openai", "--set", f"judge.base_url={judge.base_url}"),
            *("--set", "judge.endpoints=[127.0.0.1]", "--set", "judge.model=local-judge"),
            *("--set", "judge.prices.input=0", "--set", "judge.prices.output=0"),
        ]
        command = [raypipe, "build", configuration, *settings, *rest]
        code = subprocess.call(command, env={**os.environ, "OPENAI_API_KEY": KEY})
        asked = sum(judge.answered.values())
        print(f"the local judge answered {asked} questions, {judge.tokens['sent']:,} tokens")
    return code


if __name__ == "__main__":
    sys.exit(main())
