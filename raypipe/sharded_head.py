"""A classification head whose classes are split over processes, each with a part of the weights.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs
by Partial FC" (CVPR 2022); deepinsight/insightface, recognition/arcface_torch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from raypipe.heads import Head
from raypipe.seeding import torch_seed

Group = distributed.ProcessGroup | None


def bounds(classes: int, rank: int, ranks: int) -> tuple[int, int]:
    """First class of a rank's shard, and the one after its last.

    The first `classes % ranks` ranks hold one class more than the others, as in arcface_torch
    (partial_fc_v2.py), so that its shards can be joined too.
    """
    least, more = divmod(classes, ranks)
    start = rank * least + min(rank, more)
    return start, start + least + (rank < more)


def shard_file(start: int, stop: int) -> str:
    """Name of the file with what belongs to the classes start to stop - 1."""
    return f"head-{start}-{stop}.pt"


def read_shard(
    names: Iterable[str], read: Callable[[str], dict[str, Tensor]], start: int, stop: int
) -> dict[str, Tensor]:
    """Cuts the shard of some classes out of the files of any number of ranks.

    Args:
        names: of all files of a checkpoint; those that `shard_file` named are looked at.
        read: tensors of a file, with a row for each of its classes; files of other classes are not
            read.
    """
    parts: dict[str, list[Tensor]] = {}
    bounds_of = {
        name: tuple(map(int, name.removeprefix("head-").removesuffix(".pt").split("-")))
        for name in names
        if name.startswith("head-")
    }
    for name, (first, last) in sorted(bounds_of.items(), key=lambda item: item[1]):
        low, high = max(first, start), min(last, stop)
        if low < high:
            for key, rows in read(name).items():
                parts.setdefault(key, []).append(rows[low - first : high - first])
    return {key: torch.cat(rows) for key, rows in parts.items()}


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in their order; a rank's rows get the sum of what all ranks derive."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.count = group, len(rows)
        return _all_rows(rows, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        start = distributed.get_rank(ctx.group) * ctx.count
        return total[start : start + ctx.count], None


class _Sum(torch.autograd.Function):
    """Sum over the ranks; a rank derives by its own term, for all of them compute the same loss."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _all_rows(rows: Tensor, group: Group) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, rows.contiguous(), group=group)
    return torch.cat(parts)


class ShardedHead(nn.Module):
    """A head of which every rank of a process group holds the weights of some classes.

    Every rank brings a batch of the same size. The embeddings are gathered, each rank computes the
    cosines of all of them with its classes, and the softmax is taken over the classes of all ranks.
    Loss and gradients are those of the whole head on the gathered batch, as exactly as float32
    rounds. DistributedDataParallel around the network divides its gradients by the number of ranks:
    then what an embedding gets from here has to be multiplied by it, and the weights, which are
    another rank's nowhere, have to be left out.

    With `share` below 1 a step takes part of the classes (Partial FC): those of the gathered batch,
    and random ones up to this share of the shard. Every other class is left out of the softmax and
    keeps weight and momentum; the gradient is in `taken.grad`, and `RowSGD` updates from it.

    Attributes:
        head: the head of this rank's classes; its weight is float32 (shard, dimensions).
        rows: int64, rising; rows of the weight that the last step took. With `share` below 1.
        taken: float32 (rows, dimensions), a leaf with these rows. With `share` below 1.
        step: int64 scalar, steps so far; with the seed and the rank it says which classes are drawn
            next. In the state dict.
    """

    rows: Tensor
    taken: Tensor
    step: Tensor

    def __init__(
        self, head: Head, *, share: float = 1.0, seed: int = 0, group: Group = None
    ) -> None:
        """Keeps this rank's classes of a head.

        Args:
            head: with all classes, the same on every rank, and no fewer of them than ranks.
            share: of a shard's classes that a step takes, in (0, 1]; published: 0.1.
            seed: of the drawing.
            group: of processes; none: all, or this one alone where none has been initialized.
        """
        super().__init__()
        alone = not distributed.is_initialized()
        self.ranks = 1 if alone else distributed.get_world_size(group)
        self.rank = 0 if alone else distributed.get_rank(group)
        self.group, self.share, self.seed = group, share, seed
        self.start, self.stop = bounds(len(head.weight), self.rank, self.ranks)
        self.head = head
        head.weight = nn.Parameter(head.weight.detach()[self.start : self.stop].clone())
        self.register_buffer("step", torch.tensor(0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of the batches of all ranks, and how many here are nearest to their own class.

        Args:
            embeddings: (N, dimensions), of any length; N is the same on every rank.
            labels: int64 (N,), in [0, classes of all ranks).

        Returns:
            float32 scalar, the same on every rank, and int64 scalar, of this rank's batch: without
            margin, among the classes that the step took.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            lengths = embeddings.norm(dim=1)
            self.head.observe(lengths, self.group)
            penalty = self._sum(self.head.penalty(lengths) / self.ranks)
            if self.ranks > 1:
                embeddings = _Gather.apply(embeddings, self.group)
                labels = _all_rows(labels, self.group)
            here = ((labels >= self.start) & (labels < self.stop)).nonzero().squeeze(1)
            weight, columns = self._take(labels[here] - self.start)
            unit = functional.normalize(embeddings)
            cosines = functional.linear(unit, functional.normalize(weight)).clamp(-1, 1)
            own = self.head.with_margin(cosines[here, columns], embeddings[here].norm(dim=1))
            logits = cosines.index_put((here, columns), own) * self.head.scale
            loss = self._cross_entropy(logits, here, columns) + penalty
            right = self._nearest(cosines.detach()) == labels
        count = len(labels) // self.ranks
        return loss, right[self.rank * count : (self.rank + 1) * count].sum()

    def _take(self, positives: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a step's classes, and where among them the given rows are."""
        weight = self.head.weight
        if self.share == 1:
            return weight, positives
        name = f"negatives {self.rank}"
        seed = torch_seed(self.seed, "train", int(self.step), name)
        draw = torch.rand(
            len(weight),
            generator=torch.Generator(weight.device).manual_seed(seed),
            device=weight.device,
        )
        draw[positives] = 2  # above every other
        count = max(int(self.share * len(weight)), len(positives.unique()), 1)
        self.rows = draw.topk(count).indices.sort().values
        self.taken = weight.detach()[self.rows].requires_grad_()
        self.step += 1
        return self.taken, torch.searchsorted(self.rows, positives)

    def _cross_entropy(self, logits: Tensor, here: Tensor, columns: Tensor) -> Tensor:
        """Mean over the gathered batch; `here` are the rows whose own class is a column here."""
        highest = logits.detach().amax(1)
        self._reduce(highest, distributed.ReduceOp.MAX)
        total = self._sum((logits - highest.unsqueeze(1)).exp().sum(1))
        own = logits.new_zeros(len(logits)).index_put((here,), logits[here, columns])
        return (total.log() + highest - self._sum(own)).mean()

    def _nearest(self, cosines: Tensor) -> Tensor:
        """Class of the largest cosine on any rank, the first of equals, as of the whole matrix."""
        best, column = cosines.max(1)
        highest = best.clone()
        self._reduce(highest, distributed.ReduceOp.MAX)
        found = self.start + (column if self.share == 1 else self.rows[column])
        found = found.where(best == highest, torch.iinfo(torch.int64).max)
        self._reduce(found, distributed.ReduceOp.MIN)
        return found

    def _reduce(self, values: Tensor, how: distributed.ReduceOp.RedOpType) -> None:
        if self.ranks > 1:
            distributed.all_reduce(values, how, group=self.group)

    def _sum(self, values: Tensor) -> Tensor:
        return values if self.ranks == 1 else _Sum.apply(values, self.group)


class RowSGD(torch.optim.Optimizer):
    """SGD over the rows that a sharded head took, its state named like that of torch.optim.SGD.

    A row that was not taken keeps weight and momentum: neither decays, as in the first Partial FC
    (arcface_torch, partial_fc.py). torch.optim.SGD would move every row, by its old momentum and
    the weight decay.
    """

    def __init__(
        self, sharded: ShardedHead, *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        """For a head with `share` below 1."""
        super().__init__(
            [sharded.head.weight], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self._sharded = sharded

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the rows of the last step from `ShardedHead.taken.grad`."""
        (group,) = self.param_groups
        (weight,) = group["params"]
        rows, taken = self._sharded.rows, self._sharded.taken
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"]
        assert taken.grad is not None
        change = taken.grad + group["weight_decay"] * taken
        change += group["momentum"] * momentum[rows]
        momentum[rows] = change
        weight[rows] = taken - group["lr"] * change
