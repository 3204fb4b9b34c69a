"""The experts on pictures."""

import numpy as np
import pytest

from local_judge import KEY, Behaviour, LocalJudge
from raypipe.config.judge import JudgeConfig, QualityConfig, SheetConfig
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg, encode_png
from raypipe.judging.experts import Case, Tools, open_experts

IMAGES = 12


def case(faces: list[np.ndarray], name: str = "x", asked: str | None = "all") -> Case:
    images = [
        Image(image_id=f"{k}", data=encode_png(face), source="made") for k, face in enumerate(faces)
    ]
    identity = Identity(identity_id=name, index=0, source="base", images=images)
    return Case(identity=identity, images=images, doubt=np.zeros(len(images)), asked=asked)


async def allow(_: float) -> bool:
    return True


async def note(_: float, __: float) -> None:
    pass


def tools(config: JudgeConfig) -> Tools:
    return Tools(
        config=config, calibration=None, second=None, share=1.0, reserve=allow, settle=note
    )


def test_quality_is_less_for_a_blur(faces: list[np.ndarray]) -> None:
    config = JudgeConfig(experts=["quality"], quality=QualityConfig(lowest=-0.2))
    (expert,) = open_experts(tools(config))
    grey = np.full((112, 112, 3), 128, np.uint8)
    (view,) = expert([case([faces[0], faces[1], grey])])
    assert view.outlier.shape == (3,)
    assert view.outlier[:2].max() < 0.5 < view.outlier[2]


def test_vision_speaks_of_whom_it_is_asked(
    faces: list[np.ndarray],
    strangers: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    people = [case(faces[i : i + IMAGES], f"{i}") for i in range(0, 48, IMAGES)]
    people[1].asked = None
    # Five faces on a sheet, two of them anchors: twelve faces need four sheets.
    sheet = SheetConfig(columns=5, rows=1, anchors=2)
    with LocalJudge(faces, strangers, Behaviour(columns=5)) as judge:
        config = JudgeConfig(
            kind="openai",
            experts=["vision"],
            base_url=judge.base_url,
            endpoints=["127.0.0.1"],
            answers=str(tmp_path_factory.mktemp("answers")),
            sheet=sheet,
            concurrency=3,
        )
        (expert,) = open_experts(tools(config))
        views = expert(people)
        again = expert(people)
    for k, view in enumerate(views):
        if k == 1:
            assert np.isnan(view.outlier).all() and view.sheets == 0
            continue
        planted = np.array(strangers[k * IMAGES : (k + 1) * IMAGES])
        assert view.sheets == 4
        assert ((view.outlier >= 0.5) == planted).all()
        assert set(view.reasons) == set(np.flatnonzero(planted).tolist())
        assert view.outlier.tolist() == again[k].outlier.tolist()
    assert sum(judge.answered.values()) == 12
    assert judge.largest <= 3


def test_pictures_of_any_size_are_judged(faces: list[np.ndarray]) -> None:
    (expert,) = open_experts(tools(JudgeConfig(experts=["quality"])))
    image = case([faces[0]]).images[0]
    image.data = encode_jpeg(np.repeat(np.repeat(faces[0], 2, 0), 2, 1))
    one = Case(
        identity=Identity(identity_id="x", index=0, source="base", images=[image]),
        images=[image],
        doubt=np.zeros(1),
        asked=None,
    )
    assert expert([one])[0].outlier[0] < 0.5
