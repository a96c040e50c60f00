"""Time `finetune` beside a bare PyTorch loop that makes the same updates, and training the MLPs beside training everything.

    python benchmarks/finetune.py [--threads 2] [--runs 5] [--json PATH]

Model, batch and texts are those of the experiment `over-time` at its small scale. Both start from the same weights, see the same
blocks in the same order and end with the same losses, which is checked: AdamW (fused), warm-up and cosine, clipping, cross-entropy.
`finetune` does the rest of its work as well: it reads the blocks from a data set of Arrow, names the run by its content, keeps a
ladder of checkpoints on disk, reads the loss of each step and stops if it is not finite. The bare loop does nothing of that; its
blocks are a tensor in memory. Where MKL is not at its best `finetune` multiplies by oneDNN; it is timed and compared without as well. Everything runs on the CPU, also where there is a GPU. A ratio is the row's seconds over those of the
bare loop that trains the same weights; `tokens` are those of a run, so tokens / seconds is the speed.
"""
from __future__ import annotations
import copy, json, os, tempfile
os.environ['ACCELERATE_USE_CPU'] = 'true'  # read when `accelerate` starts
import torch
import torch.nn.functional as F
from _timing import main, ratio, row, target, timed
from merge_nb.data import load_domain, token_blocks, train_tokenizer
from merge_nb.finetune import FinetuneConfig, batch_rows, finetune, ladder, schedule
from merge_nb.models import _without_onednn, load_base

STEPS, BATCH, CONTEXT, VOCAB = 50, 24, 96, 512
MODEL = dict(model_type='gpt2', n_embd=96, n_layer=6, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0,
             activation_function='gelu_pytorch_tanh', resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)

def config(params:str) -> FinetuneConfig:
    "A short run with the default ladder: in its first steps, where a checkpoint is kept most often."
    return FinetuneConfig(steps=STEPS, lr=2e-3, batch_size=BATCH, params=params)

def bare(model:torch.nn.Module, ids:torch.Tensor, order:list[torch.Tensor], c:FinetuneConfig) -> list[float]:
    "Train as one would by hand, and return the losses."
    model = copy.deepcopy(model).train()
    for n,p in model.named_parameters(): p.requires_grad_(c.params=='all' or '.mlp.' in n)
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [dict(params=[p for p in params if p.ndim>1], weight_decay=c.weight_decay), dict(params=[p for p in params if p.ndim<2], weight_decay=0.)]
    opt = torch.optim.AdamW(groups, lr=c.lr, betas=c.betas, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: schedule(step, c)/c.lr)
    losses = []
    for rows in order:
        x = ids[rows]
        logits = model(input_ids=x, use_cache=False).logits[:,:-1]
        loss = F.cross_entropy(logits.flatten(0, 1), x[:,1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, c.clip)
        opt.step()
        rate.step()
        opt.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()

def ours(model:torch.nn.Module, blocks, c:FinetuneConfig) -> list[float]:
    "Train with `finetune` into a new folder, and return the losses."
    with tempfile.TemporaryDirectory() as d: return json.loads((finetune(model, blocks, c, d)/'done.json').read_text())['loss']

def by_mkl(model:torch.nn.Module, blocks, c:FinetuneConfig) -> list[float]:
    "The same by `torch.mm`."
    with _without_onednn(): return ours(model, blocks, c)

def check(model:torch.nn.Module, blocks, ids:torch.Tensor, order:list[torch.Tensor], c:FinetuneConfig) -> None:
    "Both ways make the same updates: their losses agree at every step."
    for way,most in ((by_mkl, 1e-4), (ours, 1e-2)): # other kernels round otherwise, and training carries that on
        apart = max(abs(a-b) for a,b in zip(way(model, blocks, c), bare(model, ids, order, c), strict=True))
        assert apart<most, f'the losses differ by {apart}: the two do not do the same work'

def measure(runs:int) -> tuple[list[dict], list[dict]]:
    "Both ways, for the MLPs and for all weights."
    texts, model, mlp, whole = load_domain('synthetic:maths', documents=2000), load_base(MODEL), config('mlp'), config('all')
    with tempfile.TemporaryDirectory() as d:
        blocks = token_blocks(texts.train, train_tokenizer([texts], VOCAB), CONTEXT, d)
        ids = blocks[:]['input_ids'].long()
        order = [batch_rows(len(ids), s, BATCH) for s in range(STEPS)]
        for c in (mlp, whole): check(model, blocks, ids, order, c)
        t = timed(runs, lambda: bare(model, ids, order, mlp), lambda: ours(model, blocks, mlp), lambda: ours(model, ids, mlp), lambda: by_mkl(model, blocks, mlp),
                  lambda: bare(model, ids, order, whole), lambda: ours(model, blocks, whole))
    names = [('bare loop, MLPs', t[0], 'forward, backward, clipping, AdamW, schedule; blocks in memory'),
             ('finetune, MLPs', t[0], f'the same updates from an Arrow data set, with {len(ladder(mlp))} checkpoints and run.json'),
             ('finetune, MLPs, in memory', t[0], 'the same, from a tensor'),
             ('finetune, MLPs, torch.mm', t[0], 'from the data set, without oneDNN'),
             ('bare loop, all weights', t[4], 'as above'), ('finetune, all weights', t[4], 'as above, from the data set')]
    rows = [row(n, s, over, note, tokens=STEPS*BATCH*CONTEXT) for s,(n,over,note) in zip(t, names)]
    one = 'of its tokens a second'
    return rows, [target('finetune against a bare loop, MLPs', ratio(t[0], t[1]), one, at_least=0.9),
                  target('finetune against a bare loop, all weights', ratio(t[4], t[5]), one, at_least=0.9),
                  target('training MLPs against all weights', ratio(t[5], t[1]), '× as fast', at_least=1)]

if __name__=='__main__': main(__doc__, measure, runs=5)
