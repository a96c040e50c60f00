"The repository around the notebooks: package, pins, front page, site, continuous integration."
import importlib.metadata as metadata, os, re, shlex, shutil, subprocess, sys
import pytest, yaml
from packaging.requirements import Requirement
from notebooks import NBS, ROOT, Notebook, notebooks
from readme import cfg, readme
from test_notebooks import defined

HEAVY = 'torch transformers datasets accelerate peft scipy sklearn matplotlib seaborn pandas'.split()
cfg = cfg['DEFAULT']
canonical = lambda name: re.sub(r'[-_.]+', '-', name).lower()


def read(name): return (ROOT/name).read_text(encoding='utf-8')


def pins():
    "Map each pinned package to its version."
    found = re.findall(r'^([\w.-]+)==(\S+)$', read('constraints.txt'), re.M)
    return {canonical(n): v for n, v in found}


def python(code, **kw):
    "Run `code` in a fresh process and return what it printed."
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, **kw)
    assert p.returncode == 0, p.stderr
    return p.stdout.split()


# ---- the package

def test_import_is_light():
    assert not set(python('import merge_nb, sys; print(*sys.modules)')) & set(HEAVY)


def test_command_is_light():
    "`merge_nb --help` must not pay for what it does not use."
    assert not set(python('import merge_nb.cli, sys; print(*sys.modules)')) & set(HEAVY)


def test_metadata():
    "What pip shows is what settings.ini says, and running the library asks for no notebook tooling."
    m = metadata.metadata('merge_nb')
    assert (m['Name'], m['Version'], m['Requires-Python']) == ('merge_nb', cfg['version'], f">={cfg['min_python']}")
    needs = [Requirement(r) for r in m.get_all('Requires-Dist')]
    run = {canonical(r.name) for r in needs if not r.marker}
    assert run == {canonical(Requirement(r).name) for r in shlex.split(cfg['requirements'])}
    assert not run & {'nbdev', 'jupyter', 'jupyterlab', 'execnb', 'pytest', 'hypothesis'}
    command, = [e for e in metadata.entry_points(group='console_scripts') if e.name == 'merge_nb']
    assert command.value == 'merge_nb.cli:main'


def test_versions_agree():
    "One version, in settings.ini, the package, the citation and the changelog."
    version = cfg['version']
    assert python('import merge_nb; print(merge_nb.__version__)') == [version]
    assert yaml.safe_load(read('CITATION.cff'))['version'] == version
    assert f'## {version}' in read('CHANGELOG.md')


def test_modules_come_from_notebooks():
    made = {p.stem for p in (ROOT/'merge_nb').glob('*.py')} - {'__init__', '_modidx'}
    assert made == {Notebook(p).stem for p in (NBS/'lib').glob('*.ipynb')}


# ---- the pins

@pytest.mark.parametrize('which', ['requirements', 'dev_requirements'])
def test_requirements_are_pinned(which):
    for r in map(Requirement, shlex.split(cfg[which])):
        assert canonical(r.name) in pins(), f'{r.name} is in settings.ini, not in constraints.txt'
        assert r.specifier.contains(pins()[canonical(r.name)]), f'constraints.txt pins {r.name} outside of {r.specifier}'


def test_environment_is_the_pinned_one():
    "Everything installed is pinned, at this version; a local tag such as +cpu does not matter."
    ours = pins()
    odd = {f"{d.name}=={d.version}" for d in metadata.distributions()
           if canonical(d.name) not in ('merge-nb', 'pip') and ours.get(canonical(d.name)) != d.version.split('+')[0]}
    assert not odd, f'not as in constraints.txt: {sorted(odd)}'


# ---- the front page and continuous integration

def test_readme_is_made_from_the_index():
    assert read('README.md') == readme(), 'README.md is not what nbs/index.ipynb makes: run `make readme`'


def test_ci_runs_the_command_of_the_readme():
    assert re.search(r'^make test\b', read('README.md'), re.M)
    commands = [l for l in read('.ci/run').split('\n') if l and not l.startswith(('#', 'set ', 'cd '))]
    assert commands == ['exec make test']
    assert os.access(ROOT/'.ci'/'run', os.X_OK)


def test_workflows():
    jobs = yaml.safe_load(read('.github/workflows/test.yml'))['jobs']
    assert jobs['test']['strategy']['matrix'] == dict(os=['ubuntu-latest', 'macos-latest'], python=['3.11', '3.12', '3.13'])
    for p in (ROOT/'.github'/'workflows').glob('*.yml'):
        flow = yaml.safe_load(p.read_text())
        assert flow['permissions'] == {'contents': 'read'}, f'{p.name}: jobs ask for more where they need it'
        uses = [s['uses'] for j in flow['jobs'].values() for s in j['steps'] if 'uses' in s]
        assert all(re.fullmatch(r'[\w./-]+@v\d+', u) for u in uses), f'{p.name}: an action without a pinned major version: {uses}'


# ---- the site

site = yaml.safe_load(read('_quarto.yml'))


def test_site_configuration():
    "One configuration, at the top; what settings.ini also says is the same in both."
    assert read('nbs/_quarto.yml').strip() == 'metadata-files: [../_quarto.yml]'
    assert site['format']['html']['html-math-method'] == 'mathml'
    assert site['project']['output-dir'] == cfg['doc_path']
    web = site['website']
    assert (web['title'], web['description'], web['repo-url'], web['repo-branch']) == (cfg['title'], cfg['description'], cfg['git_url'], cfg['branch'])


def test_site_renders_every_notebook_and_nothing_else():
    globs = [g.lstrip('/') for g in site['project']['render']]
    assert sorted(p for g in globs for p in NBS.glob(g)) == notebooks()
    assert not [p for g in globs for p in ROOT.glob(g)], 'a plain `quarto render` at the top would render these'


def test_site_files_exist():
    named = re.findall(r'[\w/-]+\.(?:ipynb|scss|css)', read('_quarto.yml'))
    assert named and not [n for n in named if not (NBS/n).exists()]


def test_site_lists_every_notebook():
    "Each notebook is in the sidebar, by name or by a glob of its folder."
    contents = str(site['website']['sidebar']['contents'])
    for p in notebooks():
        name = p.relative_to(NBS)
        assert name.as_posix() in contents or f'{name.parent.as_posix()}/*.ipynb' in contents, f'{name} is not in the sidebar'


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """Process the notebooks as the site does, in a copy of the tree; Quarto itself is not needed for that.

    `nbdev_proc_nbs` looks for a program of that name and would install it, so it finds a stand-in that must never be called.
    """
    tree = tmp_path_factory.mktemp('site')/'a copy'
    for d in ('nbs', 'merge_nb', 'experiments', 'results'):
        if (ROOT/d).exists(): shutil.copytree(ROOT/d, tree/d, ignore=shutil.ignore_patterns('.*', '__pycache__', 'scratch'))
    for f in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/f, tree/f)
    bin = tree/'.bin'
    bin.mkdir()
    (bin/'quarto').write_text('#!/bin/sh\nexit 1\n')
    (bin/'quarto').chmod(0o755)
    env = {**os.environ, 'PYTHONPATH': str(tree), 'PATH': os.pathsep.join([str(bin), os.path.dirname(sys.executable), os.environ['PATH']])}
    p = subprocess.run(['nbdev_proc_nbs', '--n_workers', '2'], cwd=tree, env=env, capture_output=True, text=True)
    if p.returncode: pytest.fail(f'nbdev_proc_nbs failed:\n{p.stderr[-1500:]}', pytrace=False)
    return tree/'_proc'


def test_site_processes_every_notebook(pages):
    assert sorted(p.relative_to(pages) for p in pages.rglob('*.ipynb')) == sorted(p.relative_to(NBS) for p in notebooks())
    for n in ('_quarto.yml', 'theme.scss'): assert (pages/n).exists()


def test_pages_show_the_code_they_explain(pages):
    "Every exported definition is on its page, no directive of nbdev is left, and nothing failed on the way."
    for p in notebooks():
        nb, page = Notebook(p), Notebook(pages/p.relative_to(NBS), pages)
        code = '\n'.join(c.code for c in page.code)
        for name in [n for c in nb.code if c.has('export', 'exports') for n in defined(c)]:
            assert re.search(rf'^(?:class |def )?{re.escape(name)}\b', code, re.M), f'{nb.name}: `{name}` is not on the page'
        assert not [d for c in page.code for d in c.directives if ':' not in d], f'{nb.name}: a directive is left for Quarto'
        assert not [o for c in page.code for o in c.outputs if o['output_type'] == 'error'], f'{nb.name}: an error on the page'
