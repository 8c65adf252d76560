"""Sinks: other loggers that get the measurements too: W&B, MLflow, trackio, or a class of your own.

    from inrank_monitor.sinks import WandbSink

    wandb.init(project="mine")
    tracker = attach(model, optimizer, "runs/first", sinks=[WandbSink()])

A sink has a thread of its own and gets a snapshot after the log has it. Each library is imported when its sink is
connected.
"""

from inrank_monitor.sinks.interface import Sink, check_sinks, connect_sinks
from inrank_monitor.sinks.loggers import MlflowSink, TrackioSink, WandbSink
from inrank_monitor.sinks.measurements import Measurements
from inrank_monitor.sinks.tensorboard import EventFile, import_protocol
from inrank_monitor.sinks.threads import SinkThreads

__all__ = [
    "EventFile",
    "Measurements",
    "MlflowSink",
    "Sink",
    "SinkThreads",
    "TrackioSink",
    "WandbSink",
    "check_sinks",
    "connect_sinks",
    "import_protocol",
]
