"""Who is served next, and which models are on the machine: decided here, carried out by the fleet.

    ticket     a request's wish and its place: what is known of it
    queue      one model's queue: classes, fairness among keys, aging
    pace       how fast a model loads, serves, and is asked: learnt
    places     which models are on the machine: who comes, who goes
    switching  when a loaded model makes way for one that is waited for
    model      one model as the scheduler sees it
    actions    what is decided
    scheduler  facts in, actions out: the one that ties all this together

docs/scheduling.md tells the policy on one page, with figures.
"""

from corral.policy.scheduler.actions import Action, Drain, Grant, Load, Outlook, Refuse, Stop
from corral.policy.scheduler.model import ModelLimits, QueueStats
from corral.policy.scheduler.places import Admission
from corral.policy.scheduler.scheduler import Scheduler
from corral.policy.scheduler.switching import Terms
from corral.policy.scheduler.ticket import NOTHING, Ticket, Usage, Wish

__all__ = [
    "NOTHING",
    "Action",
    "Admission",
    "Drain",
    "Grant",
    "Load",
    "ModelLimits",
    "Outlook",
    "QueueStats",
    "Refuse",
    "Scheduler",
    "Stop",
    "Terms",
    "Ticket",
    "Usage",
    "Wish",
]
