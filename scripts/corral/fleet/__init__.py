"""The fleet: the herd of llama-servers behind one door.

fleet     events in, actions carried out; the single writer of scheduler and lifecycle state
lease     what a request holds while it needs a model
engines   how a model becomes a process that answers
"""

from corral.fleet.engines import Engine, EngineDied, Engines, LlamaEngines
from corral.fleet.fleet import Fleet
from corral.fleet.lease import Lease

__all__ = ["Engine", "EngineDied", "Engines", "Fleet", "Lease", "LlamaEngines"]
