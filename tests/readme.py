"""Make README.md from nbs/index.ipynb: `make readme`.

nbdev would make it with Quarto, which is not in the package index. The index needs little: its markdown as it is, with links that
work from the top of the repository, and its visible code with the text it printed.
"""
import configparser, re
from notebooks import ROOT, Notebook

cfg = configparser.ConfigParser()
cfg.read(ROOT/'settings.ini', encoding='utf-8')
HERE = '{git_url}/blob/{branch}/'.format(**cfg['DEFAULT'])

NOTE = '<!-- Made from nbs/index.ipynb by `make readme`; edit that. -->\n\n'


def link(m):
    "Make a link relative to the top of the repository; leave other addresses and anchors alone."
    text, target = m.groups()
    if target.startswith(HERE): return f'[{text}]({target.removeprefix(HERE)})'
    return m.group() if re.match(r'[a-z]+:|#', target) else f'[{text}](nbs/{target})'


def shown(cell):
    "Return the markdown of a code cell: the code, then what it printed."
    if cell.has('hide') or cell.option('include') == 'false': return ''
    code = '' if cell.option('echo') == 'false' or not cell.code.strip() else f'```python\n{cell.code.strip()}\n```'
    return '\n\n'.join([code] * bool(code) + [t if md else f'```\n{t.rstrip()}\n```' for md, t in cell.texts()])


def readme():
    "Return the text of README.md."
    parts = [re.sub(r'(?<!!)\[([^\]]*)\]\(([^)\s]+)\)', link, c.source.strip()) if c.markdown else shown(c)
             for c in Notebook(ROOT/'nbs'/'index.ipynb').cells]
    text = '\n\n'.join(p for p in parts if p)
    return NOTE + text.replace('\n```\n\n```python\n', '\n\n') + '\n'


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
