"""The benchmark harness: how long stores and barriers take, ours and those people use today.

    python -m bench [SCENARIO…] [--store module:callable | URL] [--quick] [--json OUT] [--plots DIR]

One way through it, and a file or folder for each step:

    scenarios/   what is timed: sessions of cases, and the loop that runs in the processes
    rivals/      who is timed: how each is started, opened by a process, and what it cannot do
    launch.py    starts a fresh process for each session, and survives a rival that hangs or dies
    session.py   in that process: forks the team, starts the rivals, and runs
    rounds.py    warm-up, then A B C, A B C, …: one sample of each in each round
    records.py   samples become rows, rows a result, and a result is a JSON file
    report.py, plots.py, compare.py   read such files and nothing else
    stats.py, host.py, team.py, cli.py   medians and ratios · the machine · processes and their gate · options
    clock.py, hogs.py                    the clock · processes that only compute
    meetings.py, groups.py               the loops of barriers · the start of process groups

Times are seconds inside, sizes bytes; people are shown ns, µs or ms. A ratio is always one of two samples of the same
round. An aim, where a scenario has one, is set beside what was measured; no speed makes a run fail.
"""
