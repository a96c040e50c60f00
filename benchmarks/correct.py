"""Time statistics and corrections of activations beside plain forward passes, and count what a pass keeps in memory.

    python benchmarks/correct.py [--threads 2] [--runs 7] [--json PATH]

Two models with fresh weights: a GPT-2 of 23 million parameters without its output matrix, which no site comes after and which
`activation_stats` does not run, and a convolutional net with a norm over channels. Statistics are those of all default sites. A
plain pass runs the same batches through the same module and does nothing else. Contestants take turns within each run. Folded
corrections are at the sites that can be folded: all of the net, and in GPT-2 all but the residual stream; hooked ones are at all
sites. Both are checked to give what they should. Bytes are those of the tensors made in one pass and alive at one time, weights and data apart.
"""
from __future__ import annotations
import torch
from torch import Tensor, nn
from _timing import main, ratio, row, target, timed
from merge_nb.correct import activation_stats, calibrate, corrections, default_sites, fold
from merge_nb.models import _Bytes, load_base, pico

GELU = 'gelu_pytorch_tanh'  # one kernel; `gelu_new`, the default of GPT-2, is eight, which would make us look cheap
BATCH = 8

class ChannelNorm(nn.LayerNorm):
    "A layer norm over the channels of each pixel."
    def forward(self, x): return super().forward(x.movedim(1, -1)).movedim(-1, 1)

def gpt2(seed:int, width:int=512, depth:int=6) -> tuple[nn.Module, Tensor]:
    "A GPT-2 without its output matrix, and token ids."
    model = load_base(pico('gpt2', width, depth, vocab=8192, context=256, activation_function=GELU, num_attention_heads=8), seed=seed).transformer
    return model, torch.randint(0, 8192, (4*BATCH, 256), generator=torch.Generator().manual_seed(0))

def conv(seed:int, widths:tuple[int, ...]=(32, 64, 128), classes:int=10) -> tuple[nn.Module, Tensor]:
    "Pairs of convolutions with norms, and images."
    torch.manual_seed(seed)
    layers, c = [], 1
    for w in widths:
        for last in (False, True):
            layers += [nn.Conv2d(c, w, 3, padding=1), ChannelNorm(w), nn.ReLU(), *([nn.MaxPool2d(2)] if last else [])]
            c = w
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes)).eval()
    return net, torch.rand(16*BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))

def plain(model:nn.Module, x:Tensor, size:int) -> Tensor:
    "Run all batches through `model` and keep nothing but the last."
    with torch.no_grad():
        for b in x.split(size): y = model(b, **({} if b.is_floating_point() else dict(use_cache=False)))
    return getattr(y, 'last_hidden_state', y)

def peak(model:nn.Module, x:Tensor, size:int) -> float:
    "Megabytes at the peak of one pass of statistics."
    known = nn.ModuleList([model])
    known.register_buffer('data', x)
    with _Bytes(known) as seen: activation_stats(model, x, batch_size=size)
    return seen.peak/2**20

def case(name:str, make, runs:int) -> tuple[list[dict], list[dict]]:
    "All contestants on one model."
    model, x = make(0)
    size = len(x)//4
    expert = activation_stats(make(1)[0], x, batch_size=size)
    hooked = calibrate(model, expert, x, 'batch', batch_size=size)
    left = corrections(fold(hooked))
    inner = calibrate(model, expert, x, 'batch', sites=[s for s in expert.n if s not in left], batch_size=size)
    folded = fold(inner)
    assert not corrections(folded) and len(corrections(hooked))==len(default_sites(model))
    a, b = plain(inner, x[:2], 2), plain(folded, x[:2], 2)
    assert (a-b).abs().max()<1e-3*a.abs().max(), 'folded and hooked differ'
    ways = {'plain': lambda: plain(model, x, size), 'statistics': lambda: activation_stats(model, x, batch_size=size),
            'folded': lambda: plain(folded, x, size), 'hooked': lambda: plain(hooked, x, size)}
    t = dict(zip(ways, timed(runs, *ways.values())))
    told = dict(plain='forward pass', statistics=f'all {len(expert.n)} sites in one pass', folded=f'{len(expert.n)-len(left)} sites in the weights',
                hooked=f'{len(expert.n)} sites hooked')
    rows = [row(f'{name}, {k}', t[k], t['plain'], f'{note}; {len(x)} examples, batches of {size}') for k,note in told.items()]
    few, many = peak(model, x[:size], size), peak(model, torch.cat([x, x]), size)
    rows += [dict(name=f'{name}, {n} batches', megabytes=m, note='peak of statistics') for n,m in ((1, few), (8, many))]
    over = {k: ratio(t[k], t['plain']) for k in t}
    return rows, [target(f'{name}, statistics of all sites against a plain pass', over['statistics'], '× the time', at_most=1.3),
                  target(f'{name}, folded correction against a plain pass', over['folded'], '× the time', at_most=1.05),
                  target(f'{name}, hooked correction against a plain pass', over['hooked'], '× the time', at_most=1.15),
                  target(f'{name}, memory of statistics, 8 batches against 1', (many/few,)*3, '× the bytes', at_most=1.02)]

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "Both models."
    done = [case('conv net', conv, 4*runs), case('GPT-2', gpt2, runs)]  # the small one first, while memory is in order
    return [r for rows,_ in done for r in rows], [t for _,targets in done for t in targets]

if __name__=='__main__': main(__doc__, measure, runs=7)
