"Test the notebooks that differ from the last commit: the last step of `make sync`."
import os, subprocess, sys
from notebooks import ROOT, notebooks


def main():
    "Run `nbdev_test` on each changed or new notebook; return the worst exit status."
    git = lambda *a: subprocess.run(['git', *a, '-z', '--', 'nbs'], cwd=ROOT, capture_output=True, text=True).stdout.split('\0')
    names = {*git('diff', '--name-only', 'HEAD'), *git('ls-files', '--others', '--exclude-standard')}
    changed = [p for p in notebooks() if p.relative_to(ROOT).as_posix() in names]
    test = os.path.join(os.path.dirname(sys.executable), 'nbdev_test')
    print(f'{len(changed)} changed notebooks', *[p.relative_to(ROOT).as_posix() for p in changed], sep='\n  ')
    return max([subprocess.run([test, '--path', str(p)], cwd=ROOT).returncode for p in changed], default=0)


if __name__ == '__main__': sys.exit(main())
