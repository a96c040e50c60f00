"""Run commands and fail if they change the tree: `python tests/unchanged.py nbdev_export nbdev_clean`.

Contents are compared before and after, not with the last commit, so a tree with work in progress passes if it is in sync.
"""
import hashlib, os, subprocess, sys
from notebooks import ROOT


def files():
    "List the files git tracks or would track; every file outside of hidden folders, if this is no clone."
    p = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if p.returncode == 0: return [ROOT/f for f in p.stdout.split('\0') if f]
    return [q for d in ('nbs', 'merge_nb') for q in (ROOT/d).rglob('*') if not any(o.startswith(('.', '__')) for o in q.parts[len(ROOT.parts):])]


def state():
    "Map each file to the hash of its content."
    return {f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(set(files())) if f.is_file()}


def main(commands):
    "Run `commands` at the top of the repository; return what to tell the shell."
    before = state()
    env = {**os.environ, 'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']}
    for c in commands:
        if code := subprocess.run([c], cwd=ROOT, env=env).returncode: return f'{c} failed with exit status {code}'
    after = state()
    changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    if changed: return f"{' and '.join(commands)} changed {', '.join(changed)}. Run `make sync` and commit the result."
    print(f"{' and '.join(commands)}: {len(after)} files, none changed")


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
