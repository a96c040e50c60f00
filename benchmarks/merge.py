"""Time merging on disk, from the shell to the last byte, and weigh its memory; beside mergekit and FusionBench where they are installed.

    python benchmarks/merge.py [--threads 2] [--runs 5] [--json PATH]

A Llama of 134 million parameters in float32 and two fine-tunes of it, which are the base and small noise, are made in a temporary
folder (about 5 GB of disk). Seconds are of whole commands, the interpreter's start and all hashes among them, with nothing left to write
on the disk, and models and the tool's environment in the page cache: all of it is read before each command, since some systems drop what nobody has read
for a few seconds. So are seconds of processor time. Memory is the peak of the process. `disk to disk` is the function alone, without
hashes, over the time of copying one of the files; by turns, and each finds the memory that the other gave back.

`MERGE_NB_MERGEKIT` names the folder of the commands of another environment in which mergekit is installed, such as /venv/bin, and
`MERGE_NB_FUSIONBENCH` the same for FusionBench. Without the first, the targets that compare are left out. Our methods are at their
defaults, so TIES trims over all tensors at once and finds the exact threshold, while mergekit trims tensor by tensor.
"""
from __future__ import annotations
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median
from _timing import main, ratio, row, target
from startup import command

LLAMA = dict(model_type='llama', hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
             vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048)
METHODS = dict(linear='linear', slerp='slerp', task_arithmetic='task_arithmetic', ties='ties', dare_ties='dare')  # mergekit's name: ours
MAKE = """
import json, sys, torch
from pathlib import Path
from merge_nb.models import load_base
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
home, config, noise = Path(sys.argv[1]), json.loads(sys.argv[2]), torch.Generator().manual_seed(1)
m = load_base(config)
start = {k: p.detach().clone() for k,p in m.named_parameters()}
m.save_pretrained(home/'base')
for n in 'ab':
    for k,p in m.named_parameters(): p.data.copy_(start[k] + 1e-3*torch.randn(p.shape, generator=noise))
    m.save_pretrained(home/n)
words = Tokenizer(WordLevel({'a':0}, unk_token='a'))  # FusionBench wants one
(home/'tokenizer').mkdir()
words.save(str(home/'tokenizer'/'tokenizer.json'))
(home/'tokenizer'/'tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"}')
"""
COPY = """
import os, shutil, sys, time
from merge_nb.checkpoints import MergeConfig, merge_checkpoints
home = sys.argv[1]
config = MergeConfig(method='linear', models=(f'{home}/a', f'{home}/b'), hashes=False)
for i in range(int(sys.argv[2])+1):
    os.sync()
    start = time.perf_counter()
    shutil.copyfile(f'{home}/a/model.safetensors', f'{home}/copy')
    copied = time.perf_counter()-start
    os.unlink(f'{home}/copy')
    os.sync()
    start = time.perf_counter()
    merge_checkpoints(config, f'{home}/out')
    if i: print(copied, time.perf_counter()-start)
    shutil.rmtree(f'{home}/out')
"""
YAML = """
merge_method: {method}
base_model: {home}/base
models:
  - {{model: {home}/a, parameters: {{weight: 0.5{density}}}}}
  - {{model: {home}/b, parameters: {{weight: 0.5{density}}}}}
dtype: float32
"""

def yaml(home:Path, method:str) -> Path:
    "Write mergekit's configuration for one of its methods; slerp goes between the base and the first fine-tune."
    density = ', density: 0.2' if 'ties' in method else ''
    text = YAML.format(method=method, home=home, density=density)
    if method=='linear': text = text.replace(f'base_model: {home}/base\n', '')
    if method=='slerp': text = f'merge_method: slerp\nbase_model: {home}/a\nmodels:\n  - model: {home}/a\n  - model: {home}/b\nparameters: {{t: 0.5}}\ndtype: float32\n'
    path = home/f'{method}.yaml'
    path.write_text(text)
    return path

FUSIONBENCH = dict(linear='linear/simple_average_for_causallm', task_arithmetic='linear/task_arithmetic_for_causallm', ties='linear/ties_merging_for_causallm')

def fusionbench(home:Path, method:str) -> list[str]:
    "Words after FusionBench's command: its configuration of two fine-tunes of a base, with our folders."
    return [f'method={FUSIONBENCH[method]}', f'method.model_save_path={home}/out', 'modelpool=CausalLMPool/Qwen2.5-1.5B_math_and_code', 'taskpool=dummy',
            'fabric.accelerator=cpu', 'print_config=false', 'modelpool.enable_lazy_loading=false', 'modelpool.model_kwargs.torch_dtype=float32', f'modelpool.tokenizer={home}/tokenizer',
            *(f'modelpool.models.{k}={home}/{n}' for k,n in (('_pretrained_', 'base'), ('math', 'a'), ('code', 'b')))]

def others(home:Path, method:str) -> dict[str,list[str]]:
    "Commands of the other tools that are installed, by name."
    mergekit, fusion = (os.environ.get(f'MERGE_NB_{k}') for k in ('MERGEKIT', 'FUSIONBENCH'))
    found = {'mergekit 0.1.5': [f'{mergekit}/mergekit-yaml', str(yaml(home, method)), f'{home}/out']} if mergekit else {}
    return found | ({'FusionBench 0.2.33': [f'{fusion}/fusion_bench', *fusionbench(home, method)]} if fusion and method in FUSIONBENCH else {})

def warm(*folders:Path) -> None:
    "Read all files, so that they are in the page cache."
    for f in (f for d in folders for f in d.rglob('*') if f.is_file()):
        with open(f, 'rb') as b:
            while b.read(2**24): pass

class Cost:
    "What a command took: seconds, processor seconds, peak memory in MB."
    def __init__(self, words:list[str], home:Path):
        shutil.rmtree(home/'out', ignore_errors=True)
        os.sync() # what was written before keeps the disk busy no longer
        warm(home, *Path(words[0]).parent.parent.glob('lib/python*/site-packages'))
        start = time.perf_counter()
        p = subprocess.Popen(words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = p.stderr.read()
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = status
        self.seconds, self.cpu, self.mb = time.perf_counter()-start, used.ru_utime+used.ru_stime, used.ru_maxrss/1024
        if status: raise RuntimeError(f"{' '.join(words)} failed: {said.decode()[-500:]}")

def ours(home:Path, method:str) -> list[str]:
    "Our command, for a method by mergekit's name."
    how = {'dare_ties': ['--set', 'then=elect', '--set', 'density=0.2']}.get(method, [])
    base = [] if method in ('linear', 'slerp') else ['--base', f'{home}/base']
    return [command(), 'merge', f'{home}/a', f'{home}/b', '--method', METHODS[method], *base, *how, '--out', f'{home}/out']

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "All methods as whole commands, by turns with mergekit; the function against a copy; memory against depth."
    for k in ('MERGE_NB_MERGEKIT', 'MERGE_NB_FUSIONBENCH'):
        if k not in os.environ: print(f'{k} is not set: it is not measured', file=sys.stderr)
    with tempfile.TemporaryDirectory() as d:
        home, deep = Path(d), Path(d, 'deep')
        subprocess.run([sys.executable, '-c', MAKE, home, json.dumps(LLAMA)], check=True, stderr=subprocess.DEVNULL)
        costs, (rows, targets) = _turns(home, runs), ([], [])
        for method in METHODS: _compare(method, costs[method], rows, targets)
        _copy(home, runs, rows, targets)
        for n in ('base', 'a', 'b'): shutil.rmtree(home/n)
        subprocess.run([sys.executable, '-c', MAKE, deep, json.dumps(LLAMA | dict(num_hidden_layers=120))], check=True, stderr=subprocess.DEVNULL)
        c = Cost(ours(deep, 'ties'), deep)
        rows.append(dict(name='ties, 4 x the layers', seconds=c.seconds, megabytes=c.mb, cpu=c.cpu, runs=1, note='400 million parameters, whole command'))
        targets.append(target('memory of ties, 4 x the layers', (c.mb,)*3, 'MB', at_most=900))
    return rows, targets

def _turns(home:Path, runs:int) -> dict[str,dict[str,list[Cost]]]:
    "Run all methods, ours and theirs by turns, once unseen and then `runs` times; what it took, by method and tool."
    ways = {m: {'merge_nb': ours(home, m), **others(home, m)} for m in METHODS}
    turns = [{m: {n: Cost(words, home) for n,words in w.items()} for m,w in ways.items()} for _ in range(runs+1)][1:]
    return {m: {n: [t[m][n] for t in turns] for n in w} for m,w in ways.items()}

def _compare(method:str, costs:dict[str,list[Cost]], rows:list, targets:list) -> None:
    "Compare what one method took, ours and theirs."
    u, t = costs['merge_nb'], costs.get('mergekit 0.1.5')
    over = [o.seconds for o in u]
    spread = lambda v: (median(v), min(v), max(v))
    for name,seen in costs.items():
        label = method if name=='merge_nb' else f'{method}, {name.split()[0]}'
        rows.append(row(label, [o.seconds for o in seen], over, f'{name}, whole command', cpu=median(o.cpu for o in seen), megabytes=max(o.mb for o in seen)))
    targets.append(target(f'memory of {method}', spread([o.mb for o in u]), 'MB', at_most=900))
    if method in ('linear', 'slerp'): targets.append(target(f'{method}, whole command', spread(over), 's', at_most=5))
    if method=='ties': targets.append(target('ties with an exact threshold, processor time', spread([o.cpu for o in u]), 's', at_most=10))
    if not t: return
    if method=='ties': targets.append(target("ties, processor time over mergekit's", ratio([o.cpu for o in u], [o.cpu for o in t]), 'x', at_most=1/5))
    elif method!='task_arithmetic': targets.append(target(f"{method}, seconds over mergekit's", ratio(over, [o.seconds for o in t]), 'x', at_most=1/3))

def _copy(home:Path, runs:int, rows:list, targets:list) -> None:
    "Measure the function against copying one file."
    shutil.rmtree(home/'out', ignore_errors=True)
    said = subprocess.run([sys.executable, '-c', COPY, home, str(2*runs+1)], check=True, capture_output=True, text=True).stdout
    copied, merged = zip(*(map(float, l.split()) for l in said.splitlines()))
    rows += [row('copy of one file', copied, copied, 'shutil.copyfile, page cache warm'), row('linear, disk to disk', merged, copied, 'merge_checkpoints without hashes')]
    targets.append(target('linear, disk to disk, over a copy', ratio(merged, copied), 'x', at_most=2))

if __name__=='__main__': main(__doc__, measure, runs=5, torch=False)
