"What the benchmarks share: contestants that take turns, rows, targets, and the JSON that `python benchmarks` gathers."
from __future__ import annotations
import argparse, json, time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from merge_nb.core import write_beside

def timed(runs:int, *fs:Callable) -> list[list[float]]:
    "Seconds of each of `fs` in each run; they take turns within a run, after one turn each to warm up."
    seconds = [[] for _ in fs]
    for run in range(runs+1):
        for f,s in zip(fs, seconds):
            start = time.perf_counter()
            f()
            if run: s.append(time.perf_counter()-start)
    return seconds

def row(name:str, seconds:list[float], over:list[float], note:str, scale:float=1., **more) -> dict:
    "The median of a contestant with its fastest and slowest run, times `scale`, and its ratio to the contestant `over`."
    s = [scale*t for t in seconds]
    return dict(name=name, seconds=median(s), low=min(s), high=max(s), ratio=median(s)/median(over), runs=len(s), note=note, **more)

def ratio(a:list[float], b:list[float], scale:float=1.) -> tuple[float, float, float]:
    "Median of `a` over median of `b`, and the lowest and highest ratio of one run; each times `scale`."
    each = [scale*x/y for x,y in zip(a, b)]
    return scale*median(a)/median(b), min(each), max(each)

def target(what:str, measured:tuple[float, float, float], unit:str, at_least:float|None=None, at_most:float|None=None) -> dict:
    "A promise: what was `measured` (value, lowest, highest), its limit, and whether the value keeps it."
    sense, limit = ('at most', at_most) if at_least is None else ('at least', at_least)
    value, low, high = measured
    kept = value<=limit if sense=='at most' else value>=limit
    return dict(target=what, sense=sense, limit=limit, unit=unit, value=value, low=low, high=high, kept=kept)

def show(rows:list[dict], targets:list[dict]) -> None:
    "Print rows as a table, then the targets."
    print(f"{'':28}{'seconds':>10}{'ratio':>9}  note")
    for r in rows:
        value = f"{r['seconds']:10.3f}" if 'seconds' in r else f"{r['megabytes']:7.0f} MB" if 'megabytes' in r else ' '*10
        print(f"{r['name']:28}{value}" + (f"{r['ratio']:9.2f}" if 'ratio' in r else ' '*9) + f"  {r['note']}")
    for t in targets:
        print(f"{'kept' if t['kept'] else 'MISSED'}: {t['target']}: {t['value']:.3g} {t['unit']} ({t['low']:.3g} to {t['high']:.3g}), {t['sense']} {t['limit']:g}", flush=True)

def main(doc:str, measure:Callable[[int], tuple[list[dict], list[dict]]], runs:int, torch:bool=True) -> None:
    "Run `measure(runs)`, which returns rows and targets, as a command; without `torch` no thread count is set."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=2, help='threads for PyTorch (2)')
    p.add_argument('--runs', type=int, default=runs, help=f'runs; the median is reported ({runs})')
    p.add_argument('--json', type=Path, help='also write rows and targets here')
    a = p.parse_args()
    if torch:
        from torch import set_num_threads
        set_num_threads(a.threads)
    rows, targets = measure(a.runs)
    show(rows, targets)
    if a.json:
        with write_beside(a.json) as tmp: tmp.write_text(json.dumps(dict(rows=rows, targets=targets), indent=1)+'\n')
