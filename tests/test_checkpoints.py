"""What a notebook cannot show of merging on disk: kills, limits of the system, other processes, random models, other architectures."""
import json, os, shutil, signal, subprocess, sys
from hashlib import sha256
from pathlib import Path
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from merge_nb.checkpoints import MergeConfig, measure, merge_checkpoints, open_checkpoint, plan
from merge_nb.core import file_hash
from merge_nb.merge import METHODS, merge
from merge_nb.data import load_domain, train_tokenizer
from merge_nb.models import load_base, pico

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
METHODS_ON_FILES = sorted(k for k,m in METHODS.items() if not m.data)


def model(folder, state, shards=1, **config):
    "Write `state` as a checkpoint in `shards` files."
    folder.mkdir(parents=True)
    (folder/'config.json').write_text(json.dumps(dict(model_type='toy', vocab_size=0) | config))
    files = [dict(list(state.items())[i::shards]) for i in range(shards)]
    if shards == 1: save_file(state, folder/'model.safetensors')
    else:
        for i, f in enumerate(files): save_file(f, folder/f'm{i}.safetensors')
        (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={k: f'm{i}.safetensors' for i, f in enumerate(files) for k in f})))
    return str(folder)


def state(seed, shapes=((4, 3), (5,), (2, 2, 2)), dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {f'h.{i}.w': torch.randn(s, generator=g).to(dtype) for i, s in enumerate(shapes)}


def run(code, *argv, **env):
    "Run Python in another process."
    return subprocess.run([sys.executable, '-c', code, *map(str, argv)], capture_output=True, text=True, env=os.environ | env)


@pytest.fixture
def three(tmp_path): return [model(tmp_path/n, state(i)) for i, n in enumerate(('a', 'b', 'base'))]


# ---- the same as in memory

@pytest.mark.parametrize('method', METHODS_ON_FILES)
def test_as_in_memory(method, three, tmp_path):
    a, b, base = three
    config = MergeConfig(method=method, models=(a, b), base=base, seed=3)
    merge_checkpoints(config, tmp_path/'m')
    expected = merge(method, [state(0), state(1)], state(2), seed=3)
    found = load_file(tmp_path/'m'/'model.safetensors')
    assert found.keys() == expected.keys()
    for k in expected: assert torch.equal(found[k], expected[k]), k


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5).filter(lambda ss: any(0 not in s for s in ss))

@FEW
@given(shapes=shapes, shards=st.tuples(st.integers(1, 3), st.integers(1, 3)), size=st.sampled_from(['50', '200', '5GB']),
       dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16, torch.float16])]*2), method=st.sampled_from(['linear', 'task_arithmetic', 'dare', 'ties']))
def test_any_shards(tmp_path_factory, shapes, shards, size, dtypes, method):
    "Neither the files of the input nor those of the output change a number."
    home = tmp_path_factory.mktemp('any')
    states = [state(i, shapes, d) for i, d in enumerate((*dtypes, torch.float32))]
    paths = [model(home/str(i), s, min(len(shapes), n)) for i, (s, n) in enumerate(zip(states, (*shards, 1)))]
    merge_checkpoints(MergeConfig(method=method, models=tuple(paths[:2]), base=paths[2], shard_size=size), home/'m')
    up = [{k: w.float() for k, w in s.items()} for s in states]
    expected = merge(method, up[:2], up[2])
    out = open_checkpoint(str(home/'m'))
    assert out.tensors.keys() == expected.keys()
    for k, w in expected.items(): assert torch.equal(out.read(k), w.to(dtypes[0]))
    if size != '5GB': assert all(p.stat().st_size < 2000 for p in (home/'m').glob('*.safetensors'))


@FEW
@given(shapes=shapes, shards=st.integers(1, 3), weight=st.floats(0, 1), method=st.sampled_from(sorted(k for k,m in METHODS.items() if m.arrays)))
def test_without_pytorch(tmp_path_factory, shapes, shards, weight, method):
    "Rules that take arrays give the same bits from arrays as from tensors, whatever else lies in the files."
    home = tmp_path_factory.mktemp('arrays')
    states = [state(i, shapes) | {'ids': torch.arange(4), 'flag': torch.tensor([True, False]), 'none': torch.zeros(0, 2)} for i in range(2)]
    paths = tuple(model(home/str(i), s, shards) for i, s in enumerate(states))
    options = dict(t=weight) if method == 'slerp' else dict(weights=(weight, 1.))
    assert merge_checkpoints(MergeConfig(method=method, models=paths, options=options), home/'m').arrays
    found = load_file(home/'m'/'model.safetensors')
    for k, w in merge(method, states, **options).items(): assert found[k].dtype == w.dtype and torch.equal(found[k], w), k


@pytest.mark.parametrize('method', sorted(k for k,m in METHODS.items() if m.entrywise))
def test_parts_do_not_show(method, three, tmp_path, monkeypatch):
    *experts, base = three
    config = dict(method=method, models=experts, base=base if METHODS[method].needs_base else None)
    merge_checkpoints(config, tmp_path/'whole')
    monkeypatch.setattr('merge_nb.checkpoints._ENTRIES', 2)  # one row, or less than one
    merge_checkpoints(config, tmp_path/'parts')
    assert (tmp_path/'whole/model.safetensors').read_bytes()==(tmp_path/'parts/model.safetensors').read_bytes()


def test_same_bytes_in_other_processes(three, tmp_path):
    "Hash seeds and threads change nothing."
    code = 'import sys; from merge_nb.checkpoints import *; merge_checkpoints(MergeConfig(method="dare", models=tuple(sys.argv[1:3]), base=sys.argv[3]), sys.argv[4])'
    for i in (1, 2):
        done = run(code, *three, tmp_path/f'm{i}', PYTHONHASHSEED=str(i), OMP_NUM_THREADS=str(i))
        assert not done.returncode, done.stderr
    first, second = ({f.name: file_hash(f) for f in (tmp_path/f'm{i}').iterdir()} for i in (1, 2))
    assert first == second


# ---- mergekit's files

# Its rule by hand, with weights 1 and -1/2 of 3 and -1: (3·1 + (-1)·(-1/2)) / (1 - 1/2) = 7, beyond both experts. SCE finds
# its own weights, 9/10 and 1/10, and erases the -1; what is left is divided by what is left of the weights.
THEIRS = dict(ties=('density: 1.0', 7, 7/3), dare_ties=('density: 1.0', 7, 7/3), breadcrumbs_ties=('density: 1.0, gamma: 0.0', 7, 7/3),
              della=('density: 1.0, epsilon: 0.0', 7, 7/3), sce=('select_topk: 1.0', 3, 2.7))

@pytest.mark.parametrize('method', THEIRS)
def test_definition_of_mergekit(method, tmp_path):
    a, b, base = (model(tmp_path/n, {'h.0.w': torch.tensor([[v]])}) for n, v in (('a', 3.), ('b', -1.), ('base', 0.)))
    given, theirs, paper = THEIRS[method]
    weights, normalize = (('', '') , ('parameters: {weight: 1}, ', ', normalize: true'))[method != 'sce']
    text = f'''
models:
  - {{{weights}model: {a}}}
  - {{{weights.replace('1', '-0.5')}model: {b}}}
  - {{model: {base}}}
merge_method: {method}
base_model: {base}
parameters: {{{given}{normalize}}}
dtype: float32
'''
    for definition, value in (('mergekit', theirs), ('paper', paper)):
        merge_checkpoints(text+f'definition: {definition}', tmp_path/definition)
        assert load_file(tmp_path/definition/'model.safetensors')['h.0.w'].item() == pytest.approx(value, abs=1e-5)


def test_density_that_varies(tmp_path):
    "A gradient of densities, for which mergekit trims each tensor, is carried out, and the plan says how."
    a, b, base = (model(tmp_path/n, state(i)) for i, n in enumerate(('a', 'b', 'base')))
    text = f"merge_method: ties\nbase_model: {base}\nparameters: {{weight: 1, density: [0.2, 0.9]}}\nmodels: [{{model: {a}}}, {{model: {b}}}]"
    done = merge_checkpoints(text, tmp_path/'m')
    assert any('trimmed by itself' in n for n in done.notes)
    expected = merge('ties', [state(0), state(1)], state(2), trim='tensor', **{k: v for k, v in done.config.options.items() if k == 'density'})
    for k, w in load_file(tmp_path/'m'/'model.safetensors').items(): assert torch.equal(w, expected[k])


@pytest.mark.parametrize('slices', ['[{sources: [{model: a, layer_range: 3}]}]', '[{sources: [{model: a, layer_range: [[0], 1]}]}]', '{}', '[x]', '[{sources: a}]', '[{sources: [{layer_range: [0, 1]}]}]'])
def test_bad_slices(slices):
    with pytest.raises(ValueError, match='slices|models'): MergeConfig.read(f'merge_method: linear\nslices: {slices}')


@pytest.mark.parametrize('text', ['models: 3', 'models: [{model: a, parameters: 3}]', 'parameters: 3', 'slices: [{sources: [{model: a, layer_range: [0, 2]}], parameters: 3}]'])
def test_bad_shapes(text):
    with pytest.raises(ValueError, match='is 3; expected'): MergeConfig.read(f'merge_method: linear\n{text}')


# ---- what belongs together

@pytest.mark.parametrize('mine, other, what', [
    (dict(rope_theta=10000), dict(rope_parameters=dict(rope_theta=10000., rope_type='default')), None),   # two ages of one thing
    (dict(rope_scaling=None), {}, None), (dict(rotary_pct=.25), dict(rope_parameters=dict(partial_rotary_factor=.25)), None),
    (dict(rope_theta=10000), dict(rope_theta=500000), 'rope'), (dict(rope_scaling=dict(type='linear', factor=2.)), {}, 'rope'),
    (dict(text_config=dict(rope_theta=1e6)), dict(text_config=dict(rope_theta=1e4)), 'rope'),
    (dict(text_config=dict(hidden_act='silu')), dict(text_config=dict(hidden_act='gelu')), 'hidden_act')])
def test_settings_that_change_the_function(mine, other, what, tmp_path):
    paths = tuple(model(tmp_path/n, state(i), **c) for i, (n, c) in enumerate((('a', mine), ('b', other))))
    p = plan(MergeConfig(method='linear', models=paths))
    assert bool(p.problems) == bool(what) and not p.notes[:-1]
    if what: assert f'differ in {what}: ' in p.problems[0]


@pytest.mark.parametrize('kind, key, value', [
    ('qwen2', 'hidden_act', 'gelu'), ('llama', 'num_key_value_heads', 1), ('qwen2', 'rope_parameters', dict(rope_type='default', rope_theta=7.)),
    ('gemma3_text', 'rope_local_base_freq', 7.)])
def test_defaults_left_unsaid(kind, key, value, tmp_path):
    "A setting that one configuration leaves to the default, or writes as it was written before, is the same; another is not."
    a, b = (str(tmp_path/n) for n in 'ab')
    for i, f in enumerate((a, b)): load_base(pico(kind, num_key_value_heads=2), seed=i).save_pretrained(f)
    def change(**new):
        said = json.loads(Path(a, 'config.json').read_text())
        if kind == 'gemma3_text' and (r := said.pop('rope_parameters', None)):
            said |= dict(rope_theta=r['full_attention']['rope_theta'], rope_local_base_freq=r['sliding_attention']['rope_theta'], rope_scaling=None)
        elif not new: said.pop(key)
        Path(b, 'config.json').write_text(json.dumps(said | new))
        return plan(MergeConfig(method='linear', models=(a, b))).problems
    assert not change()
    assert 'differ in ' in change(**{key: value})[0]


def test_what_is_carried_along(tmp_path):
    "Settings of processors go along; code does where the configuration points to it."
    a, b = (model(tmp_path/n, state(i), **c) for i, (n, c) in enumerate((('a', {}), ('b', dict(auto_map={'AutoConfig': 'code.Config', 'AutoModel': 'code.Model'})))))
    for f in ('processor_config.json', 'preprocessor_config.json', 'code.py', 'notes.txt'):
        for m in (a, b): Path(m, f).write_text('{}')
    for first, other, code in ((a, b, set()), (b, a, {'code.py'})):
        merge_checkpoints(MergeConfig(method='linear', models=(first, other)), out := tmp_path/f'm{len(code)}')
        found = {p.name for p in out.iterdir()}
        assert {'processor_config.json', 'preprocessor_config.json'} <= found and found & {'code.py', 'notes.txt'} == code


WORDS = dict(a=0, b=1, c=2, d=3)

def words(path, ids):
    "Put a tokenizer as GPT-2 had it beside a model."
    (Path(path)/'vocab.json').write_text(json.dumps(ids))
    (Path(path)/'merges.txt').write_text('#version: 0.2\n')

def test_tokenizers_without_tokenizer_json(tmp_path):
    "Equal numbers of rows are no proof; what cannot be read is said, not passed over."
    a, b = (model(tmp_path/n, state(i), model_type='gpt2', vocab_size=4) for i, n in enumerate('ab'))
    config = MergeConfig(method='linear', models=(a, b))
    assert 'no tokenizer that can be read' in str(plan(config))
    words(a, WORDS), words(b, WORDS)
    assert not (p := plan(config)).problems and not p.notes
    words(b, dict(WORDS, a=1, b=0))
    assert 'the vocabularies differ' in str(plan(config))
    (Path(b)/'vocab.json').write_text('[')
    p = plan(config)
    assert not p.problems and any(f'the tokenizer in {b} cannot be read' in n for n in p.notes)
    (Path(b)/'tokenizer.json').write_text('[]')
    assert any('tokenizer.json is damaged' in n for n in plan(config).notes)


def test_rows_to_spare(tmp_path):
    "A token that only the second model knows takes a padded row of the first, and nothing of what stood there."
    paths = []
    for n, i, rows, added in (('a', 0, 8, '<x>'), ('b', 1, 5, '<y>')):
        w = torch.arange(rows*2.).reshape(rows, 2) + 100*i
        paths.append(model(tmp_path/n, {'embed.weight': w}, vocab_size=rows))
        token = dict(id=4, content=added)
        (Path(paths[-1])/'tokenizer.json').write_text(json.dumps(dict(model=dict(vocab=WORDS), added_tokens=[token])))
    merge_checkpoints(MergeConfig(method='linear', models=tuple(paths), vocab='union'), tmp_path/'m')
    found = load_file(tmp_path/'m'/'model.safetensors')['embed.weight']
    assert found.tolist() == [[50 + 2*i, 51 + 2*i] for i in range(4)] + [[8, 9], [108, 109], [12, 13], [14, 15]]


def test_special_tokens_of_the_tokenizer(tmp_path):
    "config.json numbers special tokens as the tokenizer beside it does."
    a = model(tmp_path/'a', state(0), eos_token_id=1, pad_token_id=0)
    b = model(tmp_path/'b', state(1), eos_token_id=[7, 8], bos_token_id=2)
    merge_checkpoints(MergeConfig(method='linear', models=(a, b), tokenizer=b), tmp_path/'m')
    found = json.loads((tmp_path/'m'/'config.json').read_text())
    assert (found['eos_token_id'], found['bos_token_id'], found['pad_token_id']) == ([7, 8], 2, None)


# ---- what `transformers` reads

TEXTS = ('synthetic:maths', 'synthetic:code')

@pytest.fixture(scope='session')
def learned(tmp_path_factory):
    "Two experts and their base, with a tokenizer, as `transformers` saves them; and what methods measure of the experts."
    home = tmp_path_factory.mktemp('learned')
    tokenizer = train_tokenizer([load_domain(TEXTS[0], documents=50)], 270)
    for i, name in enumerate(('base', 'a', 'b')):
        model = load_base(pico('llama', vocab=len(tokenizer)), seed=0)
        g = torch.Generator().manual_seed(i)
        for p in model.parameters(): p.data += .1*bool(i)*torch.randn(p.shape, generator=g)
        model.save_pretrained(home/name), tokenizer.save_pretrained(home/name)
    for k, m in METHODS.items():
        for name, text in zip('ab', TEXTS): m.measure and measure(str(home/name), text, k, home/f'{k}-{name}.safetensors', blocks=2)
    return home


@pytest.mark.parametrize('method', METHODS)
def test_every_method_loads_and_generates(method, learned, tmp_path):
    data = tuple(str(learned/f'{method}-{n}.safetensors') for n in 'ab') if METHODS[method].measure else ()
    merge_checkpoints(MergeConfig(method=method, models=(str(learned/'a'), str(learned/'b')), base=str(learned/'base'), data=data, shard_size='40KB'), tmp_path/'m')
    m = load_base(tmp_path/'m')
    states = [load_base(learned/n).state_dict() for n in ('a', 'b', 'base')]
    options = {METHODS[method].data: [load_file(f) for f in data]} if data else {}
    for k, w in merge(method, states[:2], states[2], **options).items(): assert torch.equal(m.state_dict()[k], w), k
    assert m.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neox', 'llama', 'qwen2', 'mistral', 'phi3'])
def test_loads_and_generates(kind, tmp_path):
    for i, n in enumerate('ab'): load_base(pico(kind), seed=i).save_pretrained(tmp_path/n)
    merge_checkpoints(MergeConfig(method='linear', models=(str(tmp_path/'a'), str(tmp_path/'b')), shard_size='10KB'), tmp_path/'m')
    a, b, m = (load_base(tmp_path/n) for n in 'abm')
    for (k, x), y, z in zip(a.named_parameters(), b.parameters(), m.parameters()): assert torch.allclose((x+y)/2, z, atol=1e-6), k
    assert m.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 5)


# ---- what the card says

def cached(hub, name, folder, commit):
    "Lay a model out as the cache of `huggingface_hub` does: files by their hash, a folder of links for the commit, a name for the commit."
    top = hub/f"models--{name.replace('/', '--')}"
    for d in ('blobs', 'refs', f'snapshots/{commit}'): (top/d).mkdir(parents=True)
    (top/'refs'/'main').write_text(commit)
    for f in Path(folder).iterdir(): (top/'snapshots'/commit/f.name).symlink_to(shutil.copyfile(f, top/'blobs'/sha256(f.read_bytes()).hexdigest()))


def test_commits_of_the_hub(three, tmp_path, monkeypatch):
    "The card and merge.yaml name the commits, and a merge from merge.yaml does not care where `main` has gone."
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    for i, n in enumerate(('a', 'base')): cached(tmp_path/'hub', f'org/{n}', three[2*i], f'{i}'*40)
    merge_checkpoints(MergeConfig(method='task_arithmetic', models=('org/a', three[1]), base='org/base@main'), tmp_path/'m')
    card, record = (tmp_path/'m'/'README.md').read_text(), json.loads((tmp_path/'m'/'merge.json').read_text())
    pins = [f'org/a@{"0"*40}', three[1], f'org/base@{"1"*40}']
    for role, pin in zip(('expert 0', 'expert 1', 'base'), pins): assert f'| {role} | {pin} | model.safetensors |' in card
    assert "base='org/base@main'" in card and 'base_model:\n- org/a\n- org/base\n' in card
    assert [(i['source'], i['commit']) for i in record['inputs']] == [('org/a', '0'*40), (three[1], None), ('org/base@main', '1'*40)]
    assert record['inputs'][0]['files'] == {'model.safetensors': file_hash(Path(three[0])/'model.safetensors')}
    again = MergeConfig.read(tmp_path/'m'/'merge.yaml')
    assert [*again.models, again.base] == pins
    (tmp_path/'hub'/'models--org--a'/'refs'/'main').write_text('f'*40)
    merge_checkpoints(again, tmp_path/'again')
    assert file_hash(tmp_path/'again'/'model.safetensors') == file_hash(tmp_path/'m'/'model.safetensors')


SHELL = 'import sys; sys.argv[0] = "/usr/bin/merge_nb"; from merge_nb.cli import main; main()'

def test_command_on_the_card(three, tmp_path):
    "The command that was run is on the card, and makes the same files, card included, wherever they go."
    words = ['merge', *three[:2], '--method', 'linear', '--weight', '1', '--weight', '3', '--out']
    for name in ('m', 'my folder'):
        done = run(SHELL, *words, tmp_path/name)
        assert not done.returncode, done.stderr
    files = [{f.name: f.read_bytes() for f in (tmp_path/name).iterdir()} for name in ('m', 'my folder')]
    assert files[0] == files[1]
    assert f"\nmerge_nb {' '.join(words)} DIR\n" in files[0]['README.md'].decode()


# ---- what is measured on data

def test_measured_from_disk(learned, tmp_path):
    "The dry run says what measuring takes and measures nothing; a second run gives the same bytes; nothing that was measured is left."
    config = MergeConfig(method='regmean', models=(str(learned/'a'), str(learned/'b')), data=TEXTS, data_blocks=2)
    p = merge_checkpoints(config, tmp_path/'m', dry_run=True)
    assert not p.problems and not (tmp_path/'m').exists()
    assert 'measuring loads 2 experts whole' in str(p) and p.memory > plan(config.model_copy(update=dict(method='linear', data=()))).memory
    for name in 'mn': merge_checkpoints(config, tmp_path/name)
    files = [{f.name: f.read_bytes() for f in (tmp_path/name).iterdir()} for name in 'mn']
    assert files[0] == files[1] and not [f for f in files[0] if 'measured' in f]
    assert sorted(f.name for f in tmp_path.iterdir()) == ['m', 'n']
    assert [d['text'] for d in json.loads(files[0]['merge.json'])['data']] == list(TEXTS)


def test_names_of_measured_tensors(tmp_path):
    "A checkpoint without the name of the backbone, whose output layer is tied, is measured under the names of the model."
    tokenizer = train_tokenizer([load_domain(TEXTS[0], documents=50)], 270)
    for i, name in enumerate('ab'):
        load_base(pico('gpt2', vocab=len(tokenizer)), seed=i).save_pretrained(tmp_path/name), tokenizer.save_pretrained(tmp_path/name)
    bare = {k.removeprefix('transformer.'): w for k, w in load_file(tmp_path/'b'/'model.safetensors').items()}
    save_file(bare, tmp_path/'b'/'model.safetensors', metadata={'format': 'pt'})
    models = tuple(str(tmp_path/n) for n in 'ab')
    done = merge_checkpoints(MergeConfig(method='fisher', models=models, data=TEXTS, data_blocks=2), tmp_path/'m')
    assert done.notes[-1] == f'{len(done.slots)} of {len(done.slots)} tensors are measured; the others are averaged'


def test_measured_wrong(learned, tmp_path):
    "Whatever does not fit is said before anything is measured."
    models, files = tuple(str(learned/n) for n in 'ab'), {k: tuple(str(learned/f'{k}-{n}.safetensors') for n in 'ab') for k in ('fisher', 'regmean')}
    def said(**o): return '; '.join(plan(MergeConfig(**dict(method='fisher', models=models, data=TEXTS) | o)).problems)
    assert 'linear measures nothing' in said(method='linear')
    assert 'expected 2 texts' in said(data=TEXTS[:1])
    assert 'was measured for regmean, and this is fisher' in said(data=files['regmean'])
    assert 'no.safetensors' in said(data=('no.safetensors', files['fisher'][1]))
    assert "did you mean 'maths'" in said(data=('synthetic:mahts', TEXTS[1]))
    assert '`eps` is 0' in said(options=dict(eps=0.))
    with pytest.raises(ValueError, match='data_blocks'): said(data_blocks=0)
    with pytest.raises(ValueError, match='was measured on other weights'): merge_checkpoints(MergeConfig(method='fisher', models=models[::-1], data=files['fisher']), tmp_path/'m')
    assert not list(tmp_path.iterdir())


# ---- what goes wrong on the way

KILL = '''
import os, signal, sys
from merge_nb.checkpoints import *
from merge_nb import checkpoints
Writer.put = lambda self, s, x: os.kill(os.getpid(), signal.SIGKILL)
merge_checkpoints(MergeConfig(method='linear', models=(sys.argv[1], sys.argv[2])), sys.argv[3])
'''

def test_killed(three, tmp_path):
    "A kill leaves nothing under the final name, and does not stand in the way of the next run."
    done = run(KILL, *three[:2], tmp_path/'m')
    assert done.returncode == -signal.SIGKILL and not (tmp_path/'m').exists()
    merge_checkpoints(MergeConfig(method='linear', models=tuple(three[:2])), tmp_path/'m')
    assert (tmp_path/'m'/'README.md').is_file()


LIMIT = '''
import resource, sys
from merge_nb.checkpoints import *
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try: merge_checkpoints(MergeConfig(method='linear', models=(sys.argv[1], sys.argv[2])), sys.argv[3])
except OSError as e: print('stopped', e.errno)
'''

def test_write_fails(three, tmp_path):
    "When the system refuses to write on, nothing is left, hidden or not."
    done = run(LIMIT, *three[:2], tmp_path/'m')
    assert done.stdout.startswith('stopped'), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'base']


def test_the_folder_one_is_in(three, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    for out in ('.', '../here', tmp_path/'here'):
        with pytest.raises(ValueError, match='the folder you are in'): merge_checkpoints(MergeConfig(method='linear', models=tuple(three[:2])), out)
    merge_checkpoints(MergeConfig(method='linear', models=tuple(three[:2])), 'new')
    assert (tmp_path/'here'/'new'/'README.md').is_file() and (tmp_path/'here'/'new').stat().st_mode == (tmp_path/'here').stat().st_mode


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_sums_that_overflow(dtype, tmp_path):
    "Infinity is not written, whatever the type."
    big = {'h.0.w': torch.tensor([[float(torch.finfo(getattr(torch, dtype)).max)]])}
    a, b = (model(tmp_path/n, big) for n in 'ab')
    with pytest.raises(ValueError, match="'h.0.w' of the merge reaches"):
        merge_checkpoints(MergeConfig(method='linear', models=(a, b), dtype=dtype, options=dict(normalize=False)), tmp_path/'m')
    assert not (tmp_path/'m').exists()
    merge_checkpoints(MergeConfig(method='linear', models=(a, b), dtype=dtype), tmp_path/'m')


def test_input_changes_on_the_way(three, tmp_path, monkeypatch):
    "A file that is cut after it was checked is named, with the tensor."
    p = plan(MergeConfig(method='linear', models=tuple(three[:2])))
    monkeypatch.setattr('merge_nb.checkpoints.plan', lambda *_: p)
    file = Path(three[1])/'model.safetensors'
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r'b/model.safetensors was cut short after it was checked: h\.\d\.w'): merge_checkpoints(p.config, tmp_path/'m')
    assert not (tmp_path/'m').exists()


def test_integers_must_agree(tmp_path):
    a, b = (model(tmp_path/n, state(0) | {'ids': torch.arange(i, i+3)}) for i, n in enumerate('ab'))
    merge_checkpoints(MergeConfig(method='linear', models=(a, a)), tmp_path/'same')
    assert torch.equal(load_file(tmp_path/'same'/'model.safetensors')['ids'], torch.arange(3))
    with pytest.raises(ValueError, match="'ids' holds integers"): merge_checkpoints(MergeConfig(method='linear', models=(a, b)), tmp_path/'m')


def test_out_is_a_file_or_full(three, tmp_path):
    config = MergeConfig(method='linear', models=tuple(three[:2]))
    (tmp_path/'file').write_text('mine')
    for out in (tmp_path/'file', tmp_path/'a'):
        with pytest.raises(ValueError, match='exists and is not empty'): merge_checkpoints(config, out)
    assert (tmp_path/'file').read_text() == 'mine'
    (tmp_path/'new').mkdir()
    merge_checkpoints(config, tmp_path/'new')


@FEW
@given(cut=st.integers(0, 400), byte=st.integers(0, 255))
def test_damaged_headers(tmp_path_factory, cut, byte):
    "Whatever is cut off or changed in a header is either an error that names the file or harmless."
    home = tmp_path_factory.mktemp('cut')
    path = Path(model(home/'m', state(0)))/'model.safetensors'
    whole = path.read_bytes()
    head = 8+int.from_bytes(whole[:8], 'little')
    for data in (whole[:min(cut, len(whole)-1)], whole[:cut % head] + bytes([byte]) + whole[cut % head+1:]):
        path.write_bytes(data)
        try: c = open_checkpoint(str(home/'m'))
        except ValueError as e: assert 'model.safetensors' in str(e)
        else: assert len(data) == len(whole) and all(c.read(k).numel() for k in c.tensors)


def test_nothing_heavy_is_imported():
    "The command has to start quickly: of the large libraries, only torch."
    done = run('import sys, merge_nb.checkpoints; print(*{"transformers", "datasets", "pandas", "matplotlib", "scipy", "huggingface_hub"} & set(sys.modules))')
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    "Three times the layers are 288 MB more to read; the peak, in which mapped pages count until they are given back, grows by less than half of that."
    code = r'''
import re, sys
from merge_nb.checkpoints import *
merge_checkpoints(MergeConfig(method=sys.argv[5], models=tuple(sys.argv[1:3]), base=sys.argv[3], hashes=False), sys.argv[4])
print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])
'''
    peaks = []
    for layers in (48, 144):
        home = tmp_path/str(layers)
        paths = [model(home/n, state(i, ((512, 512),)*layers)) for i, n in enumerate(('a', 'b', 'base'))]
        peaks.append([])
        for method in ('task_arithmetic', 'ties'):
            tries = [run(code, *paths, home/f'{method}{i}', method, OMP_NUM_THREADS='1') for i in range(2)] # timing only adds
            assert not any(t.returncode for t in tries), tries
            peaks[-1].append(min(int(t.stdout)//1024 for t in tries))
    assert all(b-a < 144 for a, b in zip(*peaks)), peaks
