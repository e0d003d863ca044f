"""Corral: one OpenAI-compatible gate in front of a herd of llama-server processes.

Folders are permissions, file names are subjects. The rooms, lowest rank first; a module imports from
lower ranks and, without circles, from its own room, and rooms of equal rank don't know each other:

    errors                       every way a request can fail
    formats  settings  metrics   bytes <-> values; the only reader of the environment; every instrument
    catalogue                    what a model is, for all who deal with one
    policy   drivers             decisions, with the time as an argument; acts on the world
    fleet                        the single writer of what runs: decides by policy, acts by drivers
    handlers health              one request each; the health process
    logs     welcome  app        build, start, drain, stop; bulletin, health_process, surroundings: its parts
                      program    its loop and its exit code

A decision can't act: `policy` and `formats` import no clock, no socket, no randomness. An act can't
decide: `drivers` are told what to do.

A request's journey: drivers/http_server reads it, handlers/routes finds its handler, and
handlers/inference is the whole way in one function: authenticate, admit, read, choose the model, lease a
slot from the fleet, pass the engine's bytes on; handlers/record keeps what is kept of it.
"""

__version__ = "0.1.0"
