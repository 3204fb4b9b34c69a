"""Grammars of prompts: the declared balance comes out, what is excluded does not, errors help."""

import re
from itertools import pairwise

import numpy as np
import pytest
import yaml

from raypipe.errors import UserError
from raypipe.prompts import balance, draw, load_grammar
from raypipe.prompts.drawing import BLOCK
from raypipe.prompts.law import rake
from raypipe.prompts.text import TOKENS, least_tokens

SMALL = """
prompt: "photo of {person}, {light}"
phrases:
  person: "{gender}, {looks}"
  looks: "with {beard}"
negative: "painting,
  watermark"
attributes:
  gender: {woman: 5, man: 5}
  beard: {none: {weight: 6, text: ""}, stubble: 2, full beard: 2}
  light: {soft light: 1, daylight: {weight: 3, text: [daylight, bright day]}}
exclude:
  - {gender: [woman], beard: [stubble, full beard]}
"""


@pytest.fixture
def load(tmp_path):
    def loader(text: str):
        path = tmp_path / "g.yaml"
        path.write_text(text)
        return load_grammar(str(path))

    return loader


@pytest.fixture(scope="module")
def shipped():
    return load_grammar()


@pytest.fixture(scope="module")
def people(shipped):
    return [draw(shipped, 5, index) for index in range(20_000)]


def excluded(rules, attributes) -> bool:
    return any(all(attributes[name] in values for name, values in r.items()) for r in rules)


def test_a_draw_depends_on_seed_and_index_alone(load):
    indices = [0, 7, BLOCK - 1, BLOCK, 40 * BLOCK + 3]
    first = [draw(load(SMALL), 1, index) for index in indices]
    again = [draw(load(SMALL), 1, index) for index in reversed(indices)]
    assert first == again[::-1]
    grammar = load(SMALL)
    one, other = ([draw(grammar, seed, i).attributes for i in range(50)] for seed in (1, 2))
    assert one != other and one[:25] != one[25:]


def test_an_attribute_keeps_its_draws_when_another_is_added(load):
    more = SMALL.replace("{light}", "{light}, {place}").replace(
        "exclude:", "  place: {indoors: 1, outdoors: 1}\nexclude:"
    )
    before, after = load(SMALL), load(more)
    for index in range(50):
        wider = draw(after, 1, index).attributes
        assert wider.pop("place") and wider == draw(before, 1, index).attributes


def test_empty_values_leave_clean_text(load):
    grammar = load(SMALL)
    drawn = [draw(grammar, 0, index) for index in range(200)]
    shaven = {p.prompt for p in drawn if p.attributes["beard"] == "none"}
    assert shaven == {
        f"photo of {gender}, {light}"
        for gender in ("woman", "man")
        for light in ("soft light", "daylight", "bright day")
    }
    bearded = {p.prompt for p in drawn if p.attributes["beard"] == "stubble"}
    assert "photo of man, with stubble, soft light" in bearded
    assert {p.negative for p in drawn} == {"painting, watermark"}


def test_exclusions_do_not_shift_the_balance(load):
    grammar = load(SMALL)
    drawn = [draw(grammar, 3, index).attributes for index in range(3 * BLOCK)]
    assert not any(a["gender"] == "woman" and a["beard"] != "none" for a in drawn)
    shares = {(s.attribute, s.value): s for s in balance(grammar, drawn)}
    assert grammar.out_of_reach() == []
    for share in shares.values():
        assert share.reachable == pytest.approx(share.declared, abs=1e-8)
        assert share.achieved == share.count / len(drawn)
        assert share.achieved == pytest.approx(share.declared, abs=0.015)
    # Of free attributes, and of those that a group begins with, an end of a range is one draw off.
    for key in (("gender", "woman"), ("light", "daylight")):
        assert shares[key].achieved == pytest.approx(shares[key].declared, abs=1 / BLOCK)


def test_attributes_apart_are_independent(load):
    grammar = load(SMALL)
    drawn = [draw(grammar, 4, index).attributes for index in range(3 * BLOCK)]
    both = np.mean([a["gender"] == "woman" and a["light"] == "daylight" for a in drawn])
    assert both == pytest.approx(0.5 * 0.75, abs=4 * np.sqrt(0.375 * 0.625 / len(drawn)))


def test_what_cannot_be_reached_is_said(load):
    grammar = load(SMALL.replace("weight: 6", "weight: 2.6666666666666665"))  # 60 % beards
    # Nearest in divergence: women and men : beards in the proportion of geometric means.
    women = np.sqrt(0.5 * 0.4) / (np.sqrt(0.5 * 0.4) + np.sqrt(0.5 * 0.6))
    found = {(name, value): (d, r) for name, value, d, r in grammar.out_of_reach()}
    assert found["gender", "woman"] == pytest.approx((0.5, women), abs=1e-6)
    assert found["beard", "none"] == pytest.approx((0.4, women), abs=1e-6)
    assert found["beard", "stubble"] == pytest.approx((0.3, (1 - women) / 2), abs=1e-6)
    assert {name for name, _ in found} == {"gender", "beard"}
    achieved = np.mean([draw(grammar, 0, i).attributes["gender"] == "woman" for i in range(BLOCK)])
    assert achieved == pytest.approx(women, abs=2 / BLOCK)


def test_raking_meets_targets_closest_to_independence():
    rng = np.random.default_rng(0)
    allowed = rng.random((4, 5, 3)) > 0.2
    base = allowed * rng.random(allowed.shape)
    base /= base.sum()
    axes = [(1, 2), (0, 2), (0, 1)]
    targets = [base.sum(axis=axis) for axis in axes]
    joint = rake(allowed, targets)
    assert (joint[~allowed] == 0).all()
    for axis, target in zip(axes, targets, strict=True):
        np.testing.assert_allclose(joint.sum(axis=axis), target, atol=1e-8)
    # Closest to independence: log joint is a sum of one term an axis where allowed.
    cells = np.argwhere(allowed)
    design = np.zeros((len(cells), sum(allowed.shape)))
    for axis, start in enumerate((0, 4, 9)):
        design[np.arange(len(cells)), start + cells[:, axis]] = 1
    logs = np.log(joint[allowed])
    fitted = design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    np.testing.assert_allclose(fitted, logs, atol=1e-6)


MISTAKES = {
    "unknown in a template": (
        "{light}",
        "{lihgt}",
        r"prompt: unknown .*'lihgt'; did you mean 'light'",
    ),
    "unknown in a phrase": ("with {beard}", "{x!r}", r"phrases.looks: unknown .*'x!r'"),
    "unknown in an exclusion": (
        "{gender: [w",
        "{sex: [w",
        r"exclude.0: unknown attribute 'sex'; known: gender",
    ),
    "unknown value": (
        "[woman]",
        "[women]",
        r"exclude.0.gender: unknown value 'women'; did you mean 'woman'",
    ),
    "weight of zero": ("woman: 5", "woman: 0", r"attributes.gender.woman.weight: .*greater"),
    "negative weight": ("weight: 6", "weight: -6", r"attributes.beard.none.weight: .*got -6"),
    "endless weight": ("woman: 5", "woman: .inf", r"attributes.gender.woman.weight"),
    "no weight": ("woman: 5", "woman: yes", r"attributes.gender.woman: expected a weight"),
    "misspelt key": ("weight: 6", "wieght: 6", r"unknown key .*wieght'; did you mean 'weight'"),
    "a value twice": ("stubble: 2", "stubble: 2, stubble: 3", r"line 10: 'stubble' stands twice"),
    "a text twice": (
        "stubble: 2",
        "stubble: {weight: 2, text: full beard}",
        r"full beard: has the same text as 'stubble'",
    ),
    "never closed": (
        "{light}",
        "{light",
        r"prompt: a slot is never closed at '\{light'; add the '\}'",
    ),
    "never opened": ("{light}", "light}", r"prompt: a slot is never opened"),
    "slot in a text": ('text: ""', 'text: "{gender}"', r"beard.none: slots stand in"),
    "left without a partner": (
        "woman], beard: [",
        "woman, man], beard: [",
        r"exclude.0: nothing is left that goes with beard 'stubble'",
    ),
    "unsaid attribute": (
        ", {light}",
        "",
        r"attributes.light: not every wording of the prompt says it",
    ),
    "phrases in a circle": (
        "with {beard}",
        "{person} {beard}",
        r"phrases: person, looks contain each other",
    ),
    "one name for two": ("person", "light", r"'light' names two things"),
    "a key that is no text": (
        "woman: 5",
        "no: 5",
        r"attributes.gender.*: expected text, got False; write it in quotes",
    ),
    "not YAML": ("{woman: 5", "{{woman: 5", r"not valid YAML, line"),
    "no grammar": (SMALL, "- 1", r"expected keys and values"),
    "python": (SMALL, "prompt: !!python/object/apply:os.getcwd []", r"not valid YAML, line 1"),
    "merged keys": ("woman: 5", "<<: {woman: 5}", r"line 9: keys cannot be merged"),
    "deep": (SMALL, "[" * 500, r"nested too deeply"),
    "long": (SMALL, "#" * 2**20, r"larger than 524,288 bytes"),
    "prompt that explodes": (
        "  looks:",
        "".join(f"  p{i}: '{{p{i + 1}}} {{p{i + 1}}}'\n" for i in range(40))
        + "  p40: '{gender}'\n  looks:",
        r"phrases.p\d+: up to [\d,]+ characters, at most 2,000",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(load, name):
    old, new, message = MISTAKES[name]
    assert old in SMALL
    with pytest.raises(UserError, match=message) as caught:
        load(SMALL.replace(old, new))
    assert "g.yaml: " in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_tied_together_is_bounded(load):
    names = [f"a{i}" for i in range(20)]
    grammar = {
        "prompt": " ".join(f"{{{name}}}" for name in names),
        "attributes": {name: {"x": 1, "y": 1} for name in names},
        "exclude": [{a: ["x"], b: ["y"]} for a, b in pairwise(names)],
    }
    with pytest.raises(UserError, match=r"a0, a1, .* 1,048,576 combinations, at most 20,000"):
        load(yaml.safe_dump(grammar))


def test_a_missing_file():
    with pytest.raises(UserError, match="none.yaml: no such file"):
        load_grammar("none.yaml")


def test_the_shipped_grammar_is_what_it_says(shipped):
    assert shipped.out_of_reach() == []
    declared = {
        name: dict(zip(attribute.values, attribute.declared, strict=True))
        for name, attribute in shipped.attributes.items()
    }
    # As published for HGF.
    assert declared["pose"] == pytest.approx(
        {
            "forward": 0.05,
            "left": 0.25,
            "right": 0.25,
            "tilt left": 0.15,
            "tilt right": 0.15,
            "chin up": 0.075,
            "glancing": 0.075,
        }
    )
    assert declared["accessory"]["none"] == pytest.approx(3 / 9)
    for name, least in (("expression", 8), ("light", 8), ("camera", 8), ("background", 10)):
        assert len(declared[name]) >= least
    words = " ".join(text for texts in shipped.attributes["age"].texts for text in texts)
    ages = [int(number) for number in re.findall(r"\d+", words)]
    assert min(ages) == 18 and max(ages) == 80
    assert least_tokens(shipped.negative) <= TOKENS


@pytest.mark.slow
def test_the_shipped_grammar_excludes_what_it_excludes(shipped, people):
    with open(shipped.path, encoding="utf-8") as file:
        rules = yaml.safe_load(file)["exclude"]
    assert not any(excluded(rules, person.attributes) for person in people)
    for person in people:
        assert person.prompt == re.sub(r"\s+", " ", person.prompt).strip(" ,")
        assert ", ," not in person.prompt and " ," not in person.prompt
        assert least_tokens(person.prompt) <= TOKENS


@pytest.mark.slow
def test_the_shipped_grammar_keeps_its_balance(shipped, people):
    free = {group.names[0] for group in shipped.groups if len(group.names) == 1}
    assert len(free) >= 7
    for share in balance(shipped, (person.attributes for person in people)):
        spread = np.sqrt(share.declared * (1 - share.declared) / len(people))
        bound = 2 / BLOCK if share.attribute in free else 4 * spread
        assert abs(share.achieved - share.declared) <= bound, share
