"""Run every benchmark, each in a process of its own, and keep what they measured with its provenance.

    python benchmarks [--threads 2] [--out PATH]

Run it on an idle machine. The file is `benchmarks/results.json`, which the site's page on speed reads; from a tree with changes that
are in no commit it is `results/scratch/benchmarks.json`, which no page reads, unless `--out` says otherwise.
"""
from __future__ import annotations
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from merge_nb.core import write_beside
from merge_nb.results import Tree, provenance, tree_state

HERE = Path(__file__).resolve().parent
FILE, ALL = HERE/'results.json', ('cka', 'finetune', 'route', 'merge', 'align', 'correct', 'startup')

def state() -> Tree:
    "The commit, and whether anything but records, measurements and the pages that show them has changed since."
    commit, dirty = tree_state(HERE.parent)
    kept = [f':(exclude){p}' for p in ('results', f'benchmarks/{FILE.name}', 'nbs/paper')]
    if dirty: dirty = bool(subprocess.run(['git', '-C', str(HERE.parent), 'status', '--porcelain', '--', '.', *kept], capture_output=True, text=True, check=True).stdout)
    return Tree(commit, dirty)

def run(name:str, threads:int) -> dict[str, list[dict]]:
    "Run one benchmark; return its rows and targets, with its name."
    print(f'\n{name}', flush=True)
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([sys.executable, str(HERE/f'{name}.py'), '--threads', str(threads), '--json', f'{d}/out.json'], check=True)
        return {part: [dict(benchmark=name, **r) for r in rows] for part,rows in json.loads(Path(d, 'out.json').read_text()).items()}

def write(path:Path, made:dict, rows:list[dict], targets:list[dict]) -> None:
    "Write one JSON file, whole or not at all; one row a line."
    lines = lambda rows: ',\n'.join('  '+json.dumps(r, ensure_ascii=False) for r in rows)
    head = json.dumps(dict(provenance=made), indent=1, ensure_ascii=False)[:-2]
    with write_beside(path) as tmp: tmp.write_text(f'{head},\n "rows": [\n{lines(rows)}\n ],\n "targets": [\n{lines(targets)}\n ]\n}}\n', encoding='utf-8')

def main() -> None:
    "Run all, write the file, and say which targets are missed."
    p = argparse.ArgumentParser(prog='python benchmarks', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=2, help='threads for PyTorch (2)')
    p.add_argument('--out', type=Path, help='another file')
    a = p.parse_args()
    tree, load, start = state(), os.getloadavg()[0], time.perf_counter()
    if load>0.5: print(f'this machine is busy (load {load:.1f}): expect seconds that are too high', file=sys.stderr)
    got = [run(name, a.threads) for name in ALL]
    torch.set_num_threads(a.threads)  # provenance says how many
    made = dict(provenance(time.perf_counter()-start, (), device='cpu', state=tree), load=round(load, 2))
    out = a.out or (FILE if tree.dirty is False else HERE.parent/'results'/'scratch'/'benchmarks.json')
    rows, targets = ([r for g in got for r in g[part]] for part in ('rows', 'targets'))
    write(out, made, rows, targets)
    missed = [t['target'] for t in targets if not t['kept']]
    print(f"\n{out}: {len(targets)-len(missed)} of {len(targets)} targets kept" + (f"; missed: {'; '.join(missed)}" if missed else ''))

if __name__=='__main__': main()
