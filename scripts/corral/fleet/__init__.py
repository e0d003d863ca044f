"""The fleet: the herd of llama-servers behind one door.

fleet           events in, actions carried out; the single writer of scheduler and lifecycle state
lease           what a request holds while it needs a model
queue_view      how the queues stand, for those who look
abandoned       requests that nobody waits for any more and the engine may still work on
preloading      what is loaded at the start
keeper          follows one process from its start until its memory has come back
managed         one model as the fleet keeps it
memory          the VRAM guard with eyes: readings, books, what was learnt
devices         readings of the machine's memory, as the books want them
footprints      what a model will take, from its files and its command line
second_opinion  what llama.cpp's own planner says to the guard's predictions
engines         how a model becomes a process that answers
watchman        whether that process still works, looked at on suspicion
onlooker        somebody who follows the states of all models
"""

from corral.fleet.engines import Engine, EngineDied, Engines, LlamaEngines
from corral.fleet.fleet import Fleet
from corral.fleet.lease import EngineLost, Lease
from corral.fleet.managed import shutting_down
from corral.fleet.memory import FleetMemory
from corral.fleet.onlooker import Change, Onlooker
from corral.fleet.queue_view import Waiter
from corral.fleet.second_opinion import SecondOpinions

__all__ = [
    "Change",
    "Engine",
    "EngineDied",
    "EngineLost",
    "Engines",
    "Fleet",
    "FleetMemory",
    "Lease",
    "LlamaEngines",
    "Onlooker",
    "SecondOpinions",
    "Waiter",
    "shutting_down",
]
