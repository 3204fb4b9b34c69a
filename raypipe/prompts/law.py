"""The law that attributes are drawn by: the declared balance, and nothing that is excluded.

To draw attributes on their own and draw again what is excluded would shift the balance: excluding
bearded women makes both women and beards rarer than declared. Here the joint law of the attributes
that exclusions tie together is computed when a grammar is loaded. Among all laws without an
excluded combination whose marginals are the declared ones, it is the one closest to independence.
Where no law has these marginals, it is the one that comes closest to them.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raypipe.errors import UserError

Exclusion = Mapping[str, frozenset[int]]  # attribute to places of its values

MOST_CELLS = 20_000  # combinations of classes in a group; raking them takes seconds
_TOLERANCE = 1e-9  # of a marginal, far below what any number of draws shows
_STILL = 1e-13  # a marginal that moves less has arrived
_STEPS = 10_000
_BELOW_ONE = float(np.nextafter(1, 0))


def _pick(cumulated: Sequence[float], u: float) -> tuple[int, float]:
    """The place that u in [0, 1) falls on, and how far into it, in [0, 1)."""
    place = bisect_right(cumulated, u)
    low = cumulated[place - 1] if place else 0.0
    return place, min((u - low) / (cumulated[place] - low), _BELOW_ONE)


def _along(values: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    return values.reshape([-1 if k == axis else 1 for k in range(dimensions)])


def marginals(joint: np.ndarray) -> list[np.ndarray]:
    """The sums of a joint table, float64, over all axes but one, for each axis."""
    axes = range(joint.ndim)
    return [joint.sum(axis=tuple(k for k in axes if k != axis)) for axis in axes]


def rake(allowed: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """A joint law on the allowed cells whose marginals are the targets, or closest to them.

    Simultaneous raking (generalized iterative scaling: Darroch and Ratcliff, "Generalized iterative
    scaling for log-linear models", 1972): every step multiplies a cell by the geometric mean of
    target / marginal over its axes. Where targets can be met, it goes to the law that is closest to
    the independent one in Kullback-Leibler divergence, as iterative proportional fitting does.
    Where they cannot, it goes to the law whose marginals have the smallest sum of divergences from
    the targets (SMART: Byrne, "Iterative image reconstruction algorithms based on cross-entropy
    minimization", 1993); iterative proportional fitting would go around in a cycle.

    Args:
        allowed: bool, one axis an attribute; every value has an allowed cell.
        targets: for each axis its marginal, positive, of sum 1.

    Returns:
        float64, of the shape of `allowed`, of sum 1, 0 where not allowed.
    """
    joint = allowed.astype(float)
    for axis, target in enumerate(targets):
        joint *= _along(target, axis, joint.ndim)
    before = None
    for _ in range(_STEPS):
        joint /= joint.sum()
        now = marginals(joint)
        far = max(np.abs(sums - target).max() for sums, target in zip(now, targets, strict=True))
        moved = max(np.abs(a - b).max() for a, b in zip(now, before, strict=True)) if before else 1
        if far < _TOLERANCE or moved < _STILL:
            break
        before = now
        for axis, (sums, target) in enumerate(zip(now, targets, strict=True)):
            joint *= _along((target / sums) ** (1 / joint.ndim), axis, joint.ndim)
    return joint / joint.sum()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Attributes that exclusions tie together, or one that is free, and their joint law.

    Values that the same exclusions name are a class: the law is one of classes, and within a class
    values keep the proportions of their weights.

    Attributes:
        names: the attributes.
        marginals: for each the share of its values under the law, float64.
    """

    names: tuple[str, ...]
    marginals: tuple[np.ndarray, ...]
    # For each attribute: cumulated shares of its classes given the classes of those before it, as
    # nested lists; places of the values of each class; cumulated shares of these in the class.
    _given: tuple[list, ...] = field(repr=False)
    _members: tuple[list[list[int]], ...] = field(repr=False)
    _within: tuple[list[list[float]], ...] = field(repr=False)

    def pick(self, numbers: Sequence[float]) -> list[int]:
        """The place of each attribute's value, from a number in [0, 1) for each."""
        chosen: list[int] = []
        values = []
        for k, u in enumerate(numbers):
            row = self._given[k]
            for place in chosen:
                row = row[place]
            place, rest = _pick(row, u)
            chosen.append(place)
            member, _ = _pick(self._within[k][place], rest)
            values.append(self._members[k][place][member])
        return values


def _classes(size: int, mentions: Sequence[frozenset[int]]) -> list[list[int]]:
    """Places of values, by which of the exclusions' sets they are in."""
    found: dict[tuple[bool, ...], list[int]] = {}
    for value in range(size):
        found.setdefault(tuple(value in mention for mention in mentions), []).append(value)
    return list(found.values())


def _cumulated(shares: np.ndarray) -> list:
    """Cumulated along the last axis to exactly 1; all 0 where nothing is."""
    sums = np.cumsum(shares, axis=-1)
    last = sums[..., -1:]
    return np.divide(sums, last, out=np.zeros_like(sums), where=last > 0).tolist()


def _group(
    names: Sequence[str],
    declared: Mapping[str, np.ndarray],
    exclusions: Sequence[tuple[int, Exclusion]],
    values: Mapping[str, Sequence[str]],
    where: str,
) -> Group:
    everything = {name: frozenset(range(len(declared[name]))) for name in names}
    sets = [[rule.get(name, everything[name]) for name in names] for _, rule in exclusions]
    members = [
        _classes(len(declared[name]), [parts[k] for parts in sets]) for k, name in enumerate(names)
    ]
    shape = [len(classes) for classes in members]
    cells = int(np.prod(shape, dtype=float))
    if cells > MOST_CELLS or len(names) > 32:  # axes of an array
        raise UserError(
            f"{where}: exclude: {', '.join(names)} are tied together, with {cells:,} combinations, "
            f"at most {MOST_CELLS:,} of 32 attributes; take out some exclusions"
        )
    allowed = np.ones(shape, bool)
    for parts in sets:
        inside = [
            [place for place, group in enumerate(classes) if group[0] in part]
            for classes, part in zip(members, parts, strict=True)
        ]
        allowed[np.ix_(*inside)] = False
    for k, left in enumerate(marginals(allowed)):
        for place in np.flatnonzero(left == 0):
            value = members[k][place][0]
            blamed = [
                i
                for (i, rule), parts in zip(exclusions, sets, strict=True)
                if names[k] in rule and value in parts[k]
            ]
            if blamed:
                rules = " and ".join(f"exclude.{i}" for i in blamed)
                raise UserError(
                    f"{where}: {rules}: nothing is left that goes with {names[k]} "
                    f"{values[names[k]][value]!r}; delete the value, or exclude less"
                )
    weights = [
        [declared[name][places] for places in classes]
        for name, classes in zip(names, members, strict=True)
    ]
    targets = [np.array([part.sum() for part in parts]) for parts in weights]
    joint = rake(allowed, targets)
    reached = [np.empty(len(declared[name])) for name in names]
    for k, sums in enumerate(marginals(joint)):
        for share, places, part in zip(sums, members[k], weights[k], strict=True):
            reached[k][places] = share * part / part.sum()
    axes = range(len(names))
    return Group(
        names=tuple(names),
        marginals=tuple(reached),
        _given=tuple(_cumulated(joint.sum(axis=tuple(axes[k + 1 :]))) for k in axes),
        _members=tuple(members),
        _within=tuple([_cumulated(part) for part in parts] for parts in weights),
    )


def groups(
    declared: Mapping[str, np.ndarray],
    exclusions: Sequence[Exclusion],
    values: Mapping[str, Sequence[str]],
    where: str,
) -> tuple[Group, ...]:
    """The laws of all attributes, those apart that no exclusion ties together.

    Args:
        declared: for each attribute the shares of its values, float64, positive, of sum 1.
        exclusions: combinations that never occur.
        values: the names of the values, for errors.
        where: file, for errors.

    Raises:
        UserError: where exclusions leave a value impossible, or tie too much together.
    """
    tied = [{name} for name in declared]
    for rule in exclusions:
        touched = [part for part in tied if part & set(rule)]
        tied = [part for part in tied if part not in touched] + [set().union(*touched)]
    order = list(declared)
    numbered = list(enumerate(exclusions))
    return tuple(
        _group(
            [name for name in order if name in part],
            declared,
            [(i, rule) for i, rule in numbered if part & set(rule)],
            values,
            where,
        )
        for part in sorted(tied, key=lambda part: min(map(order.index, part)))
    )
