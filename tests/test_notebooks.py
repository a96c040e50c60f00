"""The rules of the house, checked one notebook at a time.

`nbdev_test` has run the notebooks before this; here each is read, not run. A rule is a generator that takes a notebook and yields
a complaint for each cell that breaks it.
"""
import ast, re
import pytest
from notebooks import NBS, ROOT, Cell, Notebook, notebooks
from readme import HERE

PATHS = notebooks()
BOOKS = {p.relative_to(NBS).as_posix(): Notebook(p) for p in PATHS}
NUMBERS = {nb.stem: nb.number for nb in BOOKS.values() if nb.kind == 'lib'}  # module -> number of its notebook
WORDS = dict(lib=2, tutorials=4, paper=8)  # words of prose for each line of code
MACHINE = re.compile(r'(?<![\w.~])/(?:work|tmp|home|root|Users|private|var/folders)/|[A-Z]:\\\\')
DECIMAL = re.compile(r'(?<![\w.-])\d+\.\d+(?![\w-]|\.\d)')
NOT_A_RESULT = re.compile(r'https?://\S+|\b\d{4}\.\d{4,5}\b|(?:§|section|eq\.|equation|table|figure|Python|Apache|version)\s*\d+\.\d+', re.I)


def at(nb, cell): return f'cell {nb.cells.index(cell)} ({cell.source.strip().splitlines()[0][:60] if cell.source.strip() else "empty"})'


def plain(md):
    "Drop code, so that what is left is prose and links."
    return re.sub(r'`[^`]*`', '', re.sub(r'^(`{3,}|~{3,}).*?^\1', '', md, flags=re.S | re.M))


def lines(code): return [l for l in code.split('\n') if l.strip() and not l.strip().startswith('#')]


# ---- every notebook

def whole(nb):
    ids = [c.id for c in nb.cells]
    if len(set(ids)) < len(ids) or None in ids: yield 'cell ids are missing or repeated'
    for c in nb.code:
        try: c.tree
        except SyntaxError as e: yield f'{at(nb, c)}: {e}'
        for o in c.outputs:
            if o['output_type'] == 'error': yield f"{at(nb, c)}: a stored error, {o.get('ename')}"
            if any('widget' in k or 'javascript' in k for k in o.get('data', {})): yield f'{at(nb, c)}: an output that needs scripts'
        if any('Traceback (most recent call last)' in t for _, t in c.texts()): yield f'{at(nb, c)}: a stored traceback'
        if (c.option('eval') or '').lower() == 'false': yield f'{at(nb, c)}: `eval: false`; flag it slow or cuda, with a smoke twin'


def portable(nb):
    for c in nb.cells:
        for what, text in [('source', c.source)] + [('output', t) for _, t in c.texts()]:
            if m := MACHINE.search(text): yield f'{at(nb, c)}: {what} holds a path of one machine: {text[m.start():m.start() + 40]!r}'


def titled(nb):
    if not (nb.markdown and re.match(r'# \S', nb.markdown[0].source)): yield 'the first markdown cell has no `# Title`'
    elif not re.search(r'^> \S', nb.markdown[0].source, re.M): yield 'no `> promise` under the title'
    elif rest := [l for l in nb.markdown[0].source.split('\n') if l.strip() and not re.match(r'# |> |- .+:.+', l)]:
        yield f'the title cell is not shown beyond title and promise, so this would be lost: {rest[0]!r}'


def imports(nb):
    for c in nb.code:
        found = c.nodes(ast.Import, ast.ImportFrom) if not c.exported else [n for n in c.tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        if found and not c.imports_only: yield f'{at(nb, c)}: imports and other code in one cell; building the site would run both'
        for n in c.nodes(ast.ImportFrom):
            if n.names[0].name != '*': continue
            if c.exported: yield f'{at(nb, c)}: `import *` in an exported cell'
            elif n.module != 'fastcore.test' or not c.has('hide'): yield f'{at(nb, c)}: `import *` other than of fastcore.test in a hidden cell'


def safe(nb):
    for c in nb.code:
        names = {n.func.id for n in c.nodes(ast.Call) if isinstance(n.func, ast.Name)}
        if 'hash' in names: yield f'{at(nb, c)}: `hash()` changes with each process; use `key_of` or `seed_of`'
        modules = {a.name for n in c.nodes(ast.Import) for a in n.names} | {n.module for n in c.nodes(ast.ImportFrom)}
        if 'pickle' in modules or 'torch.load(' in c.code: yield f'{at(nb, c)}: pickle; weights travel as safetensors'


def figures(nb):
    seen = set()
    for c in nb.code:
        label = c.option('label')
        if label:
            if label != label.lower(): yield f'{at(nb, c)}: the label {label!r} has capitals, which break links'
            if label in seen: yield f'{at(nb, c)}: the label {label!r} is used twice'
            seen.add(label)
        if label and label.startswith('fig-') or (c.images and nb.kind in ('paper', 'tutorials')):
            if not (label or '').startswith('fig-'): yield f'{at(nb, c)}: a figure without a `fig-` label'
            for o in ('fig-cap', 'fig-alt'):
                if not c.option(o): yield f'{at(nb, c)}: a figure without {o}'
            if nb.kind == 'paper' and not c.images: yield f'{at(nb, c)}: a figure cell committed without its figure'
    for c in nb.markdown:
        for alt, _ in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)', plain(c.source)):
            if not alt: yield f'{at(nb, c)}: an image without alt text'


def anchors(nb):
    "Collect what a link or a reference into `nb` may name."
    found = {c.option('label') for c in nb.code} - {None}
    for c in nb.markdown:
        found |= set(re.findall(r'\{#([\w-]+)', c.source))
        for h in re.findall(r'^#+ +(.+?)(?:\s*\{.*\})?\s*$', c.source, re.M):
            found.add(re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', h.lower()).strip()).lstrip('0123456789-.'))
    return found | {n.lower() for c in nb.code if c.exported for n in defined(c)}


def references(nb):
    known = anchors(nb)
    texts = [(c, plain(c.source)) for c in nb.markdown] + [(c, plain(t)) for c in nb.code for md, t in c.texts() if md]
    texts += [(c, c.code) for c in nb.code if nb.kind == 'paper']
    for c, text in texts:
        for ref in re.findall(r'(?<![\w@])@((?:fig|tbl|eq|sec|lst)-[\w-]+)', text):
            if ref not in known: yield f'{at(nb, c)}: @{ref} is nowhere in this notebook'


def links(nb):
    texts = [(c, plain(c.source)) for c in nb.markdown] + [(c, plain(t)) for c in nb.code for md, t in c.texts() if md]
    for c, text in texts:
        for target in re.findall(r'\]\(([^)\s]+)', text):
            if problem := broken(nb, target): yield f'{at(nb, c)}: {target} {problem}'


def broken(nb, target):
    "Say what is wrong with a link, or None."
    if target.startswith(HERE): return None if (ROOT/target.removeprefix(HERE).split('#')[0]).exists() else 'is not in this repository'
    if re.match(r'[a-z]+:', target): return None
    if target.startswith('/'): return 'is absolute; link relative to this notebook'
    path, _, anchor = target.partition('#')
    file = (nb.path.parent/path).resolve() if path else nb.path
    if not file.exists(): return 'does not exist'
    if not file.is_relative_to(NBS): return 'is not on the site; link to its address'
    if anchor and file.suffix == '.ipynb' and anchor not in anchors(Notebook(file)): return 'has no such heading'


def functions(nb):
    for c in nb.code:
        for f in c.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
            if (n := f.end_lineno - f.lineno + 1) > 30: yield f'{at(nb, c)}: `{f.name}` has {n} lines, more than 30'


def worded(nb):
    need = WORDS.get(nb.kind, 0)
    code = sum(len(lines(c.code)) for c in nb.code if not c.imports_only)
    words = len(re.findall(r"[^\W\d_][\w'’-]*", plain(nb.prose())))
    if words < need * code: yield f'{words} words for {code} lines of code; {nb.kind} asks for {need} a line'


# ---- nbs/lib

def defined(cell):
    "List the public names that an exported cell defines."
    names = []
    for n in cell.tree.body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): names.append(n.name)
        if isinstance(n, ast.Assign): names += [t.id for t in n.targets if isinstance(t, ast.Name)]
    return [n for n in names if n[0] != '_']


def opening(nb):
    first, title, exported, tests = (nb.cells + [None] * 4)[:4]
    if not (first and first.is_code and f'default_exp {nb.stem}' in first.directives): yield f'cell 0 is not `#| default_exp {nb.stem}`'
    elif not first.has('hide'): yield 'cell 0 lacks `#| hide`, so an empty cell would head the page'
    if not (title and title.markdown): yield 'cell 1 is not the title'
    if not (exported and exported.is_code and exported.exported and exported.imports_only): yield 'cell 2 is not the exported imports'
    elif not exported.code.startswith('from __future__ import annotations'): yield 'cell 2 does not start with `from __future__ import annotations`'
    if not (tests and tests.is_code and tests.has('hide') and tests.imports_only): yield 'cell 3 is not the hidden imports for tests'


def downhill(nb):
    for c in nb.code:
        modules = [n.module for n in c.nodes(ast.ImportFrom)] + [a.name for n in c.nodes(ast.Import) for a in n.names]
        for m in (m.split('.')[1] for m in modules if m and m.startswith('merge_nb.')):
            if m not in NUMBERS: yield f'{at(nb, c)}: merge_nb.{m} has no notebook'
            elif NUMBERS[m] >= nb.number: yield f'{at(nb, c)}: imports {NUMBERS[m]}_{m}, which is not lower'


def sized(nb):
    cells = [c for c in nb.code if c.exported]
    if len(cells) > 25: yield f'{len(cells)} exported cells, more than 25'
    for c in cells:
        if (n := len(c.code.split('\n'))) > 40: yield f'{at(nb, c)}: {n} lines, more than 40'


def aliases(nb):
    "Collect the names given to annotated types, in which `typer` commands keep the help of their options."
    return {n for c in nb.code if c.exported for n in defined(c) if re.search(rf'^{re.escape(n)} *= *Annotated\[', c.code, re.M)}


def shown(nb):
    makers = {f.name: ast.unparse(f.returns) for c in nb.code for f in c.nodes(ast.FunctionDef) if f.returns}
    for i, c in enumerate(nb.cells):
        if not (c.is_code and c.has('export', 'exports')): continue
        later = '\n'.join(o.source for o in nb.cells[i + 1:] if o.is_code and not o.exported)
        for name in defined(c):  # a constant is data; a class is shown, too, by a function that returns it
            if name.isupper() or name in aliases(nb): continue
            ways = [name.rstrip('_'), *(f for f, made in makers.items() if name in made)]
            if not any(re.search(rf'\b{re.escape(w)}\b', later) for w in ways): yield f'{at(nb, c)}: `{name}` is exported and never shown'


def documented(nb):
    for c in nb.code:
        if not c.has('export', 'exports'): continue
        for f in c.tree.body:
            if isinstance(f, (ast.FunctionDef, ast.ClassDef)) and f.name[0] != '_':
                doc = ast.get_docstring(f)
                if not doc or '\n' in doc: yield f'{at(nb, c)}: `{f.name}` needs a docstring of one line'
            if isinstance(f, ast.FunctionDef) and f.name[0] != '_': yield from (f'{at(nb, c)}: `{f.name}`: {p}' for p in parameters(f, c.code, aliases(nb)))


def parameters(f, code, known):
    "Complain about parameters without a type, or without a comment beside them; the types in `known` are comment enough."
    source = code.split('\n')
    for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]:
        if a.arg == 'self': continue
        line = source[a.lineno - 1]
        if not a.annotation: yield f'the parameter `{a.arg}` has no type'
        elif '#' not in line and 'help=' not in line and ast.unparse(a.annotation) not in known: yield f'the parameter `{a.arg}` has no comment'


# ---- nbs/paper and nbs/tutorials

def exports_nothing(nb):
    for c in nb.code:
        if c.exported or c.has('default_exp'): yield f'{at(nb, c)}: {nb.kind} exports nothing'


def trains_nothing(nb):
    for c in nb.code:
        if re.search(r'merge_nb\.finetune|\.backward\(', c.code): yield f'{at(nb, c)}: the paper trains nothing'


def computed(nb):
    said = [(c, plain(c.source)) for c in nb.markdown] + [(c, c.option(o) or '') for c in nb.code for o in ('fig-cap', 'fig-alt')]
    for c, text in said:
        if m := DECIMAL.search(NOT_A_RESULT.sub('', text)): yield f'{at(nb, c)}: the number {m.group()} is typed; compute it from a record'


def short(nb):
    if (n := sum(len(c.source.split('\n')) for c in nb.cells if not (c.is_code and c.has('hide')))) > 80: yield f'{n} lines, more than two screens'


EVERY = [whole, portable, titled, imports, safe, figures, references, links, functions, worded]
RULES = dict(lib=EVERY + [opening, downhill, sized, shown, documented], paper=EVERY + [exports_nothing, trains_nothing, computed],
             tutorials=EVERY + [exports_nothing], index=EVERY + [exports_nothing, short])


@pytest.mark.parametrize('name', BOOKS)
def test_notebook(name):
    nb = BOOKS[name]
    assert nb.kind in RULES, f'{name} is in none of {", ".join(RULES)}'
    if complaints := [c for rule in RULES[nb.kind] for c in rule(nb)]: pytest.fail('\n'.join([name, *complaints]), pytrace=False)


# ---- the rules themselves: a rule that never complains proves nothing

def cell(source, kind='code', output=None):
    return dict(cell_type=kind, id=source, source=source, outputs=[output] if output else [])


def book(kind, cells):
    nb = Notebook.__new__(Notebook)
    nb.path, nb.cells, nb.kind, nb.name, nb.number, nb.stem = NBS/kind/'03_x.ipynb', [Cell(c) for c in cells], kind, 'x', '03', 'x'
    return nb


LONG = 'def f(a):\n' + '    pass\n' * 41
BROKEN = dict(
    paper=[cell('# T\n> p\nlost', 'markdown'), cell('See @fig-no, [x](no.ipynb): the loss is 3.02, in /home/me/x', 'markdown'),
           cell('#| label: fig-A\nplot()', output=dict(output_type='display_data', data={'image/png': ''})),
           cell('import os\nhash(1)', output=dict(output_type='error', ename='E')), cell('#| export\nfrom merge_nb.finetune import *')],
    lib=[cell('#| default_exp x'), cell('#| export\nfrom merge_nb.cli import app'), cell('#| export\n' + LONG)])


@pytest.mark.parametrize('kind', BROKEN)
def test_rules_notice(kind):
    "Each rule of a kind complains about a notebook that breaks all of them, and none about prose that only looks like it."
    nb = book(kind, BROKEN[kind])
    silent = [r.__name__ for r in RULES[kind] if not list(r(nb))]
    assert silent == dict(paper=['functions'], lib=['whole', 'portable', 'imports', 'safe', 'figures', 'references', 'links'])[kind]


def test_rules_let_pass():
    nb = book('paper', [cell('As §2.4 of arXiv 2411.02207 says, Python 3.11; see [there](https://a.b/1.5) and `0.5`', 'markdown')])
    assert not list(computed(nb)) + list(portable(nb)) + list(links(nb))
