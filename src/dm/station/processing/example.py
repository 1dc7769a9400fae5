"""The workflow ``example-01`` of the published examples: six stages."""

from __future__ import annotations

from typing import Any

EXAMPLE: dict[str, Any] = {
    "name": "example-01",
    "owner": "dm",
    "description": "Shows variables, output regexes, a condition and a repeated stage.",
    "stages": {
        "01-START": {
            "command": "/bin/date +%Y%m%d%H%M%S",
            "outputVariableRegexList": ["(?P<timeStamp>[0-9]+)"],
        },
        "02-MKDIR": {"command": 'mkdir -p "/tmp/workflow.$id.$timeStamp"'},
        "03-ECHO": {
            "command": 'echo "START JOB ID: $id" > "/tmp/workflow.$id.$timeStamp/$timeStamp.out"',
        },
        "04-MD5SUM": {
            "command": 'echo "MD5: `md5sum < $filePath | cut -f1 -d\\" \\"`"',
            "outputVariableRegexList": ["MD5: (?P<md5Sum>.*)"],
        },
        "05-REPEAT": {
            "command": 'echo "COUNT: `date +%S | sed s/^0//`"; echo "WANTED: 0"',
            "outputVariableRegexList": ["COUNT: (?P<count>.*)", "WANTED: (?P<wanted>.*)"],
            "repeatPeriod": 1,
            "repeatUntil": "$count >= $wanted",
            "maxRepeats": 10,
        },
        "06-DONE": {"command": 'rm -r "/tmp/workflow.$id.$timeStamp"; echo "DONE: $md5Sum"'},
    },
}
