"""Sparse attention beside a softmax over all pairs under the same mask: values, log-sums and gradients (I14)."""

from __future__ import annotations

import pytest
import torch

from limbeck.kernels import sparse
from limbeck.kernels.attention import Span
from limbeck.kernels.sparse import compiled, sparse_attention
from limbeck.model.patterns import Causal, LogSparse, Pattern, Sliding, Strided

PATTERNS = {
    "window-of-one": Sliding(window=1),
    "window": Sliding(window=5, sinks=2),
    "wide-window": Sliding(window=40, sinks=3),
    "nearer-sinks": Sliding(window=20, sinks=3, sink_distance="cache"),
    "log": LogSparse(window=1),
    "log-wide": LogSparse(window=20, sinks=4),
    "log-restart": LogSparse(window=4, restart=24),
    "strided": Strided(window=3, stride=7),
    "strided-wide": Strided(window=20, stride=32, sinks=1),
    "dilated": Strided(window=1, stride=3, keys=4),
    "causal": Causal(),
}
T = 100
SPANS = [Span(0, 1, 0, 70), Span(0, 1, 70, 71), Span(0, 1, 75, T), Span(1, 3, 3, T)]


def dense(q, k, v, pattern: Pattern, spans, sink_queries):
    """All pairs of tokens, under a mask that is written out; and the log-sums."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    seen, first = torch.zeros(q.shape[0], T, T, dtype=torch.bool), torch.zeros(q.shape[0], T, dtype=torch.bool)
    for s in spans:
        place, rows, at = torch.arange(s.stop - s.start), slice(s.first, s.last), slice(s.start, s.stop)
        seen[rows, at, at] = pattern.allows(place[:, None], place)
        first[rows, s.start : s.start + pattern.sinks] = True
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if sink_queries is not None:
        scores = torch.where(first[:, None, None], sink_queries @ k.mT * q.shape[-1] ** -0.5, scores)
    outside = ~seen.any(-1)[:, None, :, None]
    scores = scores.masked_fill(~seen[:, None], float("-inf")).masked_fill(outside, 0)
    return scores.softmax(-1).masked_fill(outside, 0) @ v, scores.logsumexp(-1).masked_fill(outside[..., 0], 0)


def inputs(width: int, sinks: bool) -> list[torch.Tensor]:
    shapes = [(3, 6, T, width), (3, 2, T, width), (3, 2, T, width), *([(3, 6, T, width)] if sinks else [])]
    return [torch.randn(s, dtype=torch.float64) for s in shapes]


def results(run, tensors, dtype, out_gradient, sums_gradient):
    given = [x.to(dtype).clone().requires_grad_() for x in tensors]
    out, sums = run(*given[:3], given[3] if len(given) > 3 else None)
    ((out * out_gradient.to(dtype)).sum() + (sums * sums_gradient.to(sums.dtype)).sum()).backward()
    return [out.detach(), sums.detach(), *(x.grad for x in given)]


@pytest.mark.parametrize(("dtype", "worst"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("name", PATTERNS)
def test_values_and_gradients_are_those_of_the_dense_mask(name, width, dtype, worst):
    """fp64 by torch's form, fp32 by the compiled pass; grouped queries, packed, ragged and padded rows."""
    pattern = PATTERNS[name]
    tensors = inputs(width, bool(pattern.sink_reach))
    inside = torch.zeros(3, 1, T, dtype=torch.bool)
    for s in SPANS:
        inside[s.first : s.last, :, s.start : s.stop] = True
    gradients = torch.randn(3, 6, T, width, dtype=torch.float64), torch.randn(3, 6, T, dtype=torch.float64) * inside
    reach = pattern.reach(T)

    def ours(q, k, v, s):
        return sparse_attention(q, k, v, SPANS, reach, sink_queries=s)

    assert (compiled(tensors[0].to(dtype)) is None) == (dtype == torch.float64 or sparse.native.load() is None)
    expected = results(lambda q, k, v, s: dense(q, k, v, pattern, SPANS, s), tensors, torch.float64, *gradients)
    for a, b in zip(results(ours, tensors, dtype, *gradients), expected, strict=True):
        assert (a - b).abs().max() <= worst * b.abs().max()


def test_torchs_form_serves_where_there_is_no_compiler(monkeypatch):
    tensors = [x.float() for x in inputs(16, False)]
    reach = PATTERNS["log-wide"].reach(T)
    fast = sparse_attention(*tensors, SPANS, reach)
    monkeypatch.setattr(sparse.native, "load", lambda: None)
    for a, b in zip(fast, sparse_attention(*tensors, SPANS, reach), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bf16_rounds_inputs_and_results_alone():
    tensors = [x.bfloat16().requires_grad_() for x in inputs(16, False)]
    wide = [x.detach().float().requires_grad_() for x in tensors]
    if compiled(wide[0]) is None:
        pytest.skip("torch's form rounds between its operations too")
    reach = PATTERNS["log-wide"].reach(T)
    out, exact = sparse_attention(*tensors, SPANS, reach)[0], sparse_attention(*wide, SPANS, reach)[0]
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.bfloat16())
    out.float().square().sum().backward()
    exact.square().sum().backward()
    for a, b in zip(tensors, wide, strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert (a.grad.float() - b.grad).norm() <= 1e-2 * b.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_documents_there_is_nothing(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in inputs(16, False))
    out, sums = sparse_attention(q, k, v, [], PATTERNS["log"].reach(T))
    assert not out.any() and not sums.any()
    out.sum().backward()
    assert not q.grad.any() and not v.grad.any()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    tensors = [x.float() for x in inputs(16, False)]
    reach = PATTERNS["strided-wide"].reach(T)
    one = sparse_attention(*tensors, SPANS, reach)[0]
    try:
        torch.set_num_threads(threads)
        assert torch.equal(sparse_attention(*tensors, SPANS, reach)[0], one)
    finally:
        torch.set_num_threads(before)


def test_strided_inputs_need_no_copy():
    """Queries as attention makes them: (B, T, H, D) transposed."""
    tensors = [x.float() for x in inputs(16, False)]
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    reach = PATTERNS["window"].reach(T)
    assert torch.equal(sparse_attention(*laid, SPANS, reach)[0], sparse_attention(*tensors, SPANS, reach)[0])
