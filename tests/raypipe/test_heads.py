import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from raypipe.config.train import TrainConfig
from raypipe.heads import ArcFace, make_head


def batch(classes=7, dimensions=5, rows=6):
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(rows, dimensions, generator=generator) * 4
    labels = torch.randint(classes, (rows,), generator=generator)
    return embeddings, labels


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def test_logits_are_those_of_the_scalar_formula():
    torch.manual_seed(0)
    head = ArcFace(5, 7, margin=0.5, scale=64.0)
    embeddings, labels = batch()
    logits, cosines = head(embeddings, labels)
    for i, label in enumerate(labels.tolist()):
        for k in range(7):
            expected = cosine(embeddings[i].tolist(), head.weight[k].tolist())
            assert cosines[i, k].item() == pytest.approx(expected, abs=1e-5)
            if k == label:
                expected = math.cos(math.acos(expected) + 0.5)
            assert logits[i, k].item() == pytest.approx(64 * expected, abs=1e-3)


def test_gradient_of_the_embedding_is_that_of_scaled_cosines():
    """d loss / d cos = scale · (p - onehot) / N, p the softmax of the logits with the margin."""
    torch.manual_seed(0)
    head = ArcFace(5, 7, margin=0.5, scale=8.0)
    embeddings, labels = batch()
    embeddings.requires_grad_()
    logits, _ = head(embeddings, labels)
    functional.cross_entropy(logits, labels).backward()

    with torch.no_grad():
        share = functional.softmax(logits, 1) - functional.one_hot(labels, 7)
        share = share * head.scale / len(labels)
        unit = functional.normalize(embeddings)
        towards = share @ functional.normalize(head.weight)
        # The derivative of x/|x|: what is left across x, over its length.
        across = towards - (towards * unit).sum(1, keepdim=True) * unit
        expected = across / embeddings.norm(dim=1, keepdim=True)
    assert torch.allclose(embeddings.grad, expected, atol=1e-5)


def test_gradient_stays_finite_on_the_class_centre_and_opposite_to_it():
    head = ArcFace(4, 2, margin=0.5, scale=64.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    embeddings = torch.tensor([[3.0, 0, 0, 0], [-2.0, 0, 0, 0]], requires_grad=True)
    logits, _ = head(embeddings, torch.tensor([0, 0]))
    functional.cross_entropy(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_without_margin_it_is_a_scaled_cosine_classifier():
    torch.manual_seed(0)
    head = ArcFace(5, 7, margin=0.0, scale=10.0)
    logits, cosines = head(*batch())
    assert torch.allclose(logits, cosines * 10, atol=1e-5)


def test_float32_under_autocast():
    torch.manual_seed(0)
    head = ArcFace(5, 7, margin=0.5, scale=64.0)
    embeddings, labels = batch()
    plain, _ = head(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits, cosines = head(embeddings, labels)
    assert logits.dtype == cosines.dtype == torch.float32
    assert torch.equal(logits, plain)


def test_weights_start_small_and_normal():
    torch.manual_seed(0)
    weight = ArcFace(512, 300, margin=0.5, scale=64.0).weight
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)


def spread_batch(rows=12, dimensions=5, classes=7):
    """Embeddings from shorter than MagFace's l_a to longer than its u_a, most of them on their
    class's side, one of them beyond it."""
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((classes, dimensions)) * 0.01
    labels = generator.integers(classes, size=rows)
    embeddings = generator.standard_normal((rows, dimensions)) + 60 * weight[labels]
    embeddings[1] -= 160 * weight[labels[1]]
    lengths = np.linspace(4, 130, rows) / np.linalg.norm(embeddings, axis=1)
    return weight, embeddings * lengths[:, None], labels


def head_of(name, weight, **fields):
    head = make_head(TrainConfig(head=name, **fields), weight.shape[1], len(weight))
    head.weight.data = torch.tensor(weight, dtype=torch.float32)
    return head


def ada_z(lengths, mean, std):
    return [max(-1, min(1, 0.333 * (a - mean) / (std + 1e-3))) for a in lengths]


def adaface(theta, z):
    angle = min(max(theta - 0.4 * z, 1e-3), math.pi - 1e-3)
    return math.cos(angle) - (0.4 + 0.4 * z)


def magface(theta, length):
    a = min(max(length, 10), 110)
    margin = 0.45 + (0.8 - 0.45) * (a - 10) / (110 - 10)
    return math.cos(theta + margin) if math.cos(theta) > 0 else math.cos(theta)


def magface_pull(embeddings):
    lengths = [min(max(np.linalg.norm(x), 10), 110) for x in embeddings]
    return 35 * sum(a / 110**2 + 1 / a for a in lengths) / len(lengths)


def reference_loss(weight, embeddings, labels, margined, scale=64.0):
    """Mean cross entropy where `margined(row, theta, length)` stands for the own cosine."""
    losses = []
    for i, (x, label) in enumerate(zip(embeddings, labels, strict=True)):
        logits = [scale * cosine(x, w) for w in weight]
        theta = math.acos(logits[label] / scale)
        logits[label] = scale * margined(i, theta, math.sqrt(sum(v * v for v in x)))
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(v - top) for v in logits)) - logits[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("name", "fields", "margined"),
    [
        ("arcface", {}, lambda theta: math.cos(theta + 0.5)),
        ("cosface", {}, lambda theta: math.cos(theta) - 0.4),
        ("combined", {}, lambda theta: math.cos(theta + 0.3) - 0.2),
        ("combined", {"margins": (0.9, 0.4, 0.15)}, lambda t: math.cos(0.9 * t + 0.4) - 0.15),
    ],
)
def test_losses_with_fixed_margins_are_those_of_the_formula(name, fields, margined):
    weight, embeddings, labels = spread_batch()
    head = head_of(name, weight, **fields)
    loss, _ = head.loss(torch.tensor(embeddings), torch.tensor(labels))
    expected = reference_loss(weight, embeddings, labels, lambda _, theta, length: margined(theta))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_adaface_follows_the_running_mean_and_spread_of_norms():
    weight, embeddings, labels = spread_batch()
    head = head_of("adaface", weight, t_alpha=0.3)
    mean, std = 20.0, 100.0
    for part in (slice(0, 5), slice(5, 12)):
        lengths = np.linalg.norm(embeddings[part], axis=1).clip(1e-3, 100)
        mean = 0.3 * lengths.mean() + 0.7 * mean
        std = 0.3 * lengths.std(ddof=1) + 0.7 * std
        z = ada_z(lengths, mean, std)
        loss, _ = head.loss(torch.tensor(embeddings[part]), torch.tensor(labels[part]))
        expected = reference_loss(
            weight, embeddings[part], labels[part], lambda i, theta, _, z=z: adaface(theta, z[i])
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    state = head.state_dict()
    assert state["batch_mean"].item() == pytest.approx(mean, rel=1e-6)
    assert state["batch_std"].item() == pytest.approx(std, rel=1e-6)


def test_magface_margin_and_pull_are_those_of_the_formula():
    weight, embeddings, labels = spread_batch()
    loss, _ = head_of("magface", weight).loss(torch.tensor(embeddings), torch.tensor(labels))
    expected = reference_loss(weight, embeddings, labels, lambda _, t, length: magface(t, length))
    assert loss.item() == pytest.approx(expected + magface_pull(embeddings), rel=1e-5)


@pytest.mark.parametrize("name", ["cosface", "adaface", "magface"])
def test_gradients_are_those_of_the_formula(name):
    """Against central differences; AdaFace's norms have none."""
    weight, embeddings, labels = spread_batch()
    head = head_of(name, weight, scale=8.0, t_alpha=1.0 if name == "adaface" else 0.01)
    given = torch.tensor(embeddings, dtype=torch.float32, requires_grad=True)
    head.loss(given, torch.tensor(labels))[0].backward()
    lengths = np.linalg.norm(embeddings, axis=1).clip(1e-3, 100)
    z = ada_z(lengths, lengths.mean(), lengths.std(ddof=1))

    def expected_loss(x, w):
        def margined(i, theta, length):
            if name == "cosface":
                return math.cos(theta) - 0.4
            return adaface(theta, z[i]) if name == "adaface" else magface(theta, length)

        pull = magface_pull(x) if name == "magface" else 0
        return reference_loss(w, x, labels, margined, scale=8.0) + pull

    for row, column in [(0, 1), (1, 2), (4, 0), (6, 3), (11, 4)]:
        step = np.zeros_like(embeddings)
        step[row, column] = 1e-4
        change = expected_loss(embeddings + step, weight) - expected_loss(embeddings - step, weight)
        assert given.grad[row, column].item() == pytest.approx(change / 2e-4, abs=1e-5)
    for row, column in [(0, 0), (labels[5], 2)]:
        step = np.zeros_like(weight)
        step[row, column] = 1e-7
        change = expected_loss(embeddings, weight + step) - expected_loss(embeddings, weight - step)
        expected = pytest.approx(change / 2e-7, rel=1e-3, abs=1e-3)
        assert head.weight.grad[row, column].item() == expected


@pytest.mark.parametrize("name", ["arcface", "cosface", "combined", "adaface", "magface"])
def test_every_head_is_float32_under_autocast_and_finite_at_the_poles(name):
    weight, embeddings, labels = spread_batch()
    embeddings[:2] = 1000 * weight[labels[0]], -1000 * weight[labels[1]]
    given = torch.tensor(embeddings, dtype=torch.bfloat16, requires_grad=True)
    plain, _ = head_of(name, weight).loss(given.float(), torch.tensor(labels))
    head = head_of(name, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss, right = head.loss(given, torch.tensor(labels))
    assert loss.dtype == torch.float32
    assert loss.item() == plain.item()
    assert 0 < right < len(labels)
    loss.backward()
    assert torch.isfinite(given.grad).all()
    assert torch.isfinite(head.weight.grad).all()
