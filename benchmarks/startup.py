"""Time what is paid before anything begins: `import merge_nb` and `merge_nb --help`, each in a fresh process.

    python benchmarks/startup.py [--runs 7] [--json PATH]

Seconds are of whole processes, the interpreter's own start among them. A ratio is the row's seconds over those of an interpreter that
does nothing. The first turn of each, which may have to compile and to read from a cold disk, is not counted.
"""
from __future__ import annotations
import shutil, subprocess, sys
from pathlib import Path
from statistics import median
from _timing import main, row, target, timed

def command() -> str:
    "Find `merge_nb` beside this interpreter."
    found = shutil.which('merge_nb', path=str(Path(sys.executable).parent))
    if not found: raise FileNotFoundError(f"no command merge_nb beside {sys.executable}: expected the package to be installed there (pip install .)")
    return found

def start(*words:str):
    "Return a function that runs a process and waits for it."
    return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "An empty interpreter, the package, its command, and a module with everything it needs."
    python = lambda code: start(sys.executable, '-c', code)
    nothing, package, help_, module = t = timed(runs, python('pass'), python('import merge_nb'), start(command(), '--help'),
                                                python('from merge_nb.cka import cka_map'))
    names = [('python', 'an interpreter that does nothing'), ('import merge_nb', 'the package; nothing heavy is loaded'),
             ('merge_nb --help', 'the command; heavy imports wait until a command needs them'),
             ('from merge_nb.cka import …', 'a module that works on models: PyTorch and transformers are loaded')]
    rows = [row(n, s, nothing, note) for s,(n,note) in zip(t, names)]
    spread = lambda s: (median(s), min(s), max(s))
    return rows, [target('import merge_nb', spread(package), 's', at_most=0.3), target('merge_nb --help', spread(help_), 's', at_most=1)]

if __name__=='__main__': main(__doc__, measure, runs=7, torch=False)
