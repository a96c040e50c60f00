"Read notebooks, for the tests and for `make readme`."
import ast, json, re
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'


def notebooks():
    "List every notebook of the site, in order."
    skip = lambda p: any(o[0] in '._' for o in p.relative_to(NBS).parts)
    return sorted(p for p in NBS.rglob('*.ipynb') if not skip(p))


class Cell:
    "One cell: its source, its directives (`#| key` or `#| key: value`), its code, its outputs."
    def __init__(self, raw):
        self.raw, self.id = raw, raw.get('id')
        self.markdown, self.is_code = raw['cell_type'] == 'markdown', raw['cell_type'] == 'code'
        self.source, self.outputs = ''.join(raw['source']), raw.get('outputs', [])
        lines = self.source.split('\n')
        n = next((i for i, l in enumerate(lines) if l.strip() and not re.match(r'\s*#\s*\|', l)), len(lines)) if self.is_code else 0
        self.directives = [re.sub(r'^\s*#\s*\|\s*', '', l).strip() for l in lines[:n] if l.strip()]
        self.code = '\n'.join(lines[n:]).rstrip() if self.is_code else ''

    def has(self, *names):
        "Tell whether one of the directives `names` is set."
        return any(re.split(r'[\s:]', d)[0] in names for d in self.directives)

    def option(self, name):
        "Return the value of `#| name: value`, or None."
        for d in self.directives:
            if m := re.match(rf'{re.escape(name)}\s*:\s*(.*)', d): return m[1].strip().strip('"\'')

    @property
    def exported(self): return self.has('export', 'exports', 'exporti')

    @cached_property
    def tree(self):
        "Parse the code, without the lines that only IPython understands."
        return ast.parse('\n'.join('' if re.match(r'\s*[%!]', l) else l for l in self.code.split('\n')))

    def nodes(self, *types):
        "List the syntax nodes of the given types."
        return [n for n in ast.walk(self.tree) if isinstance(n, types)]

    @property
    def imports_only(self):
        "Tell whether all of the code is imports, those for type checkers included."
        def only(body): return all(isinstance(n, (ast.Import, ast.ImportFrom)) or
                                   (isinstance(n, ast.If) and ast.unparse(n.test) == 'TYPE_CHECKING' and only(n.body)) for n in body)
        return bool(self.tree.body) and only(self.tree.body)

    def texts(self):
        "Yield (is it markdown, text) for each output."
        join = lambda t: t if isinstance(t, str) else ''.join(t)
        for o in self.outputs:
            data = o.get('data', {})
            if o['output_type'] == 'stream': yield False, join(o['text'])
            elif 'text/markdown' in data: yield True, join(data['text/markdown'])
            elif 'text/plain' in data and not self.images: yield False, join(data['text/plain'])

    @property
    def images(self): return [k for o in self.outputs for k in o.get('data', {}) if k.startswith('image/')]


class Notebook:
    "A notebook of the site."
    def __init__(self, path, top=NBS):
        self.path = Path(path)
        self.json = json.loads(self.path.read_text(encoding='utf-8'))
        self.cells = [Cell(c) for c in self.json['cells']]
        self.kind = self.path.parent.name if self.path.parent != top else 'index'
        self.name = self.path.relative_to(top).as_posix()
        self.number, _, self.stem = self.path.stem.partition('_')

    @property
    def code(self): return [c for c in self.cells if c.is_code]

    @property
    def markdown(self): return [c for c in self.cells if c.markdown]

    def prose(self):
        "Return what a reader reads: markdown cells, computed sentences, captions."
        return '\n\n'.join([c.source for c in self.markdown] + [t for c in self.code for md, t in c.texts() if md] +
                           [c.option(o) or '' for c in self.code for o in ('fig-cap', 'tbl-cap')])
