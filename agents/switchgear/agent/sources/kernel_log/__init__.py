"""The kernel log: which lines are events, and which lines are one event."""

from switchgear.agent.sources.kernel_log.blocks import Blocks
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.classify import LINE_CHARS_MAX, classify, classify_message
from switchgear.agent.sources.kernel_log.parser import FOLD_S, TEXT_BYTES_MAX, KernelLogParser
from switchgear.agent.sources.kernel_log.prefix import Line, split

__all__ = [
    "FOLD_S",
    "LINE_CHARS_MAX",
    "TEXT_BYTES_MAX",
    "Blocks",
    "Classified",
    "KernelLogParser",
    "Line",
    "classify",
    "classify_message",
    "split",
]
