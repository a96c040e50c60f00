"Properties of merging that hold for any weights: copies, order, scale, limits, types, and independence of the order of tensors."
import math
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from merge_nb.merge import METHODS, TiesScan, merge

OPTIONS = dict(ties=dict(density=.6), dare=dict(density=.6), breadcrumbs=dict(density=.6, gamma=.1), slerp=dict(t=.3))
MEASURED = {k: m.data for k, m in METHODS.items() if m.data}
AVERAGES = ['linear', 'slerp', 'karcher', 'fisher', 'regmean']               # of copies: the copy
VECTORS = [k for k, m in METHODS.items() if m.needs_base]
SCALED = [k for k in VECTORS if 'lambda_' in METHODS[k].options]
WHOLE = dict(ties=dict(density=1.), dare=dict(density=1.), breadcrumbs=dict(density=1., gamma=0.), della=dict(density=1., epsilon=0.),
             consensus=dict(k=1), task_arithmetic={}, magmax={}, tall_mask={}, sce={})  # options that drop nothing
COPIES = dict(ties=dict(density=1.), magmax={}, model_stock={}, sce={}, task_arithmetic=dict(then='mean'), dare=dict(then='mean', density=1.),
              della=dict(density=1., epsilon=0.), breadcrumbs=dict(then='mean', density=1., gamma=0.), consensus=dict(lambda_=1/3))  # options that average
RANDOM = {'dare', 'della'}
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=3)
quick = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def states(shapes, n, seed, dtype=torch.float32):
    "Draw `n` state dicts."
    g = torch.Generator().manual_seed(seed)
    return [{f'h.{i}.w': torch.randn(s, generator=g).to(dtype) for i, s in enumerate(shapes)} | {'ids': torch.arange(3)} for _ in range(n)]


def options(name, experts, seed=0):
    "Give a method the options it needs here."
    g = torch.Generator().manual_seed(seed)
    measured = [{k: torch.rand(w.shape, generator=g) for k, w in e.items()} if name == 'fisher' else
                {k: torch.eye(w.shape[1])*(1 + i) for k, w in e.items() if w.ndim == 2} for i, e in enumerate(experts)]
    return OPTIONS.get(name, {}) | ({MEASURED[name]: measured} if name in MEASURED else {})


def close(a, b, eps=1e-4):
    assert list(a) == list(b)
    for k in a: torch.testing.assert_close(a[k].double(), b[k].double(), atol=eps, rtol=eps)


@pytest.mark.parametrize('name', METHODS)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), dtype=st.sampled_from(FLOATS))
def test_keeps_names_types_and_inputs(name, shapes, seed, dtype):
    a, b, base = states(shapes, 3, seed, dtype)
    before = [{k: w.clone() for k, w in s.items()} for s in (a, b, base)]
    out = merge(name, [a, b], base, **options(name, [a, b]))
    assert [(k, w.dtype, w.shape) for k, w in out.items()] == [(k, w.dtype, w.shape) for k, w in base.items()]
    for now, then in zip((a, b, base), before): assert all(torch.equal(now[k], then[k]) for k in now)
    assert all(w.isfinite().all() for w in out.values())


@pytest.mark.parametrize('name', AVERAGES)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), n=st.integers(1, 4))
def test_copies_give_the_copy(name, shapes, seed, n):
    a, = states(shapes, 1, seed)
    copies = [a]*(2 if name == 'slerp' else n)
    close(merge(name, copies, **options(name, copies)), a)
    if name == 'linear': assert all(torch.equal(w, a[k]) for k, w in merge(name, copies).items())


@pytest.mark.parametrize('name', COPIES)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_three_copies_of_a_task_vector(name, shapes, seed):
    a, base = states(shapes, 2, seed)
    close(merge(name, [a]*3, base, **COPIES[name]), a)


@pytest.mark.parametrize('name', sorted(set(METHODS) - {'slerp', 'tall_mask'}))
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), order=st.permutations(range(3)))
def test_order_of_experts(name, shapes, seed, order):
    *experts, base = states(shapes, 4, seed)
    o = WHOLE[name] if name in RANDOM else options(name, experts)  # the numbers drawn belong to the place of an expert
    p = {k: [v[i] for i in order] if k in MEASURED.values() else v for k, v in o.items()}
    close(merge(name, experts, base, **o), merge(name, [experts[i] for i in order], base, **p))


@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), t=st.floats(0, 1), task=st.integers(0, 2), order=st.permutations(range(3)))
def test_order_of_experts_that_have_a_role(shapes, seed, t, task, order):
    *experts, base = states(shapes, 4, seed)
    a, b, _ = experts
    close(merge('slerp', [a, b], t=t), merge('slerp', [b, a], t=1 - t))
    close(merge('tall_mask', experts, base, task=task), merge('tall_mask', [experts[i] for i in order], base, task=order.index(task)))
    for end, x in ((0, a), (1, b)): close(merge('slerp', [a, b], t=end), x)


@pytest.mark.parametrize('name', [k for k in AVERAGES if k != 'slerp'])
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), times=st.sampled_from([.25, 3.]))
def test_weights_of_an_average(name, shapes, seed, times):
    "Only their ratios count, and a weight of 0 leaves an expert out; RegMean averages what is no matrix."
    experts = states(shapes, 3, seed)
    o, w = options(name, experts), [.5, 0., 2.]
    out = merge(name, experts, weights=w, **o)
    close(out, merge(name, experts, weights=[a*times for a in w], **o))
    few = {k: v[::2] if k in MEASURED.values() else v for k, v in o.items()}
    close(out, merge(name, experts[::2], weights=w[::2], **few))


@pytest.mark.parametrize('name', METHODS)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([.125, 2., 64.]))
def test_scale(name, shapes, seed, scale):
    a, b, base = states(shapes, 3, seed)
    times = lambda s: {k: w*scale if w.is_floating_point() else w for k, w in s.items()}
    o = options(name, [a, b])
    close(merge(name, [times(a), times(b)], times(base), **o), times(merge(name, [a, b], base, **o)), eps=1e-3)


@pytest.mark.parametrize('name', SCALED)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_lambda_zero_is_the_base(name, shapes, seed):
    a, b, base = states(shapes, 3, seed)
    close(merge(name, [a, b], base, lambda_=0, **options(name, [a, b])), base, eps=0)


@pytest.mark.parametrize('name', SCALED)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([-.5, .3, 2.]))
def test_lambda_scales_what_is_added(name, shapes, seed, scale):
    a, b, base = states(shapes, 3, seed)
    whole, part = (merge(name, [a, b], base, lambda_=s, **options(name, [a, b])) for s in (1., scale))
    close(part, {k: w + scale*(whole[k] - w) if w.is_floating_point() else w for k, w in base.items()})


@pytest.mark.parametrize('name', WHOLE)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_one_expert_is_itself(name, shapes, seed):
    a, base = states(shapes, 2, seed)
    close(merge(name, [a], base, **WHOLE[name]), a)


@pytest.mark.parametrize('name', METHODS)
@quick
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_order_of_tensors(name, shapes, seed):
    a, b, base = states(shapes, 3, seed)
    o = options(name, [a, b])
    turned = lambda s: dict(reversed(s.items()))
    out, back = merge(name, [a, b], base, **o), merge(name, [turned(a), turned(b)], turned(base), **o)
    assert all(torch.equal(out[k], back[k]) for k in out)


@quick
@given(seed=st.integers(0, 99), density=st.tuples(*[st.floats(.01, 1) | st.just(1.)]*3), grid=st.sampled_from([0, 1, 8]), limit=st.sampled_from([300, 10**6]),
       most=st.sampled_from([5, 200, 10**6]), n=st.integers(1, 3000), same=st.booleans())
def test_exact_cut(seed, density, grid, limit, most, n, same):
    "The scan finds what a sort finds, cut and votes, whatever it sampled and however little it may hold."
    ts = torch.randn(3, n, generator=torch.Generator().manual_seed(seed))
    if grid: ts = (ts*grid).round()/grid
    if same: ts[1:] = ts[0]
    s = TiesScan(density, lambda name: [1., -.5, 2.], limit=limit, most=most)
    while s.again():
        for name, part in zip('abc', ts.split(n//3 + 1, 1)): s.update(name, list(part), torch.zeros(part.shape[1]))
        assert s.sampling or sum(w.shape[1] for _, w in s.kept) <= most
        assert s.tallies is None or all(t.shape[1] <= most for _, t in s.tallies)
    assert s.cuts == [0. if d == 1 else float(t.abs().sort(descending=True).values[max(1, int(d*n)) - 1]) for d, t in zip(density, ts)]
    kept = ts*(ts.abs() >= torch.tensor(s.cuts)[:, None])
    assert s.votes == float((kept*torch.tensor([[1.], [-.5], [2.]])).sum(0).sign().sum())


def ties_by_sorting(experts, base, density):
    "TIES over flat vectors, as its paper tells it: another implementation."
    flat = lambda s: torch.cat([w.flatten() for w in s.values() if w.is_floating_point()])
    ts = torch.stack([flat(e) - flat(base) for e in experts])
    for t in ts: t[t.abs() < t.abs().sort(descending=True).values[max(1, int(density*len(t))) - 1]] = 0
    sign = ts.sum(0).sign()
    sign[sign == 0] = 1 if sign.sum() >= 0 else -1
    agree = ts*sign > 0
    return flat(base) + (ts*agree).sum(0)/agree.sum(0).clamp(min=1)


@quick
@given(seed=st.integers(0, 99), density=st.floats(.05, 1), n=st.integers(1, 4), grid=st.booleans())
def test_ties_twice(seed, density, n, grid):
    *experts, base = states([(4, 7), (5,), (2, 3, 4)], n + 1, seed)
    if grid: *experts, base = [{k: w.round() for k, w in s.items()} for s in (*experts, base)]  # votes cancel
    out = merge('ties', experts, base, density=density)
    torch.testing.assert_close(torch.cat([w.flatten() for w in out.values() if w.is_floating_point()]), ties_by_sorting(experts, base, density))


@pytest.mark.parametrize('definition, mean', [('paper', 1.), ('mergekit', .55)])
def test_dare_is_unbiased(definition, mean):
    "One entry of 1000 among a hundred ones: on average itself, or about half of it."
    t = torch.ones(101).index_fill(0, torch.tensor(0), 1000.)
    got = [merge('dare', [{'w': t}], {'w': torch.zeros(101)}, seed=i, definition=definition)['w'][0].item()/1000 for i in range(400)]
    assert abs(sum(got)/400 - mean) < .15


@quick
@given(seed=st.integers(0, 99), n=st.integers(2, 200), density=st.floats(.05, .5), gamma=st.floats(0, .5), grid=st.booleans())
def test_breadcrumbs_by_sorting(seed, n, density, gamma, grid):
    "Kept is what is no larger than the first that stays and no smaller than the last."
    t = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    if grid: t = (2*t).round()
    size, top, last = t.abs().sort(descending=True).values, int(gamma*n), max(1, int(min(1, density+gamma)*n))
    keep = (t.abs() <= size[top])*(t.abs() >= size[last-1])
    assert torch.equal(merge('breadcrumbs', [{'w': t}], {'w': torch.zeros(n)}, density=density, gamma=gamma)['w'], t*keep)


@quick
@given(seed=st.integers(0, 99), n=st.integers(1, 4), density=st.floats(.05, 1), grid=st.booleans())
def test_sce_at_once(seed, n, density, grid):
    "SCE on stacked task vectors, in both definitions: another implementation."
    given = torch.randn(n, 60, generator=torch.Generator().manual_seed(seed))
    if grid: given = given.round()
    spread = given.var(0, unbiased=False)
    ts = given*(spread >= spread.sort(descending=True).values[max(1, int(density*60)) - 1] - 1e-5)
    share = ts.square().sum(1, keepdim=True)/ts.square().sum().clamp(min=1e-30)
    total = ts.sum(0)
    for definition, stay in (('paper', ts*total.sign() >= 0), ('mergekit', ts*torch.where(total >= 0, 1, -1) > 0)):
        expected = (ts*stay*share).sum(0)/(1 if definition == 'paper' else (stay*share).sum(0).clamp(min=1e-30))
        got = merge('sce', [{'w': t} for t in given], {'w': torch.zeros(60)}, density=density, definition=definition)
        torch.testing.assert_close(got['w'], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('bad, say', [
    (dict(density=0), 'fraction in'), (dict(density=1.5), 'fraction in'), (dict(density='x'), 'expected a number'), (dict(densty=.5), "did you mean 'density'"),
    (dict(weights=[1]), 'expected 2'), (dict(weights=[1, math.nan]), 'finite'), (dict(lambda_=math.inf), 'finite'), (dict(lambda_=[]), 'expected numbers or rules'),
    (dict(density={'each': [.1, .2, .3]}), 'expected 2'), (dict(lambda_=[{'filter': 'no', 'value': 1}]), 'no rule fits')])
def test_bad_options(bad, say):
    a, b, base = states([(2, 2)], 3, 0)
    with pytest.raises((ValueError, TypeError), match=say): merge('ties', [a, b], base, **bad)


@pytest.mark.parametrize('bad', [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize('method', sorted(k for k,m in METHODS.items() if m.shows))
def test_what_shows(method, bad):
    "Where inputs are not looked at because the result tells, it does: with a weight of zero, and with all of them alike."
    good = {'w': torch.randn(5, 4, generator=torch.Generator().manual_seed(0))}
    poor = {'w': good['w'].index_fill(0, torch.tensor(2), bad)}
    for options in [dict(t=0.), dict(t=1.)] if method=='slerp' else [dict(weights=[1, 0]), {}]:
        for who, experts in ((1, [good, poor]), (0, [poor, good]), (0, [poor, poor])):
            with pytest.raises(ValueError, match=f"'w' holds NaN or infinity in expert {who}"): merge(method, experts, good, **options)
