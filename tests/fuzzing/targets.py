"""What is fuzzed: everything of ours that reads bytes or text from outside.

A target is a function of bytes. Errors that are documented (those of `errors`, what a docstring names) are answers;
anything else that is raised is a finding, and so is what takes too much time or memory (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import archive_targets, span_targets, spool_targets, text_targets

Target = Callable[[bytes], None]

TARGETS: Mapping[str, Target] = {
    target.__name__: target
    for target in (
        archive_targets.parts,
        span_targets.otlp_protobuf,
        span_targets.otlp_json,
        span_targets.otlp_file,
        span_targets.otlp_body,
        archive_targets.record,
        archive_targets.folder,
        spool_targets.spool,
        spool_targets.journal,
        archive_targets.search,
        archive_targets.names,
        text_targets.urls,
        text_targets.redaction,
        text_targets.patterns,
        text_targets.values,
    )
}
"""By their names, the riskiest first."""
