"""Several modules of one kind, each with its own parameters: one call runs them all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl.base.seeding import split_key
from mtl.base.types import Params
from mtl.models.dropout import KeyedDropout


class Branches(nn.Module):
    """Several modules that differ in nothing but their parameters, as one module.

    A parameter of `module` has those of all branches one after the other along its first axis (not on an axis of their own, which
    would make filters of five dimensions, for which torch has no channels-last format).
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.number = len(modules)
        self.module = modules[0]
        self.shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        params_of_modules = [dict(module.named_parameters()) for module in modules]
        for name in self.shapes:
            path, _, last = name.rpartition(".")
            stacked = torch.stack([params[name].detach() for params in params_of_modules])
            setattr(self.module.get_submodule(path), last, nn.Parameter(stacked.flatten(0, 1) if stacked.ndim > 1 else stacked))

    def params_of_branches(self) -> Params:
        """The parameters of `module` by name, with the branches as their first axis."""
        params = dict(self.module.named_parameters())
        return {name: params[name].view(self.number, *shape) for name, shape in self.shapes.items()}

    def forward(self, inputs: Tensor, *, same: bool = False) -> Tensor:
        """[branches, B, ...] or, with `same`, [B, ...] for all -> [branches, B, ...]."""
        return run_branches(self.module, self.number, self.params_of_branches(), inputs, same=same)


def run_branches(module: nn.Module, number: int, params: Params, inputs: Tensor, *, same: bool) -> Tensor:
    """Run `module` once for each branch.

    Each branch has its own dropout masks; all other buffers are the same for all.

    Args:
        module: the module, whose own parameters are not read.
        number: of branches.
        params: parameters of `module`, with the branches as their first axis.
        inputs: [branches, B, ...] or, with `same`, [B, ...] for all.
        same: whether all branches have the same inputs.

    Returns:
        [branches, B, ...].
    """
    stacked = dict(params)
    for name, layer in module.named_modules():
        if isinstance(layer, KeyedDropout):
            places = torch.arange(number, dtype=torch.int32, device=layer.key.device)
            stacked[f"{name}.key" if name else "key"] = split_key(layer.key, places)
    if same and not stacked:
        outputs: Tensor = module(inputs)
        return outputs.expand(number, *outputs.shape)

    def run(branch: Params, inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(module, branch, (inputs,))
        return outputs

    if torch.compiler.is_exporting():
        # An export through vmap would fix the number of images in norms.
        each = [run({name: value[b] for name, value in stacked.items()}, inputs if same else inputs[b]) for b in range(number)]
        return torch.stack(each)
    branches: Tensor = vmap(run, in_dims=(0, None if same else 0))(stacked, inputs)
    return branches
