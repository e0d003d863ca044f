"""The benchmark: what Corral costs, beside nginx as a plain proxy and whoever else is installed.

    python -m tests.bench            all of it: a table, its figures as JSON, a chart
    python -m tests.bench.gate       the part that CI holds the budget with

The method. One processor core belongs to the proxy under test, another one to the load generator and to
a stand-in llama-server; both of these are small C programs (load.c, stand_in.c), compiled when they are
needed. Cost is processor time by the kernel's own accounting, over exactly the time in which the load
generator counts; it depends little on what else the machine does, and a ratio to nginx in the same round
less still. Latencies do depend on it, so they are reported and decide nothing. Contestants take turns,
round by round; in each round the quietest of a few takes counts, for what else the machine does adds to a
figure and never takes from it; and a figure is the median of the rounds.

    programs      the two C programs, compiled and run
    kernel        what the kernel knows of a process; which cores there are
    contestants   nginx, Corral and a straight line, started ready to be measured
    others        rivals, where they are installed
    install       gets them
    measure       one contestant, one figure
    results       figures by name, medians, ratios, JSON
    table, chart  the same for people
    pages         the table in docs/performance.md and in README.md
"""
