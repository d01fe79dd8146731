"""How the arithmetic is carried out: compilation, memory order, optimiser kernel.

These settings change speed, not results (up to rounding), so they are not part of a run's identity: a run may be
resumed with other settings, and checkpoints do not record them. The exception is a folded teacher, which is in the
run's name.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import logging
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.log import log
from core.option import Around, Config, option
from core.protocols import Features, UserError, first_line
from core.taps import TappedNet, without_taps

M = TypeVar("M", bound=nn.Module)
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PARTS = ("student", "teacher", "loss")
LONG_RUN = 5000  # from this many steps on, compiling (half a minute to two minutes) saves time
EXACT_CASTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # layers whose weights autocast casts in every call


@dataclass(frozen=True)
class KernelConfig(Config):
    """Settings that change speed, not results (up to rounding)."""

    heading = "speed"

    compile: str = option(
        "auto",
        "mode of torch.compile; auto: default in runs of at least 5000 steps, else none (see docs/speed.md)",
        choices=("auto", "none", *MODES),
    )
    compile_parts: list[str] | None = option(
        None, "parts to compile (default: all on CUDA, the teacher on a CPU)", choices=PARTS
    )
    channels_last: str = option(
        "auto", "channels-last memory order of images and weights; auto: on", choices=("auto", "on", "off")
    )
    fused_optimizer: str = option("auto", "run SGD as one kernel; auto: on", choices=("auto", "on", "off"))
    depthwise_fp32: str = option(
        "auto", "depthwise convolutions in float32 when training in bf16; auto: on a CPU", choices=("auto", "on", "off")
    )

    def idle(self, around: Around) -> dict[str, str]:
        if self.compile == "none":
            return {"compile_parts": "nothing is compiled"}
        if around.on_cpu and around.alone and self.compile_parts is None:
            return {"compile": "on a CPU, --compile_parts student compiles the student"}
        return {}


@dataclass(frozen=True)
class Kernels:
    """compile: a mode of torch.compile; None: none. parts: the compiled ones of PARTS.

    depthwise_fp32: see `to_device`. strict: a failing compiler is an error; otherwise the part runs uncompiled, with a
    notice. backend: of torch.compile.
    """

    compile: str | None = None
    parts: tuple[str, ...] = ()
    channels_last: bool = True
    fused_optimizer: bool = True
    fold_teacher: bool = False
    depthwise_fp32: bool = False
    strict: bool = True
    backend: str = "inductor"

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs replay the compiled parts; each replay overwrites the memory of the previous one."""
        return self.compile in ("reduce-overhead", "max-autotune") and bool(self.parts)


PLAIN = Kernels()


@dataclass(frozen=True)
class Hardware:
    """Device and kernels of a session. autocast: dtype of the forward pass; None: float32."""

    device: torch.device
    autocast: torch.dtype | None
    kernels: Kernels


def pick_kernels(
    cfg: KernelConfig, device: torch.device, steps: int, fold_teacher: bool = False, live_teacher: bool = True
) -> tuple[Kernels, list[str]]:
    """(kernels, notices) of the settings.

    steps: of the whole run. live_teacher: a teacher runs in the steps, not behind a cache. auto: channels_last and the
    fused optimiser everywhere; torch.compile in runs of sufficient length, on a CPU of a live teacher; depthwise
    convolutions in float32 on a CPU. UserError if a requested compiler does not work.
    """
    asked, notices = cfg.compile, []
    parts = tuple(cfg.compile_parts or (PARTS if device.type == "cuda" else ("teacher",)))
    mode = None if asked == "none" else asked
    if asked == "auto":
        worthwhile = device.type in ("cuda", "cpu") and steps >= LONG_RUN and (live_teacher or parts != ("teacher",))
        mode = "default" if worthwhile else None
    if mode is not None and (reason := compiler_fault(device)) is not None:
        if asked != "auto":
            raise UserError(
                f"--compile {mode}: torch.compile does not work on this machine ({reason}): install a C++ compiler, or "
                "pass --compile none"
            )
        notices.append(f"nothing is compiled: torch.compile does not work on this machine ({reason})")
        mode = None
    kernels = Kernels(
        mode,
        parts if mode else (),
        cfg.channels_last != "off",
        cfg.fused_optimizer != "off",
        fold_teacher,
        cfg.depthwise_fp32 == "on" or (cfg.depthwise_fp32 == "auto" and device.type == "cpu"),
        strict=asked != "auto",
    )
    return kernels, notices


def to_device(net: M, device: torch.device, kernels: Kernels = PLAIN) -> M:
    """The network on the device, with the weights in the memory order of the images: channels_last, or else contiguous.

    kernels.depthwise_fp32: where gradients are needed, autocast leaves depthwise convolutions in float32: oneDNN is
    faster there.
    """
    net.to(device)
    if kernels.depthwise_fp32:
        for module in net.modules():
            if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
                module.forward = functools.partial(_in_float32, module)  # type: ignore[method-assign]
    if kernels.channels_last:
        return net.to(memory_format=torch.channels_last)
    if isinstance(net, TappedNet) and not net._forward_pre_hooks:
        net.register_forward_pre_hook(lambda net, args: ({k: x.contiguous() for k, x in args[0].items()},))
    return net


def _in_float32(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Output of a convolution: with gradients computed in float32 and returned in the dtype of x, else unchanged.

    Its class is looked up at each call: --quantize changes it after to_device().
    """
    forward = type(convolution).forward
    if not torch.is_grad_enabled():
        return forward(convolution, x)
    with torch.autocast(x.device.type, enabled=False):
        return forward(convolution, x.float()).to(x.dtype)


@functools.cache
def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile fails on a device, in a few words; None if it works. Compiles two operations as a test."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    try:
        with torch.no_grad():
            torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # any error of the tool chain means the same
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return textwrap.shorten(first_line(error).rstrip(".:"), 160, placeholder=" ...")


class Compiled:
    """A function compiled for batches of one size; other sizes (the end of an epoch) run uncompiled.

    full: that size; None: any. freezing: weights are constants (a teacher), so that batch norm is folded into
    convolutions and weights are laid out for the processor once; only without gradient.
    """

    def __init__(self, function: Callable[..., Any], kernels: Kernels, full: int | None, freezing: bool = False):
        import torch._dynamo

        # all networks of the process (trials, lanes, stages) share the code of one forward
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self.function, self.kernels, self.full = function, kernels, full
        settings: dict[str, Any] = {"backend": kernels.backend}
        if kernels.backend == "inductor":
            import torch._inductor

            mode = None if kernels.compile == "default" else kernels.compile
            options = dict(torch._inductor.list_mode_options(mode)) if mode else {}
            settings["options"] = options | {"freezing": True} if freezing else options
        self.fast: Callable[..., Any] | None = torch.compile(function, dynamic=False, **settings)
        # the option above reaches only the back end; the tracer, which must keep weights constant, reads the global
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
            self.to_freeze = False  # at the first call only: patching takes as long as a small step
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


def private_copy(net: TappedNet) -> TappedNet:
    """A copy of the network with its own weights, without hooks of other wrappers of the model."""
    model, device = without_taps(copy.deepcopy(net.model)), next(net.parameters()).device
    return TappedNet(model, net.spec, net.want).to(device).eval().requires_grad_(False)


def _agree(a: Features, b: Features, tolerance: float) -> bool:
    if tolerance == 0:
        return all(torch.equal(a[k], b[k]) for k in a)
    return all(bool((a[k] - b[k]).abs().max() <= tolerance * b[k].abs().max()) for k in a)


@torch.no_grad()
def with_cast_weights(net: TappedNet, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TappedNet:
    """A copy whose weights already have the dtype to which autocast would cast them in every call; for use under
    autocast.

    Its outputs are bit-identical, which is checked on `inputs`; otherwise the network itself is returned.
    """
    cast = private_copy(net)
    for module in cast.model.modules():
        if type(module) in EXACT_CASTS:  # a subclass may use its weights in another way
            module.to(dtype)
    try:
        return cast if _agree(net(inputs), cast(inputs), 0) else net
    except RuntimeError:  # two dtypes met outside autocast
        return net


@torch.no_grad()
def folded(net: TappedNet, inputs: Mapping[str, Tensor]) -> TappedNet:
    """A copy with every batch norm that directly follows a convolution folded into it; in float32 and eval mode.

    Pairs are found by watching one forward pass on the first samples of `inputs`, so no network is known by name. A
    pair is folded only if every feature changes by less than 1e-3 of its largest value. UserError without such a pair.
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
    made: dict[int, tuple[str, Tensor]] = {}  # id of an output -> its module; the kept tensor makes the id unique
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
    """Make glibc keep freed memory, so that a step causes no page fault for memory used before.

    Blocks of any size come from the heap, which is never trimmed; it takes more memory, as free blocks of unequal size
    remain. No effect with other C libraries.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
