import math

import pytest
import torch
from torch.nn import functional

from raypipe.heads import ArcFace


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
