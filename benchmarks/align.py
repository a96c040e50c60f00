"""Time weight matching of two models of GPT-2's shape, and the share of it that assignments and matrix products take.

    python benchmarks/align.py [--threads 2] [--runs 3] [--json PATH]

Two pairs of 124 million parameters in float32: strangers, of two seeds; and a model beside a copy of itself in a random order, with
noise of a fifth of each tensor's spread, whose order must be found again. Weights are as initialised, norms and biases shaken.
Seconds are of `match_weights`, from two models in memory to the permutation. Assignments are those of
`scipy.optimize.linear_sum_assignment`; products are those that make its tables of similarities.
"""
from __future__ import annotations
import time
from statistics import median
import torch
from merge_nb import align
from merge_nb.models import load_base, n_params
from _timing import main, ratio, row, target

GPT2 = dict(model_type='gpt2')
PARTS = dict(assignments='linear_sum_assignment', products='_product')

class Clock:
    "Sums the seconds spent in functions of `merge_nb.align` while it is on."
    def __enter__(self):
        self.seconds, self.calls, self.old = dict.fromkeys(PARTS, 0.), dict.fromkeys(PARTS, 0), {p: getattr(align, n) for p,n in PARTS.items()}
        for part,name in PARTS.items(): setattr(align, name, self.around(part, self.old[part]))
        return self

    def __exit__(self, *_):
        for part,name in PARTS.items(): setattr(align, name, self.old[part])

    def around(self, part:str, f):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            out = f(*args, **kwargs)
            self.seconds[part] += time.perf_counter()-start
            self.calls[part] += 1
            return out
        return timed

@torch.no_grad()
def pairs() -> dict[str, tuple]:
    "Make the models: strangers; and a copy in a random order, with noise."
    noise, models = torch.Generator().manual_seed(2), [load_base(GPT2, seed=s) for s in (0, 1)]
    for m in models:
        for t in m.parameters():
            if t.ndim<2: t += .02*torch.randn(t.shape, generator=noise)
    order = align.Permutation.random(align.specification(models[0]), 3)
    copy = align.permute(models[0], order)
    for t in copy.parameters(): t += .2*t.std()*torch.randn(t.shape, generator=noise)
    return dict(strangers=(*models, None), planted=(models[0], copy, order.inverse()))

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "Match each pair `runs` times."
    rows, targets = [], []
    for name,(a, b, planted) in pairs().items():
        seconds, spent, share = [], {p: [] for p in PARTS}, []
        for _ in range(runs):
            with Clock() as clock:
                start = time.perf_counter()
                found = align.match_weights(a, b)
                seconds.append(time.perf_counter()-start)
            for p in PARTS: spent[p].append(clock.seconds[p])
            share.append(sum(clock.seconds.values()))
        if planted: assert all(torch.equal(found[g], planted[g]) for g in planted), 'the planted order was not found'
        rows.append(row(name, seconds, seconds, f'match_weights, {n_params(a)/1e6:,.1f} million parameters, {len(found.objective)-1} steps after the start'))
        for p in PARTS: rows.append(row(f'{name}, {p}', spent[p], seconds, f'{clock.calls[p]:,} calls of {PARTS[p]}'))
        targets.append(target(f'weight matching, {name}', (median(seconds), min(seconds), max(seconds)), 's', at_most=300))
        targets.append(target(f'assignments and products, share of weight matching, {name}', ratio(share, seconds), 'x', at_least=.6))
    return rows, targets

if __name__=='__main__': main(__doc__, measure, runs=3)
