"""Time CKA between all layers of two models, and what it is compared with, side by side in one process.

    python benchmarks/cka.py [--threads 2] [--runs 5] [--json PATH]

Each row is a median over runs; the contestants take turns within each run. A ratio is the row's seconds over those of
`all pairs`. What is too slow to run whole is timed on some of its pairs and scaled, and its note says so.
"""
from __future__ import annotations
import io, platform, re, resource, subprocess, sys, time, warnings
from contextlib import redirect_stderr
from pathlib import Path
import torch
from _timing import main, ratio, row, target, timed
from merge_nb.cka import CKA, _panel_rows, linear_cka

LAYERS, ROWS, WIDTH = 13, 4096, 768  # embeddings and twelve blocks, as gpt2

def features(rows:int=ROWS, layers:int=LAYERS, seed:int=0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    "Make the hidden states of two related models: each layer adds to the last, and the second model shares half of it."
    g = torch.Generator().manual_seed(seed)
    new = lambda: torch.randn(rows, WIDTH, generator=g)
    x, y = (shared := new()).clone(), shared.clone()
    xs, ys = [], []
    for _ in range(layers):
        xs.append(x)
        ys.append(y)
        shared = new()
        x, y = x + shared + new(), y + shared + new()
    return xs, ys

def bare_products(zs:list[torch.Tensor]) -> None:
    "Compute the upper half of each Gram matrix and throw it away: the cheapest products known for the exact values."
    n, rows = len(zs[0]), _panel_rows(len(zs[0]), len(zs))
    buffer = zs[0].new_empty(rows*n)
    for z in zs:
        for s in range(0, n, rows):
            part = z[s:s+rows]
            torch.mm(part, z[s:].T, out=buffer[:len(part)*(n-s)].view(len(part), n-s))

def full_products(zs:list[torch.Tensor]) -> None:
    "Compute each Gram matrix whole."
    for z in zs: z@z.T

def textbook_cka(x:torch.Tensor, y:torch.Tensor) -> float:
    "Debiased CKA of one pair as it is usually written: two Gram matrices, their diagonals set to zero, three estimates."
    n, k, l = len(x), (x@x.T).fill_diagonal_(0), (y@y.T).fill_diagonal_(0)
    def hsic(k, l): return ((k*l).sum() + k.sum()*l.sum()/((n-1)*(n-2)) - 2/(n-2)*(k.sum(0)@l.sum(0)))/(n*(n-3))
    return (hsic(k, l)/(hsic(k, k)*hsic(l, l)).sqrt()).item()

def all_pairs(runs:int) -> tuple[list[dict], list[dict]]:
    "Case 1: 13 × 13 layers of 4,096 rows, width 768."
    xs, ys = features()
    def loop(f): return [f(xs[0], y) for y in ys]  # one row of the map
    def ours(): return CKA().update(xs, ys).compute()
    first = ours()[0]
    for name,f in (('linear_cka', linear_cka), ('textbook', textbook_cka)):
        worst = (torch.tensor(loop(f))-first).abs().max().item()
        assert worst<1e-3, f'{name} differs by {worst}'
    t, bare, full, batches, own, textbook = timed(runs, ours, lambda: bare_products(xs+ys), lambda: full_products(xs+ys),
                                                  lambda: in_batches(xs, ys, 256), lambda: loop(linear_cka), lambda: loop(textbook_cka))
    note = f'{LAYERS} of {LAYERS**2} pairs timed, scaled'
    rows = [row('all pairs', t, t, f'CKA().update(xs, ys).compute(), {LAYERS} × {LAYERS} layers, {ROWS:,} × {WIDTH}'),
            row('bare products', bare, t, 'upper halves of the 26 Gram matrices, nothing else'),
            row('bare products, whole', full, t, 'the 26 Gram matrices whole'),
            row('minibatches of 256', batches, t, 'the same data in 16 batches; Gram matrices of 256 rows only'),
            row('loop, linear_cka', own, t, f'our own single-pair function, which skips the Gram matrices; {note}', LAYERS),
            row('loop, textbook', textbook, t, f'single-pair function with two whole Gram matrices; {note}', LAYERS)]
    return rows, [target('all-pairs CKA against a loop over pairs', ratio(textbook, t, LAYERS), '× as fast', at_least=20),
                  target('all-pairs CKA against bare products', ratio(t, bare), '× the time', at_most=1.6)]

def in_batches(xs:list[torch.Tensor], ys:list[torch.Tensor], size:int) -> torch.Tensor:
    "Case 2: the minibatch form."
    cka = CKA()
    for s in range(0, len(xs[0]), size): cka.update([x[s:s+size] for x in xs], [y[s:s+size] for y in ys])
    return cka.compute()

def peak_memory(batches:int) -> float:
    "Megabytes at the peak of a fresh process that feeds `batches` batches of 512 rows to one `CKA`."
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cka; cka.feed({batches})"
    return float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)

def feed(batches:int) -> None:
    "Feed `batches` batches to one `CKA` and print the peak memory of this process in MB."
    torch.set_num_threads(1)
    cka = CKA()
    for b in range(batches): cka.update(*features(512, seed=b))
    cka.compute()
    status = Path('/proc/self/status')  # Linux: getrusage would count the parent of this process too
    if status.exists(): print(int(re.search(r'VmHWM:\s+(\d+)', status.read_text())[1])/1024)
    else: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024**2 if platform.system()=='Darwin' else 1024))

def memory() -> tuple[list[dict], list[dict]]:
    "Case 3: peak memory with 4 and with 32 batches."
    few, many = peak_memory(4), peak_memory(32)
    rows = [dict(name=f'peak memory, {b} batches', megabytes=m, ratio=m/few, note='fresh process; batches of 512 rows, 26 layers')
            for b,m in ((4, few), (32, many))]
    return rows, [target('memory of CKA, 32 batches against 4', (many/few,)*3, '× the memory', at_most=1.1)]

def torch_cka(runs:int, layers:int=3) -> list[dict]:
    "Case 4: the package torch-cka on the same features; three layers of each model, for it needs seconds for each pair."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            from torch_cka import CKA as Theirs, __version__ as version
    except ImportError: return [dict(name='torch-cka', note='not installed, so not compared: pip install torch-cka')]
    xs, ys = features(layers=layers)
    class Model(torch.nn.Module):
        "Replays features: each layer is a module whose output is one matrix."
        def __init__(self, states):
            super().__init__()
            self.states, self.layers = states, torch.nn.ModuleList(torch.nn.Identity() for _ in states)
        def forward(self, i): return [m(s[i]) for m,s in zip(self.layers, self.states)][-1]
    names = [f'layers.{i}' for i in range(layers)]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(ROWS)), batch_size=ROWS)
    def theirs():
        with warnings.catch_warnings(), torch.no_grad(), redirect_stderr(io.StringIO()):  # no progress bar
            warnings.simplefilter('ignore')
            c = Theirs(Model(xs), Model(ys), 'a', 'b', names, names)
            c.compare(data)
        return c.export()['CKA']
    def ours(): return CKA().update(xs, ys).compute()
    start = time.perf_counter()
    table = theirs()
    b = time.perf_counter()-start
    a, = timed(runs, ours)
    assert (table-ours()).abs().max()<1e-2
    return [row(f'all pairs, {layers} × {layers}', a, a, f'ours, {layers} layers of each model'),
            row(f'torch-cka, {layers} × {layers}', [b], a, f'version {version}, the same features in one batch; one run')]

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "All cases."
    (rows, targets), (more, flat) = all_pairs(runs), memory()
    return rows + more + torch_cka(max(1, runs//2)), targets + flat

if __name__=='__main__': main(__doc__, measure, runs=5)
