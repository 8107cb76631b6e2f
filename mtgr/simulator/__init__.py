"""Plausible users watching short videos: a seeded source of events where no real log is at hand.

Videos have a topic, a length, a quality, a popularity that falls by Zipf's law, and a time of birth; some are
parts of a series. Users have a few favourite topics that drift, and an hour of their own. They come in
sessions, stay with a topic as long as it pleases, follow a series from part to part, watch longer what they
like, and like, save or share some of that. So there is something to learn from the order of events that
popularity does not know.
"""

from mtgr.simulator.simulation import Simulation, describe_users, describe_videos, simulate

__all__ = ["Simulation", "describe_users", "describe_videos", "simulate"]
