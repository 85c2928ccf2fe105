"""Every rank some of the layers, micro-batches passed along: who does what when, as plain data.

Read in this order: `schedule.py` (for each rank the list of what it does), `schedules.py` (GPipe,
1F1B, interleaved, zero bubble), `messages.py` (where sends and receives go), `validate.py` (what
would deadlock, or compute the wrong thing), `simulate.py` (time, bubble, memory), `executor.py`
(the same list on real ranks).
"""
