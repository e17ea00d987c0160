"""`doctor`: whether the archive can be used from here."""

from __future__ import annotations

from trifle_otel.checkup import as_json, examine
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.terminal import STYLES, Screen, state_label
from trifle_otel.cli.visible import visible


def doctor(*, json: Flag = False, place: Place | None = None) -> int:
    """Check the archive, its index, the spool, permissions and the clock, by a test write and read.

    Exit code 1 where something is wrong.

    Parameters
    ----------
    json
        Print one JSON object a line.
    """
    screen = Screen()
    with opened(place) as archive:
        findings = examine(archive)
    for finding in findings:
        if json:
            print(as_json(finding))
        else:
            label = (f"{state_label(finding.state):<10}", STYLES.get(finding.state, ""))
            screen.wrap([label, (f"{finding.what:<13}", "")], visible(finding.message))
    return int(any(finding.state == "error" for finding in findings))
