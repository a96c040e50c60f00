"""Run benchmarks, each in a process of its own, and keep what they measured, each with its provenance.

    python benchmarks [NAME …] [--threads 2] [--out PATH]

Run it on an idle machine. Without names all are run; with some, what the file holds of the others stays, and so does what another
processor measured of the same. The file is `benchmarks/results.json`, which the site's page on speed reads; from a tree with changes
that are in no commit it is `results/scratch/benchmarks.json`, which no page reads, unless `--out` says otherwise.
"""
from __future__ import annotations
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from merge_nb.core import choose, cpu_name, write_beside
from merge_nb.results import Tree, provenance, tree_state

HERE = Path(__file__).resolve().parent
FILE, ALL = HERE/'results.json', ('cka', 'finetune', 'route', 'merge', 'align', 'correct', 'startup')

def state() -> Tree:
    "The commit, and whether anything but records, measurements and the pages that show them has changed since."
    commit, dirty = tree_state(HERE.parent)
    kept = [f':(exclude){p}' for p in ('results', f'benchmarks/{FILE.name}', 'nbs/paper')]
    if dirty: dirty = bool(subprocess.run(['git', '-C', str(HERE.parent), 'status', '--porcelain', '--', '.', *kept], capture_output=True, text=True, check=True).stdout)
    return Tree(commit, dirty)

def run(name:str, threads:int, tree:Tree) -> dict:
    "Run one benchmark; return its rows and targets, with its name and the processor's, and how they were made."
    load, start = os.getloadavg()[0], time.perf_counter()
    print(f'\n{name}', flush=True)
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([sys.executable, str(HERE/f'{name}.py'), '--threads', str(threads), '--json', f'{d}/out.json'], check=True)
        got = {part: [dict(benchmark=name, machine=cpu_name(), **r) for r in rows] for part,rows in json.loads(Path(d, 'out.json').read_text()).items()}
    return got | dict(provenance=dict(benchmark=name, machine=cpu_name(), **provenance(time.perf_counter()-start, (), device='cpu', state=tree), load=round(load, 2)))

def write(path:Path, parts:dict[tuple[str,str], dict]) -> None:
    "Write one JSON file, whole or not at all; one row a line."
    ordered = [parts[k] for k in sorted(parts, key=lambda k: (ALL.index(k[0]), k[1]))]
    made = {'provenance': [p['provenance'] for p in ordered], **{part: [r for p in ordered for r in p[part]] for part in ('rows', 'targets')}}
    text = ',\n '.join(f'"{part}": [\n  ' + ',\n  '.join(json.dumps(r, ensure_ascii=False) for r in rows) + '\n ]' for part,rows in made.items())
    with write_beside(path) as tmp: tmp.write_text(f'{{{text}\n}}\n', encoding='utf-8')

def kept(path:Path) -> dict[tuple[str,str], dict]:
    "Read what a file holds, by benchmark and processor."
    if not path.is_file(): return {}
    found = json.loads(path.read_text(encoding='utf-8'))
    def key(r): return r['benchmark'], r['machine']
    return {key(made): dict(provenance=made, **{part: [r for r in found[part] if key(r)==key(made)] for part in ('rows', 'targets')}) for made in found['provenance']}

def main() -> None:
    "Run all or some, write the file after each, and say which targets are missed."
    p = argparse.ArgumentParser(prog='python benchmarks', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help=f"some of {', '.join(ALL)}; by default all")
    p.add_argument('--threads', type=int, default=2, help='threads for PyTorch (2)')
    p.add_argument('--out', type=Path, help='another file')
    a = p.parse_args()
    for name in a.names: choose(name, ALL, 'benchmark')
    tree = state()
    if (load := os.getloadavg()[0])>0.5: print(f'this machine is busy (load {load:.1f}): expect seconds that are too high', file=sys.stderr)
    torch.set_num_threads(a.threads)  # provenance says how many
    out = a.out or (FILE if tree.dirty is False else HERE.parent/'results'/'scratch'/'benchmarks.json')
    parts = kept(out)
    for name in a.names or ALL:
        parts[name,cpu_name()] = run(name, a.threads, tree)
        write(out, parts)
    targets = [t for part in parts.values() for t in part['targets']]
    missed = [f"{t['target']} ({t['machine']})" for t in targets if not t['kept']]
    print(f"\n{out}: {len(targets)-len(missed)} of {len(targets)} targets kept" + (f"; missed: {'; '.join(missed)}" if missed else ''))

if __name__=='__main__': main()
