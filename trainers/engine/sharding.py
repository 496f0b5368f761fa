"""Networks whose weights are sharded over the processes (FSDP2, HSDP), each network by itself.

Each process holds its rows (dimension 0) of every weight, gradient, average and optimizer state. The weights of a block
are gathered for the forward and backward of this block alone. The code calls torch's `fully_shard` and not Accelerate's
wrapper of it, which takes a single model and needs GPUs.
"""

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import HashStore, fsdp  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from distill.denoiser import Denoiser
from distill.discriminator import Critic
from distill.lora import share_parameters
from trainers.recipe.run import Run

BLOCK_ATTRIBUTES = ("_no_split_modules", "_repeated_blocks")  # where diffusers and transformers name block classes
Module = TypeVar("Module", bound=nn.Module)
ParameterMap = Mapping[nn.Parameter, nn.Parameter]
"""{parameter before `shard`: the parameter that has taken its place}."""


@dataclass(frozen=True)
class Layout:
    """The way in which the weights of one network are divided over the processes.

    Attributes:
        mesh: The processes. Its dimension "shard" divides the rows. Processes along "replica" hold the same rows.
        reshard: Whether a block's weights are freed after its forward. Otherwise they stay gathered for a whole update.
        compute: The dtype in which weights are gathered. None for their own. The stored weights and the sums of
            gradients keep their own precision.
        offload: Whether this process's rows, their gradients and their optimizer state are in host memory.
    """

    mesh: DeviceMesh
    reshard: bool = True
    compute: torch.dtype | None = None
    offload: bool = False

    @property
    def policy(self) -> fsdp.MixedPrecisionPolicy:
        """The dtypes in which FSDP2 gathers weights and sums gradients.

        Inputs are not cast: autocast casts them where it should, and preconditioning needs them exact.
        """
        reduce = None if self.compute is None else torch.float32
        return fsdp.MixedPrecisionPolicy(param_dtype=self.compute, reduce_dtype=reduce, cast_forward_inputs=False)


def layouts_of(run: Run, accelerator: Accelerator) -> dict[str, Layout]:
    """Return the layouts of generator, fake and teacher, by name. Collective.

    A network that is replicated on every process has no layout.
    """
    settings, world, device = run.sharding, accelerator.num_processes, accelerator.device.type
    if settings is None or (world == 1 and settings.offload is None):
        return {}
    if not dist.is_initialized():  # one process that offloads: a mesh needs a process group all the same
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)
    replicas = {"replica": settings.replicas} if settings.replicas > 1 else {}
    sizes = {**replicas, "shard": world // settings.replicas}
    mesh = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    compute = torch.bfloat16 if run.precision == "bfloat16" else None
    # A player with adapters holds the teacher's own weights, which are where the teacher's are.
    holds_teacher = {"teacher": True, "generator": run.generator.lora is not None, "fake": run.fake.lora is not None}
    layouts = {}
    for name, on_teacher in holds_teacher.items():
        offload = settings.offload == "all" or (settings.offload == "teacher" and on_teacher)
        if getattr(settings, name) and (world > 1 or offload):
            dtype = None if name == "teacher" else compute  # the teacher is stored in the dtype of compute already
            layouts[name] = Layout(mesh, settings.reshard_after_forward, dtype, offload)
    return layouts


def alias_parameters(module: Module) -> Module:
    """Return a copy of `module` with parameters of its own over the same memory.

    `shard` cuts the copy without touching the original, and no second copy of the weights is ever in memory.
    """
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()})


def shard(
    network: nn.Module, layout: Layout, shared: ParameterMap | None = None, dtype: torch.dtype | None = None
) -> ParameterMap:
    """Shard a network in place, so that this process keeps its rows of every weight. Collective.

    Blocks are moved to the device and cut one after the other, so that weights that are mapped from a file are never in
    memory all at once. A sharded network is copied by `copy_sharded_like`.

    Args:
        network: The network, with all its weights in every process.
        layout: How the weights are divided.
        shared: The map of another network that `shard` returned. The parameters that are its keys become its values,
            which both networks then hold.
        dtype: The dtype in which the weights are stored. None for their own.

    Returns:
        For each parameter that the network had, the parameter in its place.
    """
    before, shared = dict(network.named_parameters()), shared or {}
    replaced = {name: shared[parameter] for name, parameter in before.items() if parameter in shared}
    template = copy.deepcopy(network, {id(p): _meta(shared.get(p, p)) for p in network.parameters()})
    # `fully_shard` does not take parameters that are sharded already. It gets stand-ins without memory for them, and
    # FSDP2 picks up the tensors that then take their places when it initialises.
    _set_parameters(network, {name: _meta(p) for name, p in replaced.items() if isinstance(p, DTensor)})
    _shard_units(network, layout, {p for p in replaced.values() if not isinstance(p, DTensor)}, dtype)
    _set_parameters(network, replaced)
    _initialise_fsdp(network)
    network.layout = layout  # type: ignore[assignment]
    # A function, since a module as an attribute would become a submodule of the network.
    network.make_template = lambda: copy.deepcopy(template)  # type: ignore[assignment]
    return dict(zip(before.values(), network.parameters(), strict=True))


def copy_sharded_like(network: Module, frozen_names: Container[str] = ()) -> Module:
    """Return a copy of a network in the same layout. Collective where the network is sharded.

    Args:
        network: The network, sharded or not.
        frozen_names: The parameters that the copy shares with the network. The other parameters, and all buffers, are
            copied.
    """
    if not is_sharded(network):
        return share_parameters(network, frozen_names)
    # `deepcopy` cannot copy FSDP2's state. The copy begins as a network on the meta device, which is sharded and then
    # gets the rows of this rank.
    other, layout = network.make_template(), cast(Layout, network.layout)  # type: ignore[operator]
    own = dict(network.named_parameters())
    _shard_units(other, layout, {p for name, p in other.named_parameters() if not isinstance(own[name], DTensor)})
    copies = {name: nn.Parameter(p.detach().clone(), False) for name, p in own.items() if name not in frozen_names}
    _set_parameters(other, {name: copies.get(name, parameter) for name, parameter in own.items()})
    for target, source in zip(other.buffers(), network.buffers(), strict=True):
        target.copy_(source)
    _initialise_fsdp(other)
    return cast(Module, other)


def sharding_units(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are gathered together, inner ones first.

    These are the blocks of a denoiser, the denoiser for the rest of its weights, and each part beside the denoiser. A
    block that has a discriminator's tap inside is no unit: a forward that ends at the tap would never end the block,
    whose weights would stay gathered.
    """
    critics = [module for module in network.modules() if isinstance(module, Critic)]
    taps = {critic.denoiser.module_at(tap) for critic in critics for tap in critic.taps}
    found = list(_units(network))
    return [unit for unit in found if isinstance(unit, Denoiser) or not taps & set(unit.modules()) - {unit}]


def is_sharded(network: nn.Module) -> bool:
    """Return whether a network is sharded. The forward of such a network is collective."""
    return any(isinstance(module, fsdp.FSDPModule) for module in network.modules())


def is_offloaded(network: nn.Module | None) -> bool:
    """Return whether the rows that processes hold of a network are in host memory."""
    layout = getattr(network, "layout", None)
    return layout is not None and layout.offload


def reshard(network: nn.Module, in_backward: bool = True) -> None:
    """Free the gathered weights of a network, so that its parameters are the shards again.

    Args:
        network: A sharded network.
        in_backward: Whether each later backward frees them too. If False, a backward does so where the layout reshards.
    """
    for module in network.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
            module.set_reshard_after_backward(in_backward or cast(Layout, network.layout).reshard, recurse=False)


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that this process holds. It holds all of them if the tensor is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(rows: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which `rows` are this process's, sharded like `like` and on the device of `like`.

    Args:
        rows: [R, ...], as many rows as this process holds of `like`.
        like: The tensor whose sharding to take. If it is not sharded, `rows` are the whole tensor.
    """
    if not isinstance(like, DTensor):
        return rows.to(like.device)
    shape = torch.Size([len(like), *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements
    # `from_local` moves the rows to the mesh's device; `.to` takes offloaded ones back to the host. Without `run_check`
    # it sends nothing.
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride).to(like.device)


def gather_to_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors on the host of the main process. Collective where some tensor is sharded.

    Returns:
        {name: all rows}. On the other processes, a tensor that is sharded becomes an empty one.
    """
    main, found = not dist.is_initialized() or dist.get_rank() == 0, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            # On the mesh's device, since NCCL does not send from the host. One tensor at a time, since every rank holds
            # all rows of it for a moment.
            full = cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
            tensor = full.cpu() if main else full.new_empty(0)
        found[name] = tensor
    return found


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients of a sharded network, as a scalar on the device. Collective.

    Scalar weights are replicated, and FSDP2 does not reduce their gradients. This function averages these gradients
    over the ranks first, in place.

    Args:
        gradients: The gradients of one player, in the same order on every rank.
    """
    replicated = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return get_total_norm(replicated)
    if replicated:
        flat = torch.cat([gradient.flatten() for gradient in replicated]) / dist.get_world_size()
        dist.all_reduce(flat)  # one message for all scalars
        for gradient, mean in zip(replicated, flat.split([gradient.numel() for gradient in replicated]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    norm = get_total_norm(replicated)
    # Squares are summed in float64, so that the sum over ranks loses no more than the norm of one rank does.
    square = get_total_norm([local(gradient) for gradient in sharded]).double() ** 2
    square = square.to(sharded[0].device_mesh.device_type)  # offloaded gradients: NCCL does not send from the host
    # Over the shards alone: replicas hold the same rows, which would count twice.
    dist.all_reduce(square, group=sharded[0].device_mesh.get_group("shard"))
    return (square + norm.double() ** 2).sqrt().to(sharded[0].dtype)


@torch.no_grad()
def clip(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients, whose total norm is `norm`, down to at most `max_norm`, in place."""
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)  # 1e-6 as in torch's clip_grad_norm_: no division by 0
    parts = [local(gradient) for gradient in gradients]
    # Some weights may be offloaded: one launch for each device. The factor is never read by the host.
    for device in {part.device for part in parts}:
        torch._foreach_mul_([part for part in parts if part.device == device], scale.to(device))


def _meta(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter like this one on the meta device, where it has no memory."""
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _set_parameters(network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Replace parameters by their dotted names, in place."""
    for name, parameter in parameters.items():
        owner, _, own = name.rpartition(".")
        network.get_submodule(owner)._parameters[own] = parameter  # in place, so that the order of the parameters stays


def _shard_units(
    network: nn.Module, layout: Layout, replicated: set[nn.Parameter], dtype: torch.dtype | None = None
) -> None:
    """Shard a network unit by unit, without the parameters of `replicated`."""
    denoisers = [module for module in network.modules() if isinstance(module, Denoiser)]
    # A network of the user's own may use weights where autocast does not cast them. These are gathered as they are.
    autocast = {part for each in denoisers if each.network.casts_weights for part in each.modules()}
    offload = fsdp.CPUOffloadPolicy(layout.mesh.device_type == "cuda") if layout.offload else fsdp.OffloadPolicy()
    for unit in sharding_units(network):
        own = [p for p in unit.parameters() if p not in replicated and not isinstance(p, DTensor)]
        scalars = {parameter for parameter in own if not parameter.ndim}  # a scalar has no rows to divide
        for parameter in own if dtype else ():
            parameter.data = parameter.data.to(dtype)
        for parameter in scalars:  # copied, since it may be an alias of another network's
            parameter.data = parameter.data.to(layout.mesh.device_type, copy=True)
        fsdp.fully_shard(
            unit,
            mesh=layout.mesh,
            # None reshards every unit but the outermost, whose weights the backward needs at once.
            reshard_after_forward=None if layout.reshard else False,
            mp_policy=layout.policy if unit in autocast else fsdp.MixedPrecisionPolicy(),
            offload_policy=offload,
            ignored_params=replicated | scalars,
        )
        # The unit holds rows of its own now. Networks that share these parameters still name the uncut tensors, which
        # are emptied so that their memory is freed at once.
        for parameter in set(own) - scalars:
            parameter.data = parameter.data.new_empty(0)
        if isinstance(unit, Denoiser):  # a call of these methods has to gather weights as `forward` does
            for method in ("features", "with_features"):
                fsdp.register_fsdp_forward_method(unit, method)


def _units(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the units of a network, inner ones first, those around a tap included."""
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
    """Return the blocks of a network, inner ones first.

    These are the modules that the network's author names as blocks, as diffusers' models do. Without such names they
    are the modules whose class has "Block" in its name, and without those the members of its lists of modules.
    """
    modules = list(denoiser.modules())
    names = {name for m in modules for kind in BLOCK_ATTRIBUTES for name in getattr(m, kind, None) or ()}
    found = [module for module in modules if type(module).__name__ in names]
    found = found or list(_outermost(denoiser, lambda module: "Block" in type(module).__name__))
    lists = _outermost(denoiser, lambda module: isinstance(module, nn.ModuleList | nn.ModuleDict))
    found = found or [member for one in lists for member in one.children()]
    return [block for block in reversed(found) if any(True for _ in block.parameters())]


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """Yield the wanted modules that lie in no other wanted module."""
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)


def _initialise_fsdp(network: nn.Module) -> None:
    """Run the lazy initialisation of FSDP2 now.

    By itself FSDP2 initialises in the first forward. A player may be frozen then, and FSDP2 would take no dtype for the
    reduction of its gradients.
    """
    for module in network.modules():
        if isinstance(module, fsdp.FSDPModule):
            # Private API: torch offers no other way to initialise before a forward, nor to find the outermost modules.
            state = module._get_fsdp_state()
            state._lazy_init()
            if state._is_root:
                cast(nn.Module, module).register_forward_hook(_reset_after_forward)


def _reset_after_forward(module: nn.Module, inputs: object, output: object) -> None:
    """Free the weights that a forward without a graph gathered: no backward follows that would free them."""
    if not torch.is_grad_enabled():
        cast(fsdp.FSDPModule, module).reset_iter_state()
