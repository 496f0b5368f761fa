"""Networks whose weights are shared out over the processes (FSDP2, HSDP), each network by itself.

A process holds its rows (dim 0) of every weight, gradient, average and optimizer state; a block's weights are gathered
for its own forward and backward alone. It is torch's `fully_shard` throughout: Accelerate's takes one model, and none
without GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from distill.denoiser import Denoiser
from distill.discriminator import Critic
from distill.lora import share_parameters
from trainers.recipe.run import Run

KINDS_OF_BLOCKS = ("_no_split_modules", "_repeated_blocks")
Module = TypeVar("Module", bound=nn.Module)
Sources = Mapping[nn.Parameter, nn.Parameter]
"""What has become of a network's parameters."""


@dataclass(frozen=True)
class Layout:
    """The processes of `mesh` share out a network, those along its dimension "replica" each the same.

    Weights are gathered in the dtype `compute`, if given; masters and sums of gradients keep their own precision. By
    `offload` a process's rows, their gradients and what follows from them are in host memory.
    """

    mesh: DeviceMesh
    reshard: bool = True  # a block's weights are freed after its forward; else a network's stay through its update
    compute: torch.dtype | None = None
    offload: bool = False

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """Inputs stay as they are: autocast casts them, and preconditioning needs them exact."""
        reduce = None if self.compute is None else torch.float32
        return MixedPrecisionPolicy(param_dtype=self.compute, reduce_dtype=reduce, cast_forward_inputs=False)


def layouts_of(run: Run, accelerator: Accelerator) -> dict[str, Layout]:
    """How `run` shares out generator, fake and teacher, those left out that are whole in each process. Collective."""
    settings, world, device = run.sharding, accelerator.num_processes, accelerator.device.type
    if settings is None or (world == 1 and settings.offload is None):
        return {}
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)
    shape, names = [world], ["shard"]
    if settings.replicas > 1:
        shape, names = [settings.replicas, world // settings.replicas], ["replica", "shard"]
    mesh = init_device_mesh(device, tuple(shape), mesh_dim_names=tuple(names))
    compute = torch.bfloat16 if run.precision == "bfloat16" else None
    # The teacher is stored in that. With adapters a player holds the teacher's weights, where those are.
    on_teacher = {"teacher": True, "generator": run.generator.lora is not None, "fake": run.fake.lora is not None}
    found = {}
    for name, teachers in on_teacher.items():
        offload = settings.offload == "all" or (settings.offload == "teacher" and teachers)
        if getattr(settings, name) and (world > 1 or offload):
            dtype = None if name == "teacher" else compute
            found[name] = Layout(mesh, settings.reshard_after_forward, dtype, offload)
    return found


def alias_parameters(module: Module) -> Module:
    """A copy of `module` with parameters of its own over the same memory, for `shard` to take its rows from."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()})


def shard(
    network: nn.Module, layout: Layout, shared: Sources | None = None, dtype: torch.dtype | None = None
) -> Sources:
    """Leave this process its rows of every weight of `network`, in place; stored as `dtype`, if given.

    Block by block, each is moved to the device and cut before the next: what is a map of a file on disk is never in
    memory as a whole. Parameters that are keys of `shared` become its values, which several networks then hold.
    Returns what each parameter has become. Copies are made by `copy_sharded_like`.
    """
    before, shared = dict(network.named_parameters()), shared or {}
    found = {name: shared[parameter] for name, parameter in before.items() if parameter in shared}
    blank = _blank(network, shared)
    _put(network, {name: _meta(p) for name, p in found.items() if isinstance(p, DTensor)})
    _cut(network, layout, {p for p in found.values() if not isinstance(p, DTensor)}, dtype)
    _put(network, found)
    _begin(network)
    network.layout, network.blank = layout, lambda: copy.deepcopy(blank)  # type: ignore[assignment]  # no child of it
    return dict(zip(before.values(), network.parameters(), strict=True))


def copy_sharded_like(network: Module, frozen_names: Container[str] = ()) -> Module:
    """Return a copy of `network` with its layout; it shares the parameters of `frozen_names` and copies buffers."""
    if not is_sharded(network):
        return share_parameters(network, frozen_names)
    other, layout = network.blank(), cast(Layout, network.layout)  # type: ignore[operator]
    own = dict(network.named_parameters())
    _cut(other, layout, {p for name, p in other.named_parameters() if not isinstance(own[name], DTensor)})
    copies = {name: nn.Parameter(p.detach().clone(), False) for name, p in own.items() if name not in frozen_names}
    _put(other, {name: copies.get(name, parameter) for name, parameter in own.items()})
    for target, source in zip(other.buffers(), network.buffers(), strict=True):
        target.copy_(source)
    _begin(other)
    return cast(Module, other)


def units(network: nn.Module) -> list[nn.Module]:
    """What is gathered at once, inner ones first: a denoiser's blocks, its rest, each part beside it.

    A forward that ends at a tap would leave a block around it half done, so that is none.
    """
    taps = {module.denoiser.module_at(module.tap) for module in network.modules() if isinstance(module, Critic)}
    found = list(_units(network))
    return [unit for unit in found if isinstance(unit, Denoiser) or not taps & set(unit.modules()) - {unit}]


def is_sharded(network: nn.Module) -> bool:
    """Whether its forward is collective."""
    return any(isinstance(module, FSDPModule) for module in network.modules())


def offloaded(network: nn.Module | None) -> bool:
    """Whether what processes hold of it is in host memory."""
    layout = getattr(network, "layout", None)
    return layout is not None and layout.offload


def reshard(network: nn.Module, during: bool = True) -> None:
    """Free what is still gathered of `network`, so that its parameters are the shards again; and during each backward
    from now on, unless the layout keeps them for that long."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.set_reshard_after_backward(during or cast(Layout, network.layout).reshard, recurse=False)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(rows: Tensor, like: Tensor) -> Tensor:
    """This process's `rows` of a tensor that is sharded as `like` is, and where that is."""
    if not isinstance(like, DTensor):
        return rows.to(like.device)
    shape = torch.Size([len(like), *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements  # to whose device it goes first
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride).to(like.device)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor, of sharded ones on the host of the first process alone; collective where there are some."""
    first, found = not dist.is_initialized() or dist.get_rank() == 0, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            whole = cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
            tensor = whole.cpu() if first else whole.new_empty(0)
        found[name] = tensor
    return found


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients of a sharded network together, on the device; collective.

    Gradients that are whole on every rank, those of scalars, are averaged over the ranks first, in place.
    """
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    rows = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not rows:
        return get_total_norm(whole)
    if whole:
        flat = torch.cat([gradient.flatten() for gradient in whole]) / dist.get_world_size()
        dist.all_reduce(flat)  # one message for all scalars
        for gradient, mean in zip(whole, flat.split([gradient.numel() for gradient in whole]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    norm = get_total_norm(whole)
    square = get_total_norm([local(gradient) for gradient in rows]).double() ** 2
    square = square.to(rows[0].device_mesh.device_type)  # from the host, whose tensors NCCL does not send
    dist.all_reduce(square, group=rows[0].device_mesh.get_group("shard"))  # replicas hold the same rows
    return (square + norm.double() ** 2).sqrt().to(rows[0].dtype)


@torch.no_grad()
def clip(gradients: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Scale gradients of this total `norm` down to `most`, in place."""
    scale, parts = (most / (norm + 1e-6)).clamp(max=1), [local(gradient) for gradient in gradients]
    for device in {part.device for part in parts}:
        torch._foreach_mul_([part for part in parts if part.device == device], scale.to(device))


def _blank(network: Module, shared: Sources) -> Module:
    """A copy whose parameters have shapes alone."""
    return copy.deepcopy(network, {id(p): _meta(shared.get(p, p)) for p in network.parameters()})


def _meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _put(network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, own = name.rpartition(".")
        network.get_submodule(owner)._parameters[own] = parameter


def _cut(network: nn.Module, layout: Layout, whole: set[nn.Parameter], dtype: torch.dtype | None = None) -> None:
    autocast = {part for module in network.modules() if isinstance(module, Denoiser) for part in module.modules()}
    for unit in units(network):
        own = [p for p in unit.parameters() if p not in whole and not isinstance(p, DTensor)]
        scalars = {parameter for parameter in own if not parameter.ndim}  # which cannot be cut
        for parameter in own if dtype else ():
            parameter.data = parameter.data.to(dtype)
        for parameter in scalars:  # an alias must not train another's
            parameter.data = parameter.data.to(layout.mesh.device_type, copy=True)
        fully_shard(
            unit,
            mesh=layout.mesh,
            reshard_after_forward=None if layout.reshard else False,  # None: all but what the outermost holds itself
            mp_policy=layout.policy if unit in autocast else MixedPrecisionPolicy(),
            offload_policy=CPUOffloadPolicy(layout.mesh.device_type == "cuda") if layout.offload else OffloadPolicy(),
            ignored_params=whole | scalars,
        )
        for parameter in set(own) - scalars:  # another network may hold it still
            parameter.data = parameter.data.new_empty(0)
        if isinstance(unit, Denoiser):
            for method in ("features", "with_features"):
                register_fsdp_forward_method(unit, method)


def _units(network: nn.Module) -> Iterator[nn.Module]:
    if isinstance(network, Denoiser):
        yield from _blocks(network)
    elif any(isinstance(module, Denoiser) for module in network.modules()):
        for child in network.children():
            yield from _units(child)
        if not network._parameters:
            return
    if any(True for _ in network.parameters()):
        yield network


def _blocks(denoiser: Denoiser) -> list[nn.Module]:
    """The modules that the network's author names as blocks (as diffusers' do), or whose class is called some Block, or
    the members of its lists of modules; inner ones first."""
    modules = list(denoiser.modules())
    names = {name for m in modules for kind in KINDS_OF_BLOCKS for name in getattr(m, kind, None) or ()}
    found = [module for module in modules if type(module).__name__ in names]
    found = found or list(_outermost(denoiser, lambda module: "Block" in type(module).__name__))
    lists = _outermost(denoiser, lambda module: isinstance(module, nn.ModuleList | nn.ModuleDict))
    found = found or [member for one in lists for member in one.children()]
    return [block for block in reversed(found) if any(True for _ in block.parameters())]


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)


def _begin(network: nn.Module) -> None:
    """Let FSDP2 find its outermost modules and the precision of gradients now, while what trains requires some."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            state._lazy_init()
            if state._is_root:
                cast(nn.Module, module).register_forward_hook(_forget)


def _forget(module: nn.Module, inputs: object, output: object) -> None:
    """A forward without graph is over: no backward comes that would free what it gathered and noted."""
    if not torch.is_grad_enabled():
        cast(FSDPModule, module).reset_iter_state()
