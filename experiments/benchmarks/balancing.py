"""What balancing costs: `python -m experiments.benchmarks.balancing`. The last line is one JSON object.

Forty binary tasks on the small CNN at 32 px, batches of 32, one core. A step is the forward pass, the gradients that the method makes of it
and the optimiser's step, the code that a client's local step runs. Methods take turns, `--turns` times, and the medians count.

    gramian_vs_sum           representation level over the plain sum, the worst of the methods whose solver does not dominate
    solver_vs_sum            the same for those whose solver does
    vs_torchjd               torchjd's mtl_backward at its best setting over ours at the representation level, the same method
    parameters_vs_torchjd    our parameter level over the same of torchjd, the same method: the smaller the better
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from mtl.balancing.contract import Balancer
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.mgda import MGDA
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import Fixed
from mtl.base.memory import keep_freed_memory
from mtl.base.types import Params
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.balance import make_balance
from mtl.federation.clients.batches import Batch
from mtl.federation.objective import Objective
from mtl.losses.bce import BCE
from mtl.losses.pairs import TaskCounts
from mtl.models.cnn import small_cnn
from mtl.models.heads import LinearHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.members import WHOLE

TASKS, BATCH, SIDE, WARM_UP = 40, 32, 32, 3
# Their solvers run in a loop whose length the problem decides.
SOLVERS = (
    "mgda",
    "cagrad",
    "nash_mtl",
    "fairgrad",
    "upgrad",
    "dualproj",
    "gradvac",
    "pcgrad",
    "aligned_mtl",
    "imtl_g",
    "config",
    "pcd",
    "cr_mogm",
)
NEEDS_GRADIENTS = ("moco", "excess_mtl")  # at the level of parameters only


def make_model() -> MultiTaskModel:
    torch.manual_seed(0)
    trunk = small_cnn((3, SIDE, SIDE))
    model = MultiTaskModel(trunk, LinearHeads(trunk.width, TASKS), BCE(TASKS))
    return model.to(memory_format=torch.channels_last).train()


def make_batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        inputs=torch.randn(BATCH, 3, SIDE, SIDE, generator=rng).contiguous(memory_format=torch.channels_last),
        targets=torch.rand(BATCH, TASKS, generator=rng) < 0.3,
        mask=torch.ones(BATCH, TASKS, dtype=torch.bool),
        valid=torch.ones(BATCH, dtype=torch.bool),
        keys=torch.zeros(0, 2, dtype=torch.int32),
        draw_key=torch.tensor([1, 2], dtype=torch.int32),
        positives=torch.full((TASKS,), 10.0),
        negatives=torch.full((TASKS,), 22.0),
        progress=torch.zeros(()),
    )


class Steps:
    """Steps of one model on one batch, each a different way."""

    def __init__(self) -> None:
        self.model, self.batch = make_model(), make_batch()
        self.objective, self.sgd = Objective(Augmentation(flip=False), Normalise()), LocalSGD(learning_rate=1e-4)
        self.params: Params = dict(self.model.named_parameters())
        self.state, self.rate = self.sgd.init(self.params), torch.tensor(1e-4)

    def losses(self) -> Tensor:
        batch = self.batch
        counts = TaskCounts(batch.positives, batch.negatives, batch.progress)
        return self.objective.losses(self.model, batch.inputs, batch.targets, batch.mask, batch.valid, counts).tasks

    def move(self, grads: Params) -> None:
        self.sgd.step(self.params, grads, self.state, self.rate)

    def plain(self) -> None:
        grads = torch.autograd.grad(self.losses().sum(), list(self.params.values()))
        self.move(dict(zip(self.params, grads, strict=True)))

    def balanced(self, method: Balancer, level: str) -> Callable[[], None]:
        balance = make_balance(method, self.model, level=level, normalise="length", conflict=True)
        step = balance.step(self.model, self.objective, stacked=False)
        memory = balance.memory(self.model.params(), TASKS)

        def go() -> None:
            nonlocal memory
            found = step.gradients(self.params, memory, self.batch, {})
            self.move(found.grads)
            memory = step.observe(self.params, found.memory, self.batch)

        return go

    def torchjd(self, aggregator: aggregation.GramianWeightedAggregator, chunk: int | None) -> Callable[[], None]:
        def go() -> None:
            batch, model = self.batch, self.model
            features = model.trunk(batch.inputs)
            counts = TaskCounts(batch.positives, batch.negatives, batch.progress)
            terms = model.loss.terms(model.heads(features), counts)  # type: ignore[operator]
            tasks = self.objective.reduce(terms, batch.targets, batch.mask, batch.valid).tasks
            own = list(model.heads.parameters())
            mtl_backward(
                list(tasks.unbind()),
                features=features,
                tasks_params=[own] * TASKS,
                shared_params=list(model.trunk.parameters()),
                retain_graph=True,
                parallel_chunk_size=chunk,
            )
            jac_to_grad(list(model.trunk.parameters()), aggregator, optimize_gramian_computation=True)
            self.move({name: parameter.grad for name, parameter in self.params.items() if parameter.grad is not None})
            for parameter in self.params.values():
                parameter.grad = None

        return go


def medians(turns: int, sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Milliseconds of each side's step, over turns in which all have their go."""
    for side in sides.values():
        for _ in range(WARM_UP):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def method_of(name: str) -> Balancer:
    member = WHOLE["balancer"][name]
    kind = member[0] if isinstance(member, tuple) else member
    if kind is Fixed:
        return Fixed((1.0,) * TASKS)
    method: Balancer = CRMOGM(UPGrad()) if kind is CRMOGM else kind()
    return method.for_run(steps_per_round=8, num_rounds=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # of vmap, on what torchjd does
    steps = Steps()
    names = [name for name in WHOLE["balancer"] if name not in NEEDS_GRADIENTS]
    ratios = {}
    for name in names:
        # Each beside a plain sum of its own: the machine's speed drifts.
        times = medians(turns, {"plain": steps.plain, "balanced": steps.balanced(method_of(name), "representation")})
        ratios[name] = times["balanced"] / times["plain"]
        print(f"  {name:<12} {times['balanced']:7.2f} ms   {ratios[name]:.2f} of the plain sum")
    figures = {
        "gramian_vs_sum": max(value for name, value in ratios.items() if name not in SOLVERS and name != "famo"),
        "solver_vs_sum": max(value for name, value in ratios.items() if name in SOLVERS),
        "famo_vs_sum": ratios["famo"],
    }
    for name, method, theirs in (("upgrad", UPGrad(), aggregation.UPGrad()), ("mgda", MGDA(), aggregation.MGDA())):
        pair = medians(
            turns,
            {
                "representation": steps.balanced(method, "representation"),
                "parameters": steps.balanced(method, "parameters"),
                **{f"torchjd, chunks of {chunk or 'all'}": steps.torchjd(theirs, chunk) for chunk in (None, 8, 1)},
            },
        )
        best = min(value for side, value in pair.items() if side.startswith("torchjd"))
        print(f"  {name}: " + ", ".join(f"{side} {value:.1f} ms" for side, value in pair.items()))
        figures[f"vs_torchjd_{name}"] = best / pair["representation"]
        figures[f"parameters_vs_torchjd_{name}"] = pair["parameters"] / best
    figures["vs_torchjd"] = min(value for key, value in figures.items() if key.startswith("vs_torchjd_"))
    figures["parameters_vs_torchjd"] = max(value for key, value in figures.items() if key.startswith("parameters_vs_torchjd_"))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
