"""What is said of memory, as JSON: a plan, and how the devices and the models on them stand now.

Sizes are bytes. Some are said once more in MiB, under the names by which dashboards of older routers
ask for them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from corral.policy.commitments import Account
from corral.policy.fit import SMALL_CACHE, Suggestions
from corral.policy.footprint import Share
from corral.policy.guard import Impossible
from corral.policy.memory import Parts
from corral.policy.placement import HOST
from corral.policy.plan import Plan

MIB = 1 << 20
GIB = 1 << 30


class Health(enum.Enum):
    """How the memory stands, in one word."""

    HEALTHY = "healthy"
    WARNING = "warning"  # no room for another model, unless one goes
    CRITICAL = "critical"  # other programs have taken what was promised to models: nothing is loaded


class Holding(NamedTuple):
    """What one model holds, in bytes by device."""

    model: str
    reserved: Mapping[str, int]
    measured: Mapping[str, int]
    estimate: tuple[Share, ...]


class Report(NamedTuple):
    accounts: tuple[Account, ...]
    holdings: tuple[Holding, ...]
    smallest_bytes: int | None  # the smallest file of a model that isn't there; None if all are

    @property
    def free_bytes(self) -> int:
        """The most room for a model on one device: a GPU, where there are any."""
        gpus = [account for account in self.accounts if account.id != HOST]
        return max((account.room_bytes for account in gpus or self.accounts), default=0)

    @property
    def health(self) -> Health:
        if any(account.hoped_bytes < 0 for account in self.accounts):
            return Health.CRITICAL
        wanted = self.smallest_bytes or 0
        return Health.WARNING if self.free_bytes < wanted else Health.HEALTHY


# How it stands ------------------------------------------------------------------------------------


def vram_document(report: Report, states: Mapping[str, str]) -> dict[str, Any]:
    """The devices, and of the models those whose states are given."""
    names = {account.id: account.name for account in report.accounts}
    models = [
        _holding_document(holding, states[holding.model], names)
        for holding in report.holdings
        if holding.model in states
    ]
    return {
        "status": report.health.value,
        "can_load_more": report.health is Health.HEALTHY,
        "estimated_free_for_new_model_mb": max(0, report.free_bytes) // MIB,
        "gpu_info": _gpu_info([account for account in report.accounts if account.id != HOST]),
        "devices": [account_document(account) for account in report.accounts],
        "models": sorted(models, key=lambda model: -model["bytes"]),
    }


def account_document(account: Account) -> dict[str, Any]:
    return {
        "device": account.id,
        "name": account.name,
        "total_bytes": account.total_bytes,
        "used_bytes": account.used_bytes,
        "foreign_bytes": account.foreign_bytes,
        "reserved_bytes": account.committed_bytes,
        "margin_bytes": account.margin_bytes,
        "free_bytes": max(0, account.room_bytes),
    }


def _holding_document(holding: Holding, state: str, names: Mapping[str, str]) -> dict[str, Any]:
    gpu_bytes = sum(size for id, size in holding.reserved.items() if id != HOST)
    return {
        "model": holding.model,
        "status": state,
        "vram_mb": gpu_bytes // MIB,
        "bytes": sum(holding.reserved.values()),
        "devices": [
            {
                "device": id,
                "name": names.get(id, id),
                "reserved_bytes": size,
                "measured_bytes": holding.measured.get(id),
            }
            for id, size in holding.reserved.items()
        ],
        "estimate": [share_document(share, names) for share in holding.estimate],
    }


def _gpu_info(gpus: Sequence[Account]) -> dict[str, Any] | None:
    """All GPUs as one; None without any."""
    total = sum(account.total_bytes for account in gpus)
    if not total:
        return None
    used = sum(account.used_bytes for account in gpus)
    sizes = {"total": total, "used": used, "free": total - used}
    return {
        **{f"{what}_mb": size // MIB for what, size in sizes.items()},
        **{f"{what}_gb": round(size / GIB, 2) for what, size in sizes.items()},
        "usage_percentage": round(100 * used / total, 1),
        "baseline_used_mb": sum(account.foreign_bytes for account in gpus) // MIB,
    }


# What would be ------------------------------------------------------------------------------------


def plan_document(plan: Plan) -> dict[str, Any]:
    placement = plan.placement
    return {
        "model": plan.model,
        "verdict": plan.verdict.value,
        "message": plan.message,
        "evict": list(plan.evict),
        "wait_for": list(plan.wait_for),
        "context_tokens": plan.context_tokens,
        "slots": plan.slots,
        "predicted": parts_document(plan.parts),
        "layers": plan.layer_count,
        "gpu_layers": placement.layers if placement else None,
        "tensor_split": list(placement.tensor_split) if placement else [],
        "devices": [share_document(share, plan.names) for share in plan.shares],
        "needs": _needs_document(plan.impossible) if plan.impossible else None,
        "would_fit_with": _suggestions_document(plan.would_fit) if plan.would_fit else None,
    }


def share_document(share: Share, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "device": share.device,
        "name": names.get(share.device, share.device),
        "bytes": share.bytes,
        "source": share.source.value,
        "predicted_bytes": share.parts.total,
        "parts": parts_document(share.parts),
    }


def parts_document(parts: Parts) -> dict[str, int]:
    """What few models have is left out where there is none."""
    usual = {
        "weights": parts.weights,
        "kv_cache": parts.cache + parts.state,
        "compute": parts.compute,
        "context": parts.context,
    }
    rare = {"projector": parts.projector, "draft": parts.draft}
    return usual | {what: size for what, size in rare.items() if size}


def _needs_document(impossible: Impossible) -> dict[str, Any]:
    alone = {"on_cpu": {"host_bytes": impossible.cpu_bytes}}
    if not impossible.layers:
        return alone
    sizes = {"gpu_bytes": impossible.gpu_bytes, "host_bytes": impossible.host_bytes}
    return {"on_one_gpu": sizes, **alone}


def _suggestions_document(suggestions: Suggestions) -> dict[str, Any]:
    """Each is one change that would be enough; null: no such change is."""
    return {
        "context_tokens": suggestions.context_tokens,
        "cache_type": SMALL_CACHE if suggestions.small_cache else None,
        "gpu_layers": suggestions.gpu_layers,
    }
