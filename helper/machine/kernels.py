"""How the arithmetic is carried out: compiled or not, in which memory order, by which optimiser kernel.

None of it changes what is computed beyond rounding, so it is no part of a run's identity: a run may be continued with
other settings, and checkpoints know nothing of it. The exception is a folded teacher, which stands in the run's name.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.log import log
from core.option import Config, option
from core.protocols import Features, UserError
from core.taps import TappedNet

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


PARTS = ("student", "teacher", "loss")


LONG_RUN = 5000  # steps from which compiling, a minute or two, pays for itself on a GPU


EXACT_CASTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # layers whose weights autocast casts at every call


@dataclass(frozen=True)
class KernelConfig(Config):
    heading = "speed"

    compile: str = option(
        "auto",
        "torch.compile mode; auto: default in long runs on CUDA, none elsewhere (see docs/speed.md)",
        choices=("auto", "none", *MODES),
    )
    compile_parts: list[str] | None = option(
        None, "what is compiled (default: all on CUDA, the teacher on a CPU)", choices=PARTS
    )
    channels_last: str = option("auto", "memory order of images and weights; auto: on", choices=("auto", "on", "off"))
    fused_optimizer: str = option("auto", "SGD as one kernel; auto: on", choices=("auto", "on", "off"))


@dataclass(frozen=True)
class Kernels:
    """compile: a mode of torch.compile, None for none. parts: what is compiled, of PARTS.

    strict: a compiler that fails is an error; otherwise the part runs uncompiled, and says so.
    backend: of torch.compile.
    """

    compile: str | None = None
    parts: tuple[str, ...] = ()
    channels_last: bool = True
    fused_optimizer: bool = True
    fold_teacher: bool = False
    strict: bool = True
    backend: str = "inductor"

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs replay the compiled parts, into memory that the next replay overwrites."""
        return self.compile in ("reduce-overhead", "max-autotune") and bool(self.parts)

    def described(self) -> dict[str, Any]:
        return asdict(self)


PLAIN = Kernels()


@dataclass(frozen=True)
class Hardware:
    """What a session computes on. autocast: dtype of the forward pass, None for float32."""

    device: torch.device
    autocast: torch.dtype | None
    kernels: Kernels


def pick_kernels(
    cfg: KernelConfig, device: torch.device, steps: int, fold_teacher: bool = False
) -> tuple[Kernels, list[str]]:
    """(kernels, notices) of the settings.

    steps: of the whole run. auto: channels_last and the fused optimiser everywhere; torch.compile on CUDA, in runs long
    enough to repay it. Raises UserError where a compiler that was asked for does not work.
    """
    asked, notices = cfg.compile, []
    mode = None if asked == "none" else asked
    if asked == "auto":
        mode = "default" if device.type == "cuda" and steps >= LONG_RUN else None
    if mode is not None and (reason := compiler_fault(device)) is not None:
        if asked != "auto":
            raise UserError(
                f"--compile {mode}: torch.compile does not work here ({reason}): install a C++ compiler, or pass "
                "--compile none"
            )
        notices.append(f"nothing is compiled: torch.compile does not work here ({reason})")
        mode = None
    parts = tuple(cfg.compile_parts or (PARTS if device.type == "cuda" else ("teacher",)))
    kernels = Kernels(
        mode,
        parts if mode else (),
        cfg.channels_last != "off",
        cfg.fused_optimizer != "off",
        fold_teacher,
        strict=asked != "auto",
    )
    return kernels, notices


def _twice(x: Tensor) -> Tensor:
    return x * 2 + 1


def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile cannot be used on a device, in a few words; None if it can. Compiles two operations to see."""
    return _compiler_fault(str(device))


@functools.cache
def _compiler_fault(device: str) -> str | None:
    try:
        with torch.no_grad():
            torch.compile(_twice, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # whatever the tool chain raises: the answer is the same
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".:")


class Compiled:
    """A function compiled for batches of one size; the other sizes (the end of an epoch) run it as it is.

    full: that size, None for any. freezing: weights are constants (a teacher), so that batch norm is folded into
    convolutions and weights are laid out for the processor once; works without gradient only.
    """

    def __init__(self, function: Callable[..., Any], kernels: Kernels, full: int | None, freezing: bool = False):
        import torch._dynamo

        # the code of one forward serves every network of the process: trials, lanes, stages
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self.function, self.kernels, self.full = function, kernels, full
        settings: dict[str, Any] = {"backend": kernels.backend}
        if kernels.backend == "inductor":
            import torch._inductor

            mode = None if kernels.compile == "default" else kernels.compile
            options = dict(torch._inductor.list_mode_options(mode)) if mode else {}
            settings["options"] = options | {"freezing": True} if freezing else options
        self.fast: Callable[..., Any] | None = torch.compile(function, dynamic=False, **settings)
        # the option above reaches the back end alone; the tracer, which must leave weights constant, reads the global
        self.to_freeze = freezing and kernels.backend == "inductor"

    def __call__(self, size: int, *args: Any) -> Any:
        if self.fast is None or (self.full is not None and size != self.full):
            return self.function(*args)
        from torch._dynamo.exc import TorchDynamoException

        try:
            if not self.to_freeze:
                return self.fast(*args)
            with torch._inductor.config.patch(freezing=True):
                answer = self.fast(*args)
            self.to_freeze = False  # at the first call only: to patch takes as long as a small step
            return answer
        except TorchDynamoException as error:
            if self.kernels.strict:
                raise UserError(
                    f"--compile {self.kernels.compile}: the compiler failed ({_first_line(error)}): pass --compile none"
                ) from error
            log.info("a part of the step is not compiled: %s", _first_line(error))
            self.fast = None
            return self.function(*args)


def maybe_compiled(
    part: str, function: Callable[..., Any], kernels: Kernels, full: int | None, freezing: bool = False
) -> Callable[..., Any]:
    """A callable of (batch size, *arguments of function)."""
    if kernels.compile is not None and part in kernels.parts:
        return Compiled(function, kernels, full, freezing)
    return lambda size, *args: function(*args)


def begin_step(kernels: Kernels) -> None:
    """What the last step's graphs have written is no longer needed."""
    if kernels.graphs:
        torch.compiler.cudagraph_mark_step_begin()


def private_copy(net: TappedNet) -> TappedNet:
    """The same network with weights of its own; hooks of other wrappers of the model are left behind."""
    model = copy.deepcopy(net.model)
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if isinstance(hook, functools.partial) and getattr(hook.func, "__func__", None) is TappedNet._keep:
                del module._forward_hooks[number]
    device = next(net.parameters()).device
    return TappedNet(model, net.spec, net.want).to(device).eval().requires_grad_(False)


def _agree(a: Features, b: Features, tolerance: float) -> bool:
    if tolerance == 0:
        return all(torch.equal(a[k], b[k]) for k in a)
    return all(bool((a[k] - b[k]).abs().max() <= tolerance * b[k].abs().max()) for k in a)


@torch.no_grad()
def with_cast_weights(net: TappedNet, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TappedNet:
    """A copy whose weights are in the dtype that autocast would cast them to, at every call; called under autocast.

    Bit-identical, which is tried on `inputs`; a network that reads its weights in another way is returned as it is.
    """
    cast = private_copy(net)
    for module in cast.model.modules():
        if type(module) in EXACT_CASTS:  # a subclass may do something else with its weights
            module.to(dtype)
    try:
        return cast if _agree(net(inputs), cast(inputs), 0) else net
    except RuntimeError:  # two dtypes met where autocast does not reach
        return net


@torch.no_grad()
def folded(net: TappedNet, inputs: Mapping[str, Tensor]) -> TappedNet:
    """A copy with every batch norm that directly follows a convolution folded into it; in float32 and eval mode.

    Pairs are found by watching one forward pass on the first samples of `inputs`, so no network is known by name. A
    pair is folded only if every feature stays within 1e-3 of its largest value. UserError where there is no such pair.
    """
    inputs = {k: x[:2] for k, x in inputs.items()}
    with torch.autocast(next(net.parameters()).device.type, enabled=False):
        reference, pairs = net(inputs), _conv_norm_pairs(net, inputs)
        copied = _with_pairs_folded(private_copy(net), pairs)
        if not _agree(copied(inputs), reference, 1e-3):  # an output that is read twice: keep the pairs that may go
            kept: list[tuple[str, str]] = []
            for pair in pairs:
                if _agree(_with_pairs_folded(private_copy(net), [*kept, pair])(inputs), reference, 1e-3):
                    kept.append(pair)
            copied, pairs = _with_pairs_folded(private_copy(net), kept), kept
    if not pairs:
        raise UserError(f"--fold_teacher: {net.spec.name} has no batch norm that can be folded: leave the flag out")
    return copied


def _conv_norm_pairs(net: TappedNet, inputs: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Module paths (convolution, batch norm that reads its output); both run once, and neither is tapped."""
    made: dict[int, tuple[str, Tensor]] = {}  # id of an output -> who made it; the tensor keeps the id its own
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (name, output)
        elif id(args[0]) in made:
            pairs.append((made[id(args[0])][0], name))

    watched = [(n, m) for n, m in net.model.named_modules() if type(m) in (nn.Conv2d, nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(functools.partial(watch, n)) for n, m in watched]
    net(inputs)
    for hook in hooks:
        hook.remove()
    tapped = {net.spec.taps[name].module for name in net.want}
    return [(a, b) for a, b in pairs if calls[a] == calls[b] == 1 and not tapped & {a, b}]


def _with_pairs_folded(net: TappedNet, pairs: Sequence[tuple[str, str]]) -> TappedNet:
    for conv, norm in pairs:
        pair: Any = (net.model.get_submodule(conv), net.model.get_submodule(norm))
        fused = fuse_conv_bn_eval(*pair)
        net.model.set_submodule(conv, fused)
        net.model.set_submodule(norm, nn.Identity())
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


def tune_allocator() -> None:
    """Let glibc keep the memory that tensors give back: a step then faults no page it has touched before.

    Blocks up to 32 MB (glibc's limit) come from the heap, which is never trimmed. No effect elsewhere.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 2**31 - 1)
