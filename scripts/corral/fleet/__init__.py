"""The fleet: the herd of llama-servers behind one door.

fleet     events in, actions carried out; the single writer of scheduler and lifecycle state
lease     what a request holds while it needs a model
engines   how a model becomes a process that answers
watchman  whether that process still works, looked at on suspicion
onlooker  somebody who follows the states of all models
"""

from corral.fleet.engines import Engine, EngineDied, Engines, LlamaEngines
from corral.fleet.fleet import Fleet
from corral.fleet.lease import Lease
from corral.fleet.onlooker import Change, Onlooker

__all__ = ["Change", "Engine", "EngineDied", "Engines", "Fleet", "Lease", "LlamaEngines", "Onlooker"]
