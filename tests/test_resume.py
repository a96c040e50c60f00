"""A run that is killed with SIGKILL, more than once and at no particular moment, ends with the record of one left alone."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = "import sys; from merge_nb.experiments import run; run('over-time', 'smoke', cache=sys.argv[1], results=sys.argv[2], say=lambda _: None)"


def start(folder):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1'}
    return subprocess.Popen([sys.executable, '-c', RUN, str(folder/'cache'), str(folder/'results')], cwd=ROOT, env=env)


def files(folder): return sum(1 for _ in (folder/'cache').rglob('*.*'))


def test_killed_runs_resume(tmp_path):
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    assert start(whole).wait(600) == 0
    total = files(whole)
    for share in (.3, .7):  # of the files that a whole run leaves behind
        p = start(cut)
        while p.poll() is None and files(cut) < share*total: time.sleep(.005)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL, 'the run ended before it could be killed'
        assert not list(cut.rglob('over-time-smoke.json'))
    assert start(cut).wait(600) == 0
    a, b = [json.loads(next(d.rglob('over-time-smoke.json')).read_text()) for d in (whole, cut)]
    assert a['rows'] == b['rows'] and a['config'] == b['config']
    assert a['provenance']['weights'] == b['provenance']['weights']
