"""Training: runs of a landscape's model advanced side by side, recorded as trajectories.

advance         `train`: from record to record, streamed and resumed
optimisers      the update rules and schedules as data; starts: where runs begin

The way goes on in engines/training.py (csrc/training) or engines/eager_training.py (torch); what
comes out is `Runs` of trajectories/several.py.
"""
