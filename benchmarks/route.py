"""Time mixtures of frozen MLPs beside the products they are made of and beside loops, and count what they keep in memory.

    python benchmarks/route.py [--threads 2] [--runs 7] [--json PATH]

Experts are the MLPs of a fresh GPT-2; `e` experts, width `d`, `n` tokens. Forward and backward gives the gradients of the router and
of the stream, and none of a frozen matrix. Bare products are made by the library that ours would take, MKL or oneDNN, without biases, activations and routing: 2 products
an expert forward; backward 2 where all hidden layers are kept, 3 where none is, for each is worked out again. Ours keeps some, those
of as many experts as fit under a limit: of eight that see all tokens seven at width 96, one at width 768. Contestants agree in
values and gradients, which is checked, and take turns within each run. *Compiled* needs a C++ compiler. A ratio is the row's seconds over those of the row its note names, or of the first row of its
case. Bytes are those of the tensors made in one pass and alive at one time, weights and input apart.
"""
from __future__ import annotations
from collections.abc import Callable, Sequence
import torch
from torch import Tensor, nn
from _timing import main, ratio, row, target, timed
from merge_nb.models import _Bytes, load_base, mlps, pico
from merge_nb.route import RoutedMLP, Router, _Room, compile_activations, route

GELU = 'gelu_pytorch_tanh'  # one kernel; `gelu_new`, the default of GPT-2, is the same function in eight
WIDE, NARROW = (768, 2048), (96, 2304)  # width and tokens

def experts(e:int, d:int, act:str=GELU) -> list[nn.Module]:
    "Make `e` frozen MLPs of width `d`."
    model = load_base(pico('gpt2', d, e, vocab=8, context=8, activation_function=act, resid_pdrop=0.))
    return mlps(model.requires_grad_(False))

def mixture(fs:Sequence[nn.Module], d:int, top_k:int|None=None) -> RoutedMLP:
    "Route over `fs` by a random router."
    e = len(fs)
    moe = RoutedMLP(fs, Router(d, e, top_k=top_k) if e>1 else None, sparse=(top_k or e)<e)
    if e>1: nn.init.normal_(moe.router.weight, std=d**-.5, generator=torch.Generator().manual_seed(0))
    return moe

def plain(moe:RoutedMLP, x:Tensor) -> Tensor:
    "Mix as one would by hand: a weighted sum, and autograd keeps what it needs."
    g = moe.router(x) if moe.router else torch.ones(len(x), 1)
    return sum(g[:,i:i+1]*f(x) for i,f in enumerate(moe.experts))

def masked(moe:RoutedMLP, x:Tensor) -> Tensor:
    "Mix as mixtures are often written: each expert gets the tokens where its boolean mask is true."
    g, y = moe.router(x), torch.zeros_like(x)
    for i,f in enumerate(moe.experts):
        m = g[:,i]>0
        y[m] += g[m,i,None]*f(x[m])
    return y

def forward(f:Callable, x:Tensor):
    "Return a function that runs `f` on `x` without gradients."
    def go():
        with torch.no_grad(): f(x)
    return go

def gradients(f:Callable, moe:RoutedMLP, x:Tensor) -> list[Tensor]:
    "Run forward and backward; return the output and the gradients of the stream and of the router."
    x = x.clone().requires_grad_()
    y = f(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *(moe.router.parameters() if moe.router else ())], torch.ones_like(y))]

def both(f:Callable, moe:RoutedMLP, x:Tensor): return lambda: gradients(f, moe, x)

def torch_mm(room:_Room, name:str, a:Tensor, b:Tensor) -> Tensor: return torch.mm(a, b, out=room.space(name, a, (len(a), b.shape[1])))

def bare(fs:Sequence[nn.Module], x:Tensor, back:int=0, product:Callable=_Room.product):
    "Return a function that makes the bare products: 2 an expert forward, and `back` backward."
    room = _Room()
    def go():
        for f in fs:
            up, down = f.c_fc.weight, f.c_proj.weight
            h = product(room, 'h', x, up)
            y = product(room, 'y', h, down)
            if back==3: h = product(room, 'h', x, up)    # the hidden layer again
            if back: h = product(room, 'h', y, down.T)   # through the lower matrix
            if back: y = product(room, 'y', h, up.T)     # through the upper one
    return go

def check(moe:RoutedMLP, x:Tensor, *others:Callable) -> None:
    "All ways give the same values and gradients."
    ours = gradients(moe, moe, x)
    for f in others:
        for a,b in zip(ours, gradients(f, moe, x), strict=True):
            apart = (a-b).abs().max()/b.abs().max()
            assert apart<1e-3, f'{f} differs by {apart:.1e} of the largest'

def dense(runs:int, size:tuple[int, int], act:str=GELU) -> tuple[list[dict], dict[str, list[float]]]:
    "Case 1: all of 8 experts, at one width."
    d,n = size
    fs, x = experts(8, d, act), torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    moe = mixture(fs, d)
    def hand(x): return plain(moe, x)
    def mask(x): return masked(moe, x)
    fast = compile_activations(mixture(fs, d))
    fast.router = moe.router
    check(moe, x, hand, mask, fast)
    ways = {'2 products': bare(fs, x), 'forward': forward(moe, x), 'loop, forward': forward(hand, x), '4 products': bare(fs, x, 2),
            '5 products': bare(fs, x, 3), '5 products, torch.mm': bare(fs, x, 3, torch_mm), 'both': both(moe, moe, x), 'compiled': both(fast, moe, x),
            'loop': both(hand, moe, x), 'masked loop': both(mask, moe, x)}
    t = dict(zip(ways, timed(runs, *ways.values())))
    where = f'{n:,} × {d}, {act}'
    told = [('2 products', '2 products', 'bare products of a forward pass'), ('forward', '2 products', 'ours, no gradients'),
            ('loop, forward', '2 products', 'sum of weight × module, no gradients'), ('4 products', '5 products', 'bare, all hidden layers kept'),
            ('5 products', '5 products', 'bare, no hidden layer kept'), ('5 products, torch.mm', '5 products', 'the same by MKL'), ('both', '5 products', 'ours, forward and backward'),
            ('compiled', '5 products', 'ours, activations compiled, forward and backward'),
            ('loop', '5 products', 'sum of weight × module, autograd'), ('masked loop', '5 products', 'boolean mask for each expert, autograd')]
    return [row(f'{d}, {name}', t[name], t[over], f'{what}; 8 experts, {where}; over {over}') for name,over,what in told], t

def dense_targets(wide:dict, narrow:dict, own:dict) -> list[dict]:
    "What is promised of all 8 experts."
    return [target('mixture of 8, width 768, forward against bare products', ratio(wide['forward'], wide['2 products']), '× the time', at_most=1.15),
            target('mixture of 8, width 768, forward and backward against 5 bare products', ratio(wide['both'], wide['5 products']), '× the time', at_most=1.25),
            target('mixture of 8, width 96, against a loop with masks', ratio(narrow['masked loop'], narrow['both']), '× as fast', at_least=2),
            target('mixture of 8, width 96, activations compiled, against a loop with masks', ratio(narrow['masked loop'], narrow['compiled']), '× as fast', at_least=2),
            target("mixture of 8, width 96, with GPT-2's own GELU, against a loop with masks", ratio(own['masked loop'], own['both']), '× as fast', at_least=2)]

def sparse(runs:int) -> tuple[list[dict], list[dict]]:
    "Case 2: the best k of 8, and the best of more and more."
    d,n = WIDE
    fs, x = experts(32, d), torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    cases = [(8, 8), (8, 4), (8, 2), (8, 1), (16, 1), (32, 1)]
    moes = [mixture(fs[:e], d, k) for e,k in cases]
    check(moes[3], x, lambda x: plain(moes[3], x))
    fw, fb = timed(runs, *(forward(m, x) for m in moes)), timed(runs, *(both(m, m, x) for m in moes))
    rows = [row(f'top {k} of {e}, {how}', s, t[0], f'{n:,} × {d}; over all 8') for how,t in (('forward', fw), ('both', fb)) for (e,k),s in zip(cases, t)]
    return rows, [target('top 1 of 8 against all 8, forward', ratio(fw[3], fw[0]), 'of the time', at_most=.35),
                  target('top 1 of 8 against all 8, forward and backward', ratio(fb[3], fb[0]), 'of the time', at_most=.35)]

def peak(f:Callable, moe:RoutedMLP, x:Tensor) -> float:
    "Megabytes at the peak of one forward and backward pass."
    with _Bytes(nn.ModuleList([moe, *moe.experts])) as seen: gradients(f, moe, x)
    return seen.peak/2**20

def memory() -> list[dict]:
    "Case 3: what a pass forward and backward holds, for 1 to 8 experts; a single one is that expert, with its own autograd."
    d,n = WIDE
    fs, x, rows = experts(8, d), torch.zeros(n, d), []
    for e in range(1, 9):
        moe = mixture(fs[:e], d)
        ways = dict(ours=moe, loop=lambda x: plain(moe, x))
        rows += [dict(name=f'{e} experts, {way}', megabytes=peak(f, moe, x), way=way, experts=e, note=f'peak of forward and backward, {n:,} × {d}') for way,f in ways.items()]
    for r in rows: r['ratio'] = r['megabytes']/rows[-1]['megabytes']
    return rows

def generation(runs:int, tokens:int=48) -> tuple[list[dict], list[dict]]:
    "Case 4: a routed model of one expert beside that expert, greedy, with cache."
    rows, targets = [], []
    for d,depth,vocab in ((96, 6, 512), (768, 12, 50257)):
        model = load_base(pico('gpt2', d, depth, vocab, 128, activation_function=GELU))
        routed, ids = route([model]), torch.arange(1, 17)[None]
        def go(m): return m.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        assert torch.equal(go(model), go(routed)) and go(model).shape[1]==16+tokens
        a, b = timed(runs, lambda: go(model), lambda: go(routed))
        rows += [row(f'generate, {d} × {depth}, {n}', s, a, f'{tokens} tokens, one text, greedy, with cache', tokens=tokens) for n,s in (('plain', a), ('routed', b))]
        targets.append(target(f'generating, routed against plain, {d} × {depth}', ratio(a, b), 'of its tokens a second', at_least=.9))
    return rows, targets

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "All cases."
    (wide, a), (narrow, b) = dense(2*runs, WIDE), dense(4*runs, NARROW)
    (slow, _), (small, c) = dense(max(1, runs//2), WIDE, 'gelu_new'), dense(4*runs, NARROW, 'gelu_new')
    for r in slow+small: r['name'] += ', gelu_new'
    (cut, less), (said, speed) = sparse(runs), generation(runs)
    return wide + narrow + slow + small + cut + memory() + said, dense_targets(a, b, c) + less + speed

if __name__=='__main__': main(__doc__, measure, runs=5)
