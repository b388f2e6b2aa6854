"""Import xfuser so that it also runs on a CPU over gloo, where the tests split models over real process groups.

xfuser 0.7.0 takes for granted that there is an accelerator: without one it does not import, and once it does, some of
its layers silently skip the sequence-parallel exchange. Where there is an accelerator, `import_xfuser` only imports.

    xfuser = import_xfuser()          # before anything else imports it
    init_distributed_environment(backend="gloo")
    args = xfuser.xFuserArgs(ulysses_degree=2, attention_backend=ATTENTION_BACKEND)
    initialize_model_parallel(ulysses_degree=2, backend="gloo")
"""

import importlib
import sys
import threading
from types import ModuleType

import torch

ATTENTION_BACKEND = "SDPA_FLASH"
"""The one to ask for on a CPU: it alone returns the log-sum-exp by which ring attention merges its parts."""

_lock = threading.Lock()


def on_cpu() -> bool:
    return not torch.accelerator.is_available()


def import_xfuser() -> ModuleType:
    """Return the `xfuser` module, patched if there is no accelerator. Calling it again changes nothing."""
    with _lock:
        if not on_cpu():
            return importlib.import_module("xfuser")
        cuda_version = torch.version.cuda
        torch.version.cuda = "0.0"  # xfuser reads the version when imported, and raises if there is none
        try:
            xfuser = importlib.import_module("xfuser")
            _use_gloo()
        finally:
            torch.version.cuda = cuda_version
        return xfuser


def _use_gloo() -> None:
    from xfuser import envs
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType
    from xfuser.model_executor.layers import usp
    from yunchang.globals import PROCESS_GROUP

    # A CUDA build of torch on a machine without a GPU would otherwise count as one.
    envs._is_cuda = lambda: False
    # Asked for only where a GPU is found. Modules copy it at import: some refuse to work without it, SD3 is wrong.
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True
    for name, module in list(sys.modules.items()):
        if name.startswith("xfuser.") and hasattr(module, "HAS_LONG_CTX_ATTN"):
            vars(module)["HAS_LONG_CTX_ATTN"] = True
    # Imported there only where a GPU is found; it holds the groups that Ulysses and ring exchange over.
    usp.PROCESS_GROUP = PROCESS_GROUP
    # What is registered calls a kernel that exists for CUDA only.
    ATTENTION_FUNCTION_REGISTRY[AttentionBackendType.SDPA_FLASH] = _flash_attention


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    attention_kwargs: dict[str, object] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's flash attention on a CPU, with its log-sum-exp."""
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal
    )
    return output, log_sum_exp
